"""Blocks of the Inception network of FID: branches side by side, and a pooled one.

Layers are named as in the PyTorch re-issue of the weights. Where TensorFlow's network
differs from others of its name it is followed: average pools leave the padding out of
the mean, and the last block takes a maximum where the one before averages. Batch norms
are folded into the convolutions.
"""

from collections.abc import Callable, Mapping
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcmeqx.metrics._network import Maps, NewMaps
from mcmeqx.metrics._torch_file import folded

Tensors = Mapping[str, np.ndarray]


class Convolution(eqx.Module):
    """A convolution with its batch norm folded in, and ReLU."""

    weight: Float[Array, "kernel_height kernel_width channel new_channel"]
    bias: Float[Array, " new_channel"]
    stride: int = eqx.field(static=True)
    padded: bool = eqx.field(static=True)
    """Whether a stride of 1 keeps the size."""

    def __call__(self, x: Maps) -> NewMaps:
        height, width = self.weight.shape[:2]
        rows, columns = (k // 2 if self.padded else 0 for k in (height, width))
        if height == width == self.stride == 1:
            y = x @ self.weight[0, 0]
        else:
            y = jax.lax.conv_general_dilated(
                x,
                self.weight,
                (self.stride, self.stride),
                ((rows, rows), (columns, columns)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return jax.nn.relu(y + self.bias)


def convolution(
    tensors: Tensors, name: str, *, stride: int = 1, padded: bool = True
) -> Convolution:
    """The convolution `name`; KeyError that names what `tensors` lack."""
    weight, bias = map(jnp.asarray, folded(tensors, f"{name}.conv", f"{name}.bn"))
    return Convolution(weight, bias, stride, padded)


def max_pool(x: Maps, stride: int, padding: int = 0) -> NewMaps:
    """The maximum of 3 x 3."""
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    lowest = np.asarray(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, window, strides, sides)


def average_pool(x: Maps) -> Maps:
    """The mean of 3 x 3, at the edges of as many as there are."""
    sums = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
    sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:]
    rows, columns = (
        np.convolve(np.ones(n), np.ones(3), mode="same") for n in x.shape[1:3]
    )
    counts = np.outer(rows, columns)[:, :, None]
    return sums / jnp.asarray(counts, x.dtype)


_max_pool_of_one_size = partial(max_pool, stride=1, padding=1)
_halving = partial(max_pool, stride=2)


class Mixed(eqx.Module):
    """Branches of layers, and one behind a pool, next to each other.

    A layer is one convolution, or two of one input whose outputs are joined.
    """

    branches: tuple[tuple[tuple[Convolution, ...], ...], ...]
    pooled: tuple[tuple[Convolution, ...], ...]
    pool: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Maps) -> NewMaps:
        outputs = [_through(branch, x) for branch in self.branches]
        outputs.append(_through(self.pooled, self.pool(x)))
        return jnp.concatenate(outputs, -1)


def _through(branch: tuple[tuple[Convolution, ...], ...], x: Array) -> Array:
    for layer in branch:
        x = jnp.concatenate([convolve(x) for convolve in layer], -1)
    return x


_A = ("branch1x1", "branch5x5_1 branch5x5_2")
_A += ("branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",)
_B = ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")
_C = ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3")
_C += (" ".join(f"branch7x7dbl_{i}" for i in range(1, 6)),)
_D = ("branch3x3_1 branch3x3_2", " ".join(f"branch7x7x3_{i}" for i in range(1, 5)))
_E = ("branch1x1", "branch3x3_1 branch3x3_2a+branch3x3_2b")
_E += ("branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a+branch3x3dbl_3b",)
# Name, branches, and the pool.
_BLOCKS = (
    *((f"Mixed_5{letter}", _A, average_pool) for letter in "bcd"),
    ("Mixed_6a", _B, _halving),
    *((f"Mixed_6{letter}", _C, average_pool) for letter in "bcde"),
    ("Mixed_7a", _D, _halving),
    ("Mixed_7b", _E, average_pool),
    ("Mixed_7c", _E, _max_pool_of_one_size),
)


def mixed_blocks(tensors: Tensors) -> tuple[Mixed, ...]:
    """The eleven blocks in order; KeyError that names what `tensors` lack."""
    return tuple(_mixed(tensors, *block) for block in _BLOCKS)


def _mixed(tensors: Tensors, name: str, branches, pool) -> Mixed:
    # A block that halves does so in the last layer of each branch, without padding.
    halves = pool is _halving

    def layer(names: str, last: bool) -> tuple[Convolution, ...]:
        halving = halves and last
        return tuple(
            convolution(
                tensors,
                f"{name}.{own}",
                stride=2 if halving else 1,
                padded=not halving,
            )
            for own in names.split("+")
        )

    def branch(text: str) -> tuple[tuple[Convolution, ...], ...]:
        *first, last = text.split()
        return (*(layer(names, False) for names in first), layer(last, True))

    pooled = () if halves else branch("branch_pool")
    return Mixed(tuple(map(branch, branches)), pooled, pool)
