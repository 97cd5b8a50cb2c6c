"""What a device can do at best, measured, and how near a program comes to it.

`peak_flops` is that of a large matrix product in the program's precision, `utilisation`
the share of it. `binds` compares two times of a call: `arithmetic_ms`, its operations
at that peak, and `traffic_ms`, the bytes that its kernels read and write by XLA's count
at the bandwidth of a large array's update. Where caches hold what a kernel hands to the
next, traffic costs less. XLA counts a loop's body once: a sampler's bytes are the
program's times the steps, and what a block under a scan adds is told by networks with
two and three of them, unrolled, so without the copies of a loop.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from _work import TRAINING, Job, build

import mcmeqx as mc
from mcmeqx.nets._uvit_stages import UNROLLED


def bandwidth() -> float:
    """Bytes read and written a second where an array no cache can hold is updated."""
    count, best = 2**26, float("inf")
    update = jax.jit(lambda a: a + 1.0, donate_argnums=0)
    a = update(jnp.ones(count, jnp.float32))
    for _ in range(5):
        jax.block_until_ready(a)
        begun = time.perf_counter()
        a = jax.block_until_ready(update(a))
        best = min(best, time.perf_counter() - begun)
    return 8 * count / best


def traffic_bytes(
    job: Job, config: Any, name: str, batch_size: int, precision: str
) -> float | None:
    """Bytes that a call reads and writes; None for a scan whose blocks run twice.

    Compiles a network more for blocks under a scan, and one for each stage of them.
    """
    steps = 1 if name in TRAINING else int(name[6:])
    stages = config.stages if isinstance(config, mc.nets.UViTConfig) else ()
    deep = [
        i
        for i, stage in enumerate(stages)
        if stage.kind == "transformer" and stage.depth > UNROLLED
    ]
    if not deep:
        return steps * _counted(job)
    if config.remat:
        return None

    def of(depths: dict[int, int]) -> float:
        changed = tuple(
            replace(stage, depth=depths.get(i, stage.depth))
            for i, stage in enumerate(stages)
        )
        shallow = replace(config, stages=changed)
        return _counted(build(shallow, name, batch_size, precision, real=False))

    few = dict.fromkeys(deep, 2)
    base = of(few)
    more = ((stages[i].depth - 2) * (of({**few, i: 3}) - base) for i in deep)
    return steps * (base + sum(more))


def _counted(job: Job) -> float:
    return job.program.cost_analysis()["bytes accessed"]


@dataclass(frozen=True)
class Limits:
    """What the device can do, measured."""

    flops: float
    """Operations a second."""
    bandwidth: float
    """Bytes a second, read and written."""

    def of(self, job: Job, traffic: float | None, median: float) -> dict[str, Any]:
        """The columns that compare a call of `median` seconds with them."""
        columns: dict[str, Any] = {
            "peak_flops": self.flops,
            "utilisation": job.flops / median / self.flops,
            "arithmetic_ms": 1e3 * job.flops / self.flops,
        }
        if traffic is not None:
            columns["traffic_ms"] = 1e3 * traffic / self.bandwidth
            longer = columns["arithmetic_ms"] > columns["traffic_ms"]
            columns["binds"] = "arithmetic" if longer else "traffic"
        return columns
