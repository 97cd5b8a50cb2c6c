"""The Inception network of published Frechet distances and Inception Scores.

It is TensorFlow's of 2015-12-05 (Szegedy et al. 2015; Heusel et al. 2017), in the
PyTorch re-issue that pytorch-fid and torch-fidelity read, whose file the user has to
bring: `pt_inception-2015-12-05-6726825d.pth`.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcmeqx.metrics._inception_blocks import (
    Convolution,
    Mixed,
    Tensors,
    convolution,
    max_pool,
    mixed_blocks,
)
from mcmeqx.metrics._network import AbstractFeatureNetwork
from mcmeqx.metrics._torch_file import read_torch_file

_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SIDE = 299


class Inception(AbstractFeatureNetwork):
    """Features of images by FID's Inception: 2,048 numbers each.

    Images are brought to 299 x 299 by bilinear interpolation with half-pixel centres
    and no antialiasing, as pytorch-fid does; TensorFlow's own graph places its pixels
    otherwise and clean-fid interpolates by bicubic filters, so results differ by that.
    """

    stem: tuple[Convolution, ...]
    blocks: tuple[Mixed, ...]
    classifier: Float[Array, "feature classes"]
    name: str = eqx.field(static=True)

    @classmethod
    def load(cls, path: Path | str, sha256: str = _SHA256) -> "Inception":
        """The network with the weights in `path`, checked by their hash.

        Another file than the one that published figures are on is refused unless its
        `sha256` (hexadecimal) is given, and then named in the results. Raises
        FileNotFoundError, and ValueError for another hash or for other tensors.
        """
        name = "FID Inception 2015-12-05, 2048-d"
        name += "" if sha256 == _SHA256 else f", weights {sha256[:16]}"
        return cls.from_tensors(read_torch_file(Path(path), sha256), name)

    @classmethod
    def from_tensors(cls, tensors: Tensors, name: str) -> "Inception":
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
        return cls(stem=stem, blocks=blocks, classifier=classifier, name=name)

    @property
    def dims(self) -> int:
        """2,048."""
        return self.classifier.shape[0]

    @property
    def classes(self) -> int:
        """1,008, some of which nothing was ever trained to be."""
        return self.classifier.shape[1]

    @property
    def resize(self) -> str:
        """How images are brought to 299 x 299."""
        return "bilinear to 299, half-pixel centres, no antialiasing (as pytorch-fid)"

    def __call__(
        self, images: Float[Array, "batch channel height width"]
    ) -> Float[Array, "batch 2048"]:
        """Pooled features, float32, of images in [-1, 1] of one channel or three."""
        x = resized(images.astype(jnp.float32).transpose(0, 2, 3, 1))
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
        return features @ self.classifier


def resized(
    x: Float[Array, "batch height width channel"],
) -> Float[Array, "batch 299 299 channel"]:
    """FID's resize: bilinear, half-pixel centres, clamped edges, no antialiasing."""
    shape = (x.shape[0], _SIDE, _SIDE, x.shape[3])
    return jax.image.resize(x, shape, "linear", antialias=False)
