"""Images a second of training steps and samplers, and how near they come to the limit.

    python benchmarks/throughput.py --networks demo64 unet32 --batch-sizes 8 32
    python benchmarks/throughput.py --networks imagenet64_small --compile-only

One row of `<out>` for each network, job, batch size and precision, as it is measured,
on one device of whatever kind there is. Compilation and one round are left out; a time
is the median of `rounds` rounds, each of calls that are waited for, and `spread` how
far apart the slowest and the fastest lie, over it.

Peak memory is XLA's plan for the program. Operations are those of products and
convolutions as it is traced, loops as often as they run (`mcmeqx.count_flops`). What
`peak_flops`, `utilisation`, the limits in ms and `binds` are stands in `_roofline.py`.
"""

import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from _device import cores, named
from _recipes import at_least
from _roofline import Limits, bandwidth, traffic_bytes
from _rounds import median_and_spread
from _tables import appended
from _work import TRAINING, Job, build, check_precision, config_of

import mcmeqx as mc

JOBS = (*TRAINING, "sample1", "sample2", "sample4", "sample8")
COLUMNS: tuple[str, ...] = (
    "device",
    "cores",
    "jax",
    "network",
    "job",
    "batch_size",
    "precision",
    "images_a_second",
    "milliseconds",
    "spread",
    "peak_memory_bytes",
    "compile_seconds",
    "flops_an_image",
    "peak_flops",
    "utilisation",
    "arithmetic_ms",
    "traffic_ms",
    "binds",
)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    networks: tuple[str, ...] = ("demo64", "unet32")
    """Presets of `mcmeqx.nets`; trunk64 or trunk64_remat, eight transformer blocks."""
    jobs: tuple[str, ...] = JOBS
    """Training steps of teacher, cd and ct; sampling by DDIM in so many steps."""
    batch_sizes: tuple[int, ...] = (8, 32)
    """Images a step, or a call of the sampler."""
    precisions: tuple[str, ...] = ("float32",)
    """What the network computes in: float32, bfloat16 or float16."""
    rounds: int = 5
    """Timed rounds of each row."""
    compile_only: bool = False
    """Compile for shapes; allocate and run nothing."""
    out: Path = Path("benchmarks/throughput.csv")
    """The table, to which rows are added."""


def seconds(job: Job, rounds: int) -> list[float]:
    """Of a call, round by round; a round takes half a second or one call."""
    jax.block_until_ready(job.run())
    calls, found = 1, []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        for _ in range(calls):
            last = job.run()
        jax.block_until_ready(last)
        found.append((time.perf_counter() - begun) / calls)
        calls = max(1, round(0.5 / found[0]))
    return found[1:]


def row(
    network: str, name: str, batch_size: int, precision: str, config: Config
) -> dict[str, Any]:
    """One row of the table."""
    what = config_of(network)
    job = build(what, name, batch_size, precision, real=not config.compile_only)
    columns: dict[str, Any] = {
        "device": named(jax.devices()[0].device_kind),
        "cores": cores(),
        "jax": jax.__version__,
        "network": network,
        "job": name,
        "batch_size": batch_size,
        "precision": precision,
        "peak_memory_bytes": job.memory(),
        "compile_seconds": job.compile_seconds,
        "flops_an_image": job.flops / batch_size,
    }
    if config.compile_only:
        return columns
    found = seconds(job, config.rounds)
    median, spread = median_and_spread(found)
    # Beside the job itself, so that what slows one slows the other.
    limits = Limits(mc.matmul_peak(jnp.dtype(precision)), bandwidth())
    traffic = traffic_bytes(job, what, name, batch_size, precision)
    columns |= {
        "images_a_second": batch_size / median,
        "milliseconds": 1e3 * median,
        "spread": spread,
    }
    return columns | limits.of(job, traffic, median)


def main(config: Config) -> None:
    """Measure, and add each row as it is there."""
    for name in config.jobs:
        if name not in TRAINING and not re.fullmatch(r"sample[1-9]\d*", name):
            jobs = ", ".join(TRAINING)
            raise ValueError(f"jobs are {jobs} and sample<steps>, got {name}")
    at_least(1, rounds=config.rounds)
    at_least(1, **{f"batch_sizes[{i}]": n for i, n in enumerate(config.batch_sizes)})
    for network in config.networks:
        config_of(network)
    for precision in config.precisions:
        check_precision(precision)
    with appended(config.out, COLUMNS) as table:
        for network, name, batch_size, precision in itertools.product(
            config.networks, config.jobs, config.batch_sizes, config.precisions
        ):
            found = row(network, name, batch_size, precision, config)
            table.writerow({k: _short(v) for k, v in found.items()})
            print(", ".join(f"{k} {_short(v)}" for k, v in found.items()), flush=True)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
