"""The types that every layer shares.

A sample `x` or `z` is one example, unbatched: an image is float32, channel first, in
[-1, 1]. A denoiser is any function `(z_t, t) -> x`, whatever stands behind it.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int

Sample = Float[Array, "*shape"]
Scalar = Float[Array, ""]
ScalarLike = Float[Array, ""] | Int[Array, ""] | float | int
Label = Int[Array, ""] | int | None
NULL_LABEL = -1
"""The label of no class, for networks that have a null class."""
DenoiseFn = Callable[[Sample, ScalarLike], Sample]


class Example(NamedTuple):
    """One data point, or, with a leading axis on every field, a batch of them."""

    x: Float[Array, "*shape"]
    """Clean sample; images are channel first, in [-1, 1] but for `Images.headroom`."""
    label: Int[Array, "*batch"] | None = None
    """Class index in [0, classes), -1 for the null class, or None without classes."""
    guidance: Float[Array, "*batch"] | None = None
    """Guidance scale g >= 0 of a model that takes one; None for all others."""
