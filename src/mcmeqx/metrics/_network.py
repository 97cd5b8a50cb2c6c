"""Feature networks, and the features of many images by one of them."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mcmeqx._batched import batched

Maps = Float[Array, "batch height width channel"]
NewMaps = Float[Array, "batch new_height new_width new_channel"]


class AbstractFeatureNetwork(eqx.Module):
    """What images are compared by: from images to a fixed number of features each."""

    name: eqx.AbstractVar[str]
    """What results say of it, with the number of features."""
    resize: eqx.AbstractVar[str]
    """How it brings images to its size, for results to say."""

    @property
    @abc.abstractmethod
    def dims(self) -> int:
        """Number of features of an image."""

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """Number of `logits`; 0 where the network has no classifier."""

    @abc.abstractmethod
    def __call__(
        self, images: Float[Array, "batch channel height width"]
    ) -> Float[Array, "batch feature"]:
        """Features, float32, of images in [-1, 1] of one channel or three."""

    @abc.abstractmethod
    def logits(
        self, features: Float[Array, "batch feature"]
    ) -> Float[Array, "batch classes"]:
        """Class scores from features, for the Inception Score.

        Raises ValueError where the network has no classifier.
        """


@eqx.filter_jit
def _apply(network, images):
    # Accelerators round the inputs of products by default, and features with them.
    with jax.default_matmul_precision("highest"):
        return network(images.astype(jnp.float32))


def features(
    network: AbstractFeatureNetwork,
    images: np.ndarray,
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Features (n, d), float32, of images (n, channel, height, width) in [-1, 1].

    Each batch is split over the devices of `mesh`, by default all of this process;
    `batch_size` is rounded up to a multiple of their number. One executable serves all
    batches, and a batch's features are fetched while the next is computed. Raises
    ValueError for another rank, for values outside [-1, 1], for no images and for a
    batch size below 1.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"images have shape {images.shape}, expected (n, channel, height, width)"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is 1 or more, got {batch_size}")
    low, high = float(np.min(images)), float(np.max(images))
    if not (low >= -1.0 and high <= 1.0):
        raise ValueError(
            f"images lie in [{low}, {high}], expected [-1, 1]: clip samples that go a "
            "little beyond, and scale bytes by x / 127.5 - 1"
        )
    return batched(_apply, network, images, batch_size=batch_size, mesh=mesh)
