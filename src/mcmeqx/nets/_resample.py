"""Maps of fewer or more pixels: no parameters, channels last."""

import jax.numpy as jnp

from mcmeqx.nets._layers import Map, NewMap


def fold(x: Map, side: int) -> NewMap:
    """Blocks of `side` x `side` pixels made channels of one pixel."""
    height, width, channel = x.shape
    x = x.reshape(height // side, side, width // side, side, channel)
    return x.transpose(0, 2, 1, 3, 4).reshape(height // side, width // side, -1)


def unfold(x: Map, side: int) -> NewMap:
    """The inverse of `fold`."""
    height, width, channel = x.shape
    x = x.reshape(height, width, side, side, channel // side**2).transpose(
        0, 2, 1, 3, 4
    )
    return x.reshape(height * side, width * side, -1)


def pool(x: Map) -> NewMap:
    """The mean of each 2x2 block."""
    height, width, channel = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channel).mean((1, 3))


def upsample(x: Map) -> NewMap:
    """Each pixel made a 2x2 block of itself."""
    return jnp.repeat(jnp.repeat(x, 2, 0), 2, 1)
