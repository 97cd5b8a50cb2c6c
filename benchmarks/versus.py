"""The same work by this library and by what else one would pick, side by side.

    pip install "mcmeqx[versus]"
    python benchmarks/versus.py

A U-Net for 32x32 images of 5.6M parameters, float32. `cd` is a step of consistency
distillation: teacher, DDIM, target, student forward and backward, Adam and
the moving average; `sample<n>` is DDIM in n steps; `teacher` is a diffusion training
step, of this library alone. PyTorch runs Diffusers' UNet2DModel in channels last, with
fused attention and foreach Adam; Flax and Equinox stand for their plain layers.

Each contestant is a resident process, and they are asked in turn, so that whatever else
the machine does falls on all. All have the same cores, and those on JAX the same
XLA_FLAGS. Every answer is a row of `<out>` (run, XLA_FLAGS, contestant, job, round,
seconds of CPU time and of the clock), written as it comes. At the end stands the median
of CPU seconds over that of this library, in this run alone; a spread, (max - min) /
median, over 30% of either makes a figure void, and so does a parameter count that is
off by more than 1%. Two rounds are left out: one compiles, and in the next memory is
still being laid out. Contestants that are not installed are skipped.

With `--accelerator` all run on JAX's and PyTorch's default GPU, PyTorch by
`torch.compile`, float32 products may be TF32, and the clock counts. Give it a
`--batch-size` that fills the GPU, and `--cores` for what starts its kernels.
"""

import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from _recipes import at_least
from _resident import Resident
from _rounds import median_and_spread
from _tables import appended, read_rows

NEEDS = {
    "mcmeqx": ("mcmeqx",),
    "equinox": ("equinox",),
    "flax": ("flax",),
    "torch": ("torch", "diffusers"),
}
COLUMNS: tuple[str, ...] = (
    "run",
    "xla_flags",
    "device",
    "batch_size",
    "contestant",
    "version",
    "parameters",
    "job",
    "round",
    "cpu_seconds",
    "wall_seconds",
)
WIDEST_SPREAD = 0.3
WARM_UP = 2


@dataclass(frozen=True)
class Config:
    """What to compare."""

    contestants: tuple[str, ...] = tuple(NEEDS)
    """Among mcmeqx, equinox, flax, torch."""
    jobs: tuple[str, ...] = ("teacher", "cd", "sample1", "sample4")
    """Jobs; a contestant that does not have one is not asked."""
    rounds: int = 7
    """Rounds of each job after those that are left out, at least 5."""
    batch_size: int = 8
    """Images a step, or a call of the sampler."""
    cores: int = 1
    """CPU cores that every contestant may use. Threads that wait for each other burn
    CPU time, on a machine that does other work more of it."""
    accelerator: bool = False
    """Compare on a GPU, by the clock."""
    out: Path = Path("benchmarks/versus.csv")
    """The table, to which rows are added."""

    def __post_init__(self) -> None:
        """ValueError for what could not be a comparison."""
        at_least(5, rounds=self.rounds)
        at_least(1, batch_size=self.batch_size, cores=self.cores)
        unknown = set(self.contestants) - set(NEEDS)
        if unknown or "mcmeqx" not in self.contestants:
            raise ValueError(
                f"contestants are mcmeqx and others of {', '.join(NEEDS)}, got "
                f"{', '.join(self.contestants)}"
            )


def environment(config: Config) -> dict[str, str]:
    """What every contestant finds in its environment."""
    setting = {
        "OMP_NUM_THREADS": str(config.cores),
        "VERSUS_BATCH_SIZE": str(config.batch_size),
        # All live on one accelerator.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if not config.accelerator:
        setting |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return setting


def residents(config: Config) -> list[Resident]:
    """Those that are installed, started: each gets ready while others do."""
    found: list[Resident] = []
    for name in dict.fromkeys(config.contestants):
        missing = [n for n in NEEDS[name] if importlib.util.find_spec(n) is None]
        if missing:
            print(
                f"{name} is left out: {', '.join(missing)} not installed, "
                'pip install "mcmeqx[versus]"'
            )
        else:
            found.append(Resident(name, environment(config)))
    return found


def measure(config: Config, contestants: list[Resident]) -> dict[Any, list[float]]:
    """Seconds by (job, contestant); every answer becomes a row at once."""
    taken: dict[Any, list[float]] = {}
    kind = "wall" if config.accelerator else "cpu"
    run, flags = time.strftime("%Y-%m-%dT%H:%M:%S"), os.environ.get("XLA_FLAGS", "")
    with appended(config.out, COLUMNS) as table:
        for job in dict.fromkeys(config.jobs):
            able = [c for c in contestants if job in c.jobs]
            for turn in range(1 - WARM_UP, config.rounds + 1):
                for c in able:
                    found = c.ask(job)
                    if turn < 1:
                        continue
                    taken.setdefault((job, c.name), []).append(found[kind])
                    how = (run, flags, c.device, config.batch_size)
                    who = (c.name, c.version, c.parameters, job, turn)
                    spent = (f"{found['cpu']:.5f}", f"{found['wall']:.5f}")
                    row = (*how, *who, *spent)
                    table.writerow(dict(zip(COLUMNS, row, strict=True)))
            for c in able:
                print(line(job, c.name, taken), flush=True)
    return taken


def line(job: str, name: str, taken: dict[Any, list[float]]) -> str:
    """A contestant's median, spread and ratio in words."""
    (median, spread), (ours, own) = (
        median_and_spread(taken[job, n]) for n in (name, "mcmeqx")
    )
    void = "  void: spread" if max(spread, own) > WIDEST_SPREAD else ""
    return (
        f"{job:8} {name:8} {median:8.3f} s, spread {spread:4.0%}, "
        f"mcmeqx takes {ours / median:.2f} of it{void}"
    )


def main(config: Config) -> None:
    """Compare; exit 1 if networks are not of a size, or devices are not the same.

    Raises ValueError for jobs that there are not, and for more cores than there are.
    """
    read_rows(config.out, COLUMNS)
    there = sorted(os.sched_getaffinity(0))
    if config.cores > len(there):
        raise ValueError(f"cores is {len(there)} at most here, got {config.cores}")
    os.sched_setaffinity(0, there[: config.cores])
    contestants = residents(config)
    try:
        for c in contestants:
            c.meet()
        ours = next(c for c in contestants if c.name == "mcmeqx")
        unknown = set(config.jobs) - set(ours.jobs)
        if unknown:
            raise ValueError(f"jobs are {', '.join(ours.jobs)}, got {sorted(unknown)}")
        for c in contestants:
            print(f"{c.name}: {c.parameters:,} parameters, {c.version}", flush=True)
            if abs(c.parameters / ours.parameters - 1) > 0.01:
                raise SystemExit(f"void: {c.name} differs by more than 1%")
            if c.device != ours.device:
                raise SystemExit(
                    f"void: {c.name} runs on {c.device}, mcmeqx on {ours.device}: "
                    "install JAX and PyTorch for the same device"
                )
        measure(config, contestants)
    finally:
        for c in contestants:
            c.end()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
