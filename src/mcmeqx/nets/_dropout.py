"""Dropout whose masks cost little.

JAX hashes a counter to two words of 32 bits for each number that it draws, and makes
one of them. A mask drawn so takes as long on a CPU as the product of matrices before
it. Here each element takes 16 bits of a hash, and four elements share one.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.random import threefry_2x32
from jaxtyping import Key

from mcmeqx.nets._layers import wide

_LEVELS = 2**16


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """`x` with a share `rate` of its elements set to 0, the others over `1 - rate`.

    Each element falls by itself (Srivastava et al. 2014). `rate` lies in [0, 1) and is
    taken to the nearest 1 / 65536 below 1. Without a key this is `x`.
    """
    kept = max(1, round((1.0 - rate) * _LEVELS))
    if key is None or kept == _LEVELS:
        return x
    seed = jax.random.bits(key, (2,), jnp.uint32)
    counter = jnp.arange(2 * -(-x.size // 4), dtype=jnp.uint32)
    # One array after the other, which XLA hashes in one loop.
    first, second = jnp.split(threefry_2x32(seed, counter), 2)
    parts = [first >> 16, first & 0xFFFF, second >> 16, second & 0xFFFF]
    stays = jnp.concatenate(parts)[: x.size].reshape(x.shape) < kept
    # Not `where`: its zeros would be a map of their own, read in every turn of a scan.
    factor = stays.astype(wide(x).dtype) * (_LEVELS / kept)
    return (wide(x) * factor).astype(x.dtype)
