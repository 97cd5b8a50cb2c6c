"""One mesh over all devices: batches are split over it, everything else is copied."""

from typing import TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def data_mesh() -> Mesh:
    """A one-axis mesh, `data`, over every device."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of the tree with each of its arrays whole on every device of the mesh.

    The arrays may lie on other devices, as a restored checkpoint's do.
    """
    arrays, static = eqx.partition(tree, eqx.is_array)
    whole = NamedSharding(mesh, PartitionSpec())
    return eqx.combine(jax.device_put(arrays, whole, may_alias=False), static)


def split_batch(batch: Tree, mesh: Mesh) -> Tree:
    """The batch with its leading axis split evenly over the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def check_batch_size(batch_size: int) -> None:
    """ValueError unless `batch_size` splits evenly over every device."""
    devices = data_mesh().size
    if batch_size < 1:
        raise ValueError(f"batch_size is 1 or more, got {batch_size}")
    if batch_size % devices:
        raise ValueError(
            f"batch_size {batch_size} does not split over {devices} devices; use a "
            f"multiple of {devices}"
        )
