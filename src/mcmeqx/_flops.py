"""How many floating-point operations a function takes, and how many a device can do.

Only matrix products and convolutions count, two operations for each multiply-add, and
of a convolution no product with padding; the body of a scan counts as often as it runs,
which XLA's own cost analysis does not do. What a backward pass computes again, to save
memory, is none of the model's operations and does not count.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# JAX's name for what `jax.checkpoint` does a second time, in the backward pass.
_RECOMPUTED = "rematted_computation"


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations of one call of `function`; arguments may be arrays or their shapes.

    A while loop, as of an adaptive solver, counts as one pass, and a branch as the
    longest of its kind. What `jax.checkpoint` makes a gradient compute again does not.
    """
    jaxpr, _, _ = eqx.filter_make_jaxpr(function)(*args)
    return _of_jaxpr(jaxpr.jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if _RECOMPUTED in str(equation.source_info.name_stack):
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name.startswith("dot_product_attention"):
        return _of_attention(equation)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1)


def _of_attention(equation: Any) -> int:
    """Of cuDNN's kernel, by the formula: what it computes again backward is not work.

    Two products forward, and their four derivatives.
    """
    (batch, tokens, heads, channels), keys, *_ = (
        a.aval.shape for a in equation.invars if a.aval.ndim == 4
    )
    products = 2 if "_fwd" in equation.primitive.name else 4
    return 2 * products * batch * heads * tokens * keys[1] * channels


def _of_convolution(equation: Any) -> int:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel = (a.aval.shape for a in equation.invars)
    out = equation.outvars[0].aval.shape
    axes = zip(
        [image[axis] for axis in numbers.lhs_spec[2:]],
        [kernel[axis] for axis in numbers.rhs_spec[2:]],
        [out[axis] for axis in numbers.out_spec[2:]],
        params["window_strides"],
        [low for low, _ in params["padding"]],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    batch, channels = (out[axis] for axis in numbers.out_spec[:2])
    products = batch * channels * kernel[numbers.rhs_spec[1]]
    return 2 * products * math.prod(_pairs(*axis) for axis in axes)


def _pairs(
    image: int, kernel: int, out: int, stride: int, low: int, spread: int, step: int
) -> int:
    """How often a kernel's element meets one of the image's, along one axis."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * step - low
    inside = (at >= 0) & (at <= (image - 1) * spread)
    return int(np.sum(inside & (at % spread == 0)))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def matmul_peak(dtype: Any = jnp.float32) -> float:
    """Operations a second of one device in a large matrix product: a measured peak.

    The best of several rounds, which take about a second in all. The numbers are
    random: chips do constant ones faster.
    """
    side = 1024 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready([product(a, a) for _ in range(4)])
        best = min(best, (time.perf_counter() - begun) / 4)
    return 2 * side**3 / best
