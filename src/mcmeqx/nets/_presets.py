"""The UViTs of the paper (Heek et al. 2024, app. A.2), the demo's, and a U-Net."""

from typing import Any

import equinox as eqx
import jax

from mcmeqx._sharding import is_placed
from mcmeqx.nets._network import network_shapes
from mcmeqx.nets._unet import UNetConfig
from mcmeqx.nets._uvit import UViTConfig
from mcmeqx.nets._uvit_stages import Stage

imagenet64_small = UViTConfig(
    64,
    (
        Stage("resnet", 256, 3),
        Stage("transformer", 512, 3),
        Stage("transformer", 1024, 16, dropout=0.2),
    ),
    classes=1000,
)
imagenet64_large = UViTConfig(
    64,
    (
        Stage("resnet", 512, 3),
        Stage("transformer", 1024, 3, dropout=0.1),
        Stage("transformer", 2048, 16, dropout=0.1),
    ),
    classes=1000,
)
imagenet128_small = UViTConfig(
    128,
    (
        Stage("resnet", 128, 3),
        Stage("resnet", 256, 3),
        Stage("transformer", 512, 3),
        Stage("transformer", 1024, 16, dropout=0.1),
    ),
    classes=1000,
)
imagenet128_large = UViTConfig(
    128,
    (
        Stage("resnet", 256, 3),
        Stage("resnet", 512, 3, dropout=0.1),
        Stage("transformer", 1024, 3, dropout=0.1),
        Stage("transformer", 2048, 16, dropout=0.1),
    ),
    classes=1000,
)
demo64 = UViTConfig(
    64,
    (
        Stage("resnet", 16, 1),
        Stage("resnet", 32, 1),
        Stage("resnet", 64, 1),
        Stage("transformer", 128, 4),
    ),
    classes=9,
    null_class=True,
    embedding=128,
    group_width=4,
)
unet32 = UNetConfig(32)


def count_parameters(config: Any) -> int:
    """Parameters of the network that `config` builds; allocates nothing."""
    arrays = eqx.filter(network_shapes(config), is_placed)
    return sum(a.size for a in jax.tree.leaves(arrays))
