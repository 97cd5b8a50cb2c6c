"""Several hosts: each runs the same program, and JAX joins them."""

import os

import jax


def connect(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join `count` processes, of which this is `index`, before JAX starts its devices.

    `coordinator` is process 0's `host:port`. On SLURM, TPU pods and under Open MPI,
    where JAX finds all three by itself, give none. A process on its own is left alone.
    On CPUs the processes talk through gloo. Raises ValueError if some of the three are
    given and some are not, or for an index that is not in [0, count).
    """
    given = (coordinator, count, index)
    if all(value is None for value in given) and not _found():
        return
    if any(value is None for value in given) and any(v is not None for v in given):
        raise ValueError(
            f"give coordinator, count and index together or none of them, got {given}"
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"index is a process in [0, {count}), got {index}")
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, count, index)


def _found() -> bool:
    """Whether a launcher has started more than one process of this program.

    On a TPU VM that names no hosts JAX itself asks the cloud how many there are.
    """
    counts = (os.environ.get(name, "1") for name in _COUNTS)
    several = any(count.isdigit() and int(count) > 1 for count in counts)
    hosts = next((os.environ[name] for name in _HOSTS if name in os.environ), None)
    if hosts is not None:
        return several or "," in hosts
    on_tpu = "TPU_ML_PLATFORM" in os.environ and "TPU_SKIP_MDS_QUERY" not in os.environ
    return several or on_tpu


_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
