"""What ImageNet's networks are shown of a photograph."""

import jax
import jax.numpy as jnp
import numpy as np

_SHORT, _SIDE = 256, 224


def imagenet_crop(pixels: np.ndarray) -> np.ndarray:
    """A photograph, uint8 (height, width, 3), as (3, 224, 224) float32 in [-1, 1].

    Its shorter side is brought to 256 by an antialiased bicubic filter, as Pillow's,
    and the middle is cut out: ImageNet's usual evaluation. A feature network needs it
    for photographs alone; generated images are compared whole. Raises ValueError for
    another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,) or not pixels.size:
        raise ValueError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}, expected uint8 "
            "(height, width, 3)"
        )
    sides = pixels.shape[:2]
    height, width = (round(n * _SHORT / min(sides)) for n in sides)
    x = jnp.asarray(pixels, jnp.float32)
    x = jax.image.resize(x, (height, width, 3), "cubic")
    top, left = (height - _SIDE) // 2, (width - _SIDE) // 2
    x = np.asarray(x)[top : top + _SIDE, left : left + _SIDE]
    levels = np.clip(np.round(x), 0, 255)
    return levels.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1.0)
