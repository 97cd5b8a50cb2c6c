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
    """The tree with each of its arrays whole on every device of the mesh."""
    return eqx.filter_shard(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(batch: Tree, mesh: Mesh) -> Tree:
    """The batch with its leading axis split evenly over the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """ValueError unless `batch_size` splits evenly over the mesh."""
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size {batch_size} does not split over {mesh.size} devices; use a "
            f"multiple of {mesh.size}"
        )
