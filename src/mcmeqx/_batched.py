"""A function of many rows, batch by batch over all devices of this process."""

import operator
from collections import deque
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

# How many batches may be under way: one on the devices while another is copied.
_AHEAD = 2


def batched(
    function: Callable[[Any, Any], jax.Array],
    constants: Any,
    rows: Any,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    describe: str | None = None,
) -> np.ndarray:
    """`function(constants, rows)` of all rows, (n, ...), on the host.

    `function` is jitted; `rows` is a PyTree of arrays (n, ...) and `constants` one of
    anything. Each batch of rows is split over the devices of `mesh`, by default all of
    this process, and the arrays of `constants` are whole on each; `batch_size` is
    rounded up to a multiple of the devices. The last batch is filled up, so that one
    executable serves all, and a batch's results are fetched while the next is computed.
    `describe` names a progress bar.
    """
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",)) if mesh is None else mesh
    batch_size = -(-batch_size // mesh.size) * mesh.size
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    arrays, static = eqx.partition(constants, eqx.is_array)
    everywhere = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
    constants = eqx.combine(everywhere, static)
    count = len(jax.tree.leaves(rows)[0])
    out, under_way = [], deque()
    starts = range(0, count, batch_size)
    for start in tqdm(starts, desc=describe, disable=describe is None, leave=False):
        chosen = np.minimum(np.arange(start, start + batch_size), count - 1)
        batch = jax.tree.map(operator.itemgetter(chosen), rows)
        with jax.set_mesh(mesh):
            result = function(constants, jax.device_put(batch, split))
        result.copy_to_host_async()
        under_way.append(result)
        if len(under_way) == _AHEAD:
            out.append(np.asarray(under_way.popleft()))
    out += map(np.asarray, under_way)
    return np.concatenate(out)[:count]
