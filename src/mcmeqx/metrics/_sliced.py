"""The sliced Wasserstein distance between two sets of points.

In one dimension the best matching of two equal sets pairs their sorted values, so

    SW2(a, b)^2 = E_u mean_i (sort(a u)_i - sort(b u)_i)^2

with u uniform on the unit sphere (Rabin et al. 2011; Bonneel et al. 2015).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def sliced_wasserstein(
    a: Float[Array, "n size"] | Float[np.ndarray, "n size"],
    b: Float[Array, "n size"] | Float[np.ndarray, "n size"],
    *,
    directions: int = 128,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """`SW2(a, b)`, in the units of the points, over random `directions`.

    Two independent draws of one law are not at 0: report their distance as the floor.
    Raises ValueError unless both sets have one shape, (n, size), and at least one
    direction is asked for.
    """
    if a.ndim != 2 or a.shape != b.shape or not a.size or directions < 1:
        raise ValueError(
            "sliced_wasserstein compares equally many points of one size over at least "
            f"one direction, got {a.shape}, {b.shape} and directions={directions}"
        )
    a, b = jnp.asarray(a), jnp.asarray(b)
    u = jax.random.normal(key, (a.shape[1], directions), a.dtype)
    u = u / jnp.linalg.norm(u, axis=0)
    gaps = jnp.sort(a @ u, axis=0) - jnp.sort(b @ u, axis=0)
    return jnp.sqrt(jnp.mean(gaps**2))
