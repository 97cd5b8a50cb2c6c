"""The Inception network of published Frechet distances and Inception Scores.

It is TensorFlow's of 2015-12-05 (Szegedy et al. 2015; Heusel et al. 2017), in the
PyTorch re-issue that pytorch-fid and torch-fidelity read, whose file the user has to
bring: `pt_inception-2015-12-05-6726825d.pth`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcmeqx.metrics._inception_blocks import (
    Convolution,
    Mixed,
    Tensors,
    convolution,
    max_pool,
    mixed_blocks,
)
from mcmeqx.metrics._network import AbstractFeatureNetwork, Maps, NewMaps
from mcmeqx.metrics._torch_file import read_torch_file

_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SIDE = 299
INCEPTION = "FID Inception 2015-12-05, 2048-d"
TENSORFLOW = "bilinear to 299, corners, as TensorFlow's graph"


def as_pytorch_fid(x: Maps) -> NewMaps:
    """Bilinear to 299 x 299 with half-pixel centres, clamped edges, no antialiasing."""
    shape = (x.shape[0], _SIDE, _SIDE, x.shape[3])
    return jax.image.resize(x, shape, "linear", antialias=False)


def as_tensorflow(x: Maps) -> NewMaps:
    """Bilinear to 299 x 299, pixel i from i n / 299, and (pixel - 128) / 128."""
    x = ((x + 1.0) * 127.5 - 128.0) / 128.0
    for axis in (1, 2):
        at = np.arange(_SIDE) * x.shape[axis] / _SIDE
        low = at.astype(np.int32)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = jnp.asarray(np.expand_dims(at - low, (1, 2)[: 3 - axis]), x.dtype)
        below, above = (jnp.take(x, rows, axis) for rows in (low, high))
        x = below + (above - below) * weight
    return x


_INPUTS = {
    "tensorflow": (as_tensorflow, TENSORFLOW),
    "pytorch-fid": (as_pytorch_fid, "bilinear to 299, centres, as pytorch-fid"),
}


class Inception(AbstractFeatureNetwork):
    """Features of images by FID's Inception: 2,048 numbers each.

    What stands before the network differs between programs, and so do their results:
    TensorFlow's graph is that of ADM, EDM and torch-fidelity, pytorch-fid has its own,
    and clean-fid's bicubic filter is not here.
    """

    stem: tuple[Convolution, ...]
    blocks: tuple[Mixed, ...]
    classifier: Float[Array, "feature classes"]
    prepare: Callable[[Array], Array] = eqx.field(static=True)
    name: str = eqx.field(static=True)
    resize: str = eqx.field(static=True)

    @classmethod
    def load(
        cls,
        path: Path | str,
        like: Literal["tensorflow", "pytorch-fid"],
        *,
        sha256: str = _SHA256,
    ) -> "Inception":
        """The network with the weights in `path`, checked by their hash.

        `like` says whose resizing and scaling stand before it: "tensorflow", for
        statistics of ADM and EDM, or "pytorch-fid".

        Another file than the one that published figures are on is refused unless its
        `sha256` (hexadecimal) is given, and then named in the results. Raises
        FileNotFoundError, and ValueError for another hash or for other tensors.
        """
        known = sha256 == _SHA256
        name = INCEPTION if known else f"{INCEPTION}, weights {sha256[:16]}"
        return cls.from_tensors(read_torch_file(Path(path), sha256), like, name)

    @classmethod
    def from_tensors(
        cls, tensors: Tensors, like: Literal["tensorflow", "pytorch-fid"], name: str
    ) -> "Inception":
        """The network from PyTorch's names and layouts; ValueError where one lacks."""
        try:
            stem = (
                convolution(tensors, "Conv2d_1a_3x3", stride=2, padded=False),
                convolution(tensors, "Conv2d_2a_3x3", padded=False),
                convolution(tensors, "Conv2d_2b_3x3"),
                convolution(tensors, "Conv2d_3b_1x1"),
                convolution(tensors, "Conv2d_4a_3x3", padded=False),
            )
            classifier = jnp.asarray(tensors["fc.weight"].T.copy())
            blocks = mixed_blocks(tensors)
        except KeyError as error:
            raise ValueError(f"the weights lack {error}: not FID's Inception") from None
        prepare, resize = _INPUTS[like]
        return cls(
            stem=stem,
            blocks=blocks,
            classifier=classifier,
            prepare=prepare,
            name=name,
            resize=resize,
        )

    @property
    def dims(self) -> int:
        """2,048."""
        return self.classifier.shape[0]

    @property
    def classes(self) -> int:
        """1,008, some of which nothing was ever trained to be."""
        return self.classifier.shape[1]

    def __call__(
        self, images: Float[Array, "batch channel height width"]
    ) -> Float[Array, "batch 2048"]:
        """Pooled features, float32, of images in [-1, 1] of one channel or three."""
        x = self.prepare(images.astype(jnp.float32).transpose(0, 2, 3, 1))
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        for convolve in self.stem[:3]:
            x = convolve(x)
        x = max_pool(x, 2)
        for convolve in self.stem[3:]:
            x = convolve(x)
        x = max_pool(x, 2)
        for block in self.blocks:
            x = block(x)
        return jnp.mean(x, (1, 2))

    def logits(
        self, features: Float[Array, "batch 2048"]
    ) -> Float[Array, "batch 1008"]:
        """Class scores without their bias, as published Inception Scores take them."""
        return jnp.matmul(features, self.classifier, precision="highest")
