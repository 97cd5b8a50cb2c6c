"""One mesh of axes `data` and `fsdp`, and the one rule that places arrays on it.

A batch is split over both axes. Every other array, be it of parameters, of their
average, of the optimiser or of a teacher, is split over `fsdp` along its longest axis
that divides evenly, and is whole on each row of `data`; short arrays are whole
everywhere. XLA gathers a layer's weights where they are used (Xu et al. 2021, GSPMD),
since layers hold what they compute to the rows of the batch (`keep_row`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

_AXES = ("data", "fsdp")
_ROWS = PartitionSpec(_AXES)
_SHORT = 4096


def make_mesh(
    data: int | None = None,
    fsdp: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of `data` times `fsdp` devices, by default all of them on `data`.

    Devices follow one another process by process, so that the rows of a batch that a
    process holds are its own contiguous share. `devices` are JAX's, or those of a
    topology to compile for. Raises ValueError if there are not so many devices, or if
    processes would be left without a device.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    count = len(devices)
    if fsdp < 1 or count % fsdp or (data is not None and data < 1):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp} does not fit {count} devices; both are 1 "
            f"or more, and fsdp divides {count}"
        )
    data = count // fsdp if data is None else data
    wanted = data * fsdp
    if wanted > count or (jax.process_count() > 1 and wanted < count):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp} asks for {wanted} devices, there are "
            f"{count}; leave data out to use them all"
        )
    grid = np.asarray(devices[:wanted]).reshape(data, fsdp)
    return Mesh(grid, _AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def _spec(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where an array that is no batch lies: the rule."""
    size = mesh.shape["fsdp"]
    even = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not even or math.prod(shape) < _SHORT:
        return PartitionSpec()
    longest = max(even, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * longest, "fsdp")


def is_placed(leaf: Any) -> bool:
    """Whether it has a place on devices: a JAX array, or the shape of one."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array, or array's shape, in the tree; None elsewhere."""

    def one(leaf: Any) -> NamedSharding | None:
        if is_placed(leaf):
            return NamedSharding(mesh, _spec(leaf.shape, mesh))
        return None

    return jax.tree.map(one, tree)


def place(tree: Tree, mesh: Mesh, *, copy: bool = True) -> Tree:
    """A copy of the tree with its arrays where the rule wants them.

    The arrays may lie on other devices, as a restored checkpoint's do. Where there are
    several processes each must hold the same values. Without `copy` an array that is
    where it should be may stay the same one.
    """
    arrays, static = eqx.partition(tree, eqx.is_array)
    where = shardings(arrays, mesh)
    move = _moved if jax.process_count() == 1 else _shared
    placed = jax.tree.map(lambda a, to: move(a, to, copy), arrays, where)
    return eqx.combine(placed, static)


def _moved(array: jax.Array, to: NamedSharding, copy: bool) -> jax.Array:
    # From one device to several, JAX keeps the buffer as that device's all the same.
    own = jnp.copy(array) if copy and array.sharding != to else array
    return jax.device_put(own, to, may_alias=not copy)


def _shared(array: jax.Array, to: NamedSharding, copy: bool) -> jax.Array:
    return array if not copy and array.sharding == to else _share(array, to)


def place_shapes(tree: Tree, mesh: Mesh) -> Tree:
    """A tree of shapes with the places that `place` would give its arrays."""

    def one(leaf: Any, where: NamedSharding | None) -> Any:
        if where is None:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, tree, shardings(tree, mesh), is_leaf=lambda a: a is None)


def _share(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """A copy of an array that every process has, or shares already, so placed."""
    if not array.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(array)
    if is_key(array):
        return as_key(_share(jax.random.key_data(array), sharding), array)
    host = np.array(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda at: host[at])


def is_key(array: Any) -> bool:
    """Whether an array holds keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def as_key(bits: jax.Array, like: jax.Array) -> jax.Array:
    """The keys of `key_data`, of the kind of `like`."""
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like))


def keep_placed(tree: Tree) -> Tree:
    """Within jit: the same values, held to the rule on the mesh of the context."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def one(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, _spec(leaf.shape, mesh))

    return jax.tree.map(one, tree)


def _weights_are_split() -> bool:
    return jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap` over the rows of a batch, within which `keep_row` holds."""
    axes = _AXES if _weights_are_split() else None
    return jax.vmap(function, spmd_axis_name=axes)


def keep_row(x: Array) -> Array:
    """Within `over_rows`: the same values, split over devices by rows alone.

    What belongs to a row stays whole where the row is, its gradient too, and what all
    rows share, as a weight, is whole everywhere. Left to itself XLA splits much of what
    a layer computes as its weights are split, and sends activations between devices.
    """
    if not _weights_are_split():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def split_batch(batch: Tree, mesh: Mesh) -> Tree:
    """The batch, of which each process gives its own rows, split over the mesh."""
    sharding = NamedSharding(mesh, _ROWS)
    # What the caller fills anew must not change a batch that is on its way: devices
    # read NumPy's arrays when they get to them, and a CPU may keep one as its own.
    batch = jax.tree.map(lambda a: a if isinstance(a, Array) else np.array(a), batch)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def one(rows: Any) -> Any:
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows))

    return jax.tree.map(one, batch)


@eqx.filter_jit
def _gather(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda a: jax.lax.with_sharding_constraint(a, PartitionSpec()), tree
    )


def gathered(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of the tree, whole and on this process's first device alone.

    All processes must call it, for each gives the shards that it holds.
    """
    arrays, static = eqx.partition(tree, eqx.is_array)
    with jax.set_mesh(mesh):
        whole = _gather(arrays)
    own = jax.tree.map(lambda a: a.addressable_data(0), whole)
    return eqx.combine(jax.tree.map(jnp.array, own), static)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """ValueError unless `batch_size` splits into `accumulate` parts over the mesh."""
    devices = mesh.size
    parts = devices * accumulate
    for name, value in {"batch_size": batch_size, "accumulate": accumulate}.items():
        if value < 1:
            raise ValueError(f"{name} is 1 or more, got {value}")
    if batch_size % parts:
        raise ValueError(
            f"batch_size {batch_size} does not split over {devices} devices in "
            f"{accumulate} part(s) each; use a multiple of {parts}"
        )
