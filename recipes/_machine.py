"""How a run uses the machine: its devices, its hosts, its memory. Results stay equal.

Nothing here is part of what a run is: a run may go on with other values of these.
"""

import contextlib
import math
import os
import signal
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh as DeviceMesh

import mcmeqx as mc


@dataclass(frozen=True)
class Mesh:
    """How the devices are arranged."""

    data: int | None = None
    """Devices over which a batch is split; None is all that fsdp leaves."""
    fsdp: int = 1
    """Devices over which parameters, their average and the optimiser's state are split
    too: for models that do not fit one device."""


@dataclass(frozen=True)
class Hosts:
    """Several processes; SLURM and TPU pods need none of this."""

    coordinator: str | None = None
    """host:port of process 0, the same for all."""
    count: int | None = None
    """Number of processes."""
    index: int | None = None
    """Which of them this is, from 0."""


@dataclass(frozen=True)
class Memory:
    """What to do where a step does not fit; it stays the same step."""

    accumulate: int = 1
    """Parts of a batch that follow one another."""
    remat: bool = False
    """Compute activations again in the backward pass."""


MACHINE = ("mesh", "hosts", "memory")
"""Fields of a recipe's options that a run may go on with other values of."""


def start(
    mesh: Mesh, hosts: Hosts, *, batch_size: int = 1, accumulate: int = 1
) -> DeviceMesh:
    """Join the other processes, keep compiled programs on disk, and give the mesh.

    A CPU becomes a device for each core, or for as many as share a batch evenly.
    """
    mc.connect(hosts.coordinator, hosts.count, hosts.index)
    _split_cpu(batch_size // max(accumulate, 1))
    keep_programs()
    return mc.make_mesh(mesh.data, mesh.fsdp)


def keep_programs() -> None:
    """Keep compiled programs on disk, in the cache unless the user names a place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = mc.data.cache_folder() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _split_cpu(rows: int) -> None:
    """A device for each core: they wait for each other less than a device's threads.

    Not against the user's own choice, among several processes, or once JAX computes.
    """
    chosen = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    chosen = chosen or "JAX_NUM_CPU_DEVICES" in os.environ
    if chosen or jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", math.gcd(rows, os.cpu_count() or 1))


def first() -> bool:
    """Whether this process writes the files and talks to the user."""
    return jax.process_index() == 0


def part() -> None:
    """Leave the other processes: from here on each works, or ends, on its own."""
    if jax.process_count() > 1:
        meet("part")
        jax.distributed.shutdown()
        # JAX watched for it, and leaves nobody to answer.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def by_first(value: bool) -> bool:
    """What the first process gives, for all: each must ask."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def meet(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
