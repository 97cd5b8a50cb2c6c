"""Train the diffusion teacher: v-prediction, cosine schedule, EMA.

    python recipes/teacher_imagenet64.py --out runs/teacher

Without --data-dir it trains the demo's small UViT on emoji, at 3 to 5 steps of 16
images a second on two CPU cores. The result, `<out>/teacher.eqx`, is what
`cd_imagenet64.py --teacher` and `ct_imagenet64.py --teacher` take; the package's own
has two million images behind it (src/mcmeqx/weights/README.md).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
from _given import file_sha256, start_from
from _machine import MACHINE, Hosts, Memory, Mesh, start
from _runs import claim, fill
from _stages import (
    computed,
    data_sha256,
    load,
    new_denoiser,
    preset_of,
    with_label_dropout,
)
from _training import Plan, train

import mcmeqx as mc


@dataclass(frozen=True)
class Config:
    """Options of teacher training."""

    data_dir: Path | None = None
    """ImageNet 64x64, a folder, zip or packed file; without it
    the demo's emoji are used."""
    emoji64_dir: Path | None = None
    """Folder of the npm tarballs @iconify-json/{noto,twemoji,fluent-emoji,
    fluent-emoji-flat,emojione}: train the demo network on these five vendors' emoji."""
    start_from: Path | None = None
    """A teacher.eqx to go on from, on these data; None starts afresh."""
    label_dropout: float | None = None
    """Share of the examples that train without their class, as guidance needs it; above
    0 the network has a null class. None is 0.1 on emoji and 0 on ImageNet."""
    out: Path = Path("runs/teacher")
    """Run folder; the same command resumes it, another run's is refused."""
    iterations: int | None = None
    """Training steps; None is 600 on emoji and 700,000 on ImageNet."""
    batch_size: int | None = None
    """Images per step; None is 16 on emoji and 2048 on ImageNet."""
    learning_rate: float | None = None
    """Peak of Adam's learning rate; None is 2e-3 on emoji and 1e-4 on ImageNet."""
    ema_decay: float | None = None
    """Decay of the weight average; None is 0.99 on emoji and 0.9999 on ImageNet."""
    precision: Literal["float32", "bfloat16"] | None = None
    """What the network computes in; parameters, times and loss are float32. None is
    float32 on emoji and bfloat16 on ImageNet."""
    seed: int = 0
    """Seed of weights, data order and noise."""
    mesh: Mesh = field(default_factory=Mesh)
    hosts: Hosts = field(default_factory=Hosts)
    memory: Memory = field(default_factory=Memory)
    replay: Path | None = None
    """Look into the capsule of a run that stopped, with the command that made it."""


def main(config: Config) -> Path:
    """Train, or resume, and return the model file."""
    mesh = start(
        config.mesh,
        config.hosts,
        batch_size=config.batch_size or preset_of(config.data_dir).batch_size,
        accumulate=config.memory.accumulate,
    )
    preset, images = load(config.data_dir, config.emoji64_dir)
    plan = fill(
        config,
        label_dropout=preset.label_dropout,
        iterations=preset.teacher_iterations,
        batch_size=preset.batch_size,
        learning_rate=preset.teacher_learning_rate,
        ema_decay=preset.ema_decay,
        precision=preset.precision,
    )
    loss = mc.DiffusionLoss(label_dropout=plan.label_dropout)
    preset = with_label_dropout(preset, plan.label_dropout)
    preset = computed(preset, plan.precision, config.memory.remat)
    training = Plan(
        plan.iterations,
        plan.batch_size,
        plan.learning_rate,
        plan.ema_decay,
        plan.seed,
        mesh,
        config.memory.accumulate,
        preset.flip,
        config.replay,
    )
    network_key, key = jax.random.split(jax.random.key(plan.seed))
    made_of = {"data_sha256": data_sha256(images), "start_sha256": None}
    if plan.start_from is None:
        model = new_denoiser(preset, network_key)
    else:
        model = start_from(plan.start_from, preset)
        made_of["start_sha256"] = file_sha256(plan.start_from)
    run = claim(plan.out, "teacher", plan, *MACHINE, "replay", **made_of)
    grid = mc.uniform_grid(32)
    train("teacher", run, loss, model, images, training, grid=grid, key=key)
    print(f"teacher: {run / 'teacher.eqx'}")
    return run / "teacher.eqx"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
