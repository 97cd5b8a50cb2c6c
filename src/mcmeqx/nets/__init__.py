"""Networks, and the configurations that build them."""

from mcmeqx.nets._mlp import MLP as MLP
from mcmeqx.nets._mlp import MLPConfig as MLPConfig
from mcmeqx.nets._network import AbstractNetwork as AbstractNetwork
from mcmeqx.nets._network import noise_level_features as noise_level_features
from mcmeqx.nets._presets import count_parameters as count_parameters
from mcmeqx.nets._presets import demo64 as demo64
from mcmeqx.nets._presets import imagenet64_large as imagenet64_large
from mcmeqx.nets._presets import imagenet64_small as imagenet64_small
from mcmeqx.nets._presets import imagenet128_large as imagenet128_large
from mcmeqx.nets._presets import imagenet128_small as imagenet128_small
from mcmeqx.nets._presets import unet32 as unet32
from mcmeqx.nets._unet import UNet as UNet
from mcmeqx.nets._unet import UNetConfig as UNetConfig
from mcmeqx.nets._uvit import UViT as UViT
from mcmeqx.nets._uvit import UViTConfig as UViTConfig
from mcmeqx.nets._uvit_stages import Stage as Stage
