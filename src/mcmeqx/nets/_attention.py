"""Self-attention: its formula, and a GPU's own kernel for it.

cuDNN's kernel (flash attention, Dao et al. 2022) never writes the weights of all pairs
of tokens to memory. It takes two-byte floats, and has a derivative backward only.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "token head channel"]

_KERNELS = contextvars.ContextVar("kernels", default=True)


@contextlib.contextmanager
def formula_alone() -> Iterator[None]:
    """Trace attention by its formula: for forward derivatives, and any device."""
    token = _KERNELS.set(False)
    try:
        yield
    finally:
        _KERNELS.reset(token)


def _has_cudnn() -> bool:
    """Whether the default device is a GPU that cuDNN has the kernel for."""
    options: Any = jax.config
    device = options.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= 8.0


def _has_kernel(q: Heads) -> bool:
    """Whether there is a kernel for such queries; 64 tokens are the fewest tried."""
    tokens, _, channels = q.shape
    fits = tokens >= 64 and channels <= 128 and channels % 8 == 0
    return _KERNELS.get() and fits and q.dtype.itemsize == 2 and _has_cudnn()


def _products(q: Heads, k: Heads) -> Float[Array, "head token other"]:
    wider = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum("thc,shc->hts", q, k, preferred_element_type=wider)


_scores = jax.custom_jvp(_products)


@_scores.defjvp
def _scores_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """A derivative in the precision of q and k; that of `einsum` mixes it with wider.

    A product of float32 with bfloat16 runs at the speed of float32. The scores are a
    plain product here: what a block keeps for its backward pass, it tells by primitive.
    """
    (q, k), (dq, dk) = primals, tangents
    scores = _products(q, k)
    by_q, by_k = jnp.einsum("thc,shc->hts", dq, k), jnp.einsum("thc,shc->hts", q, dk)
    return scores, by_q.astype(scores.dtype) + by_k.astype(scores.dtype)


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """`softmax(q k^T / sqrt(channels)) v` for each head; its softmax is float32."""
    if _has_kernel(q):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    weights = jax.nn.softmax(_scores(q, k) * (1.0 / math.sqrt(q.shape[-1])), -1)
    return jnp.einsum("hts,shc->thc", weights.astype(v.dtype), v)
