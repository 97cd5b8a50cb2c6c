"""Labelled image sets, and the loader that draws batches from them."""

from mcmeqx.data._cache import cache_folder as cache_folder
from mcmeqx.data._cifar10 import cifar10 as cifar10
from mcmeqx.data._emoji64 import emoji64 as emoji64
from mcmeqx.data._fashion_mnist import fashion_mnist as fashion_mnist
from mcmeqx.data._imagenet import imagenet as imagenet
from mcmeqx.data._imagenet import imagenet64 as imagenet64
from mcmeqx.data._imagenet_batches import ImageNetBatches as ImageNetBatches
from mcmeqx.data._images import Images as Images
from mcmeqx.data._loader import batches as batches
from mcmeqx.data._npz_images import npz_images as npz_images
from mcmeqx.data._openmoji import openmoji as openmoji
from mcmeqx.data._pack import check_packed as check_packed
from mcmeqx.data._pack import packed as packed
from mcmeqx.data._pack import save_packed as save_packed
from mcmeqx.data._pictures import Pictures as Pictures
from mcmeqx.data._source import AbstractSource as AbstractSource
