"""Train the diffusion teacher: v-prediction, cosine schedule, EMA.

    python recipes/teacher_imagenet64.py --out runs/teacher

Without --data-dir it trains the demo's small UViT on emoji. The result,
`<out>/teacher.eqx`, is what `cd_imagenet64.py --teacher` and `ct_imagenet64.py
--teacher` take.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from _runs import claim
from _stages import load, new_denoiser, train

import mcmeqx as mc


@dataclass(frozen=True)
class Config:
    """Options of teacher training."""

    data_dir: Path | None = None
    """Folder of ImageNet 64x64; without it the demo's emoji are used."""
    emoji64_dir: Path | None = None
    """Folder of the npm tarballs @iconify-json/{noto,twemoji,fluent-emoji,
    fluent-emoji-flat,emojione}: train the demo network on these five vendors' emoji."""
    out: Path = Path("runs/teacher")
    """Run folder; the same command resumes it, another run's is refused."""
    iterations: int | None = None
    """Training steps; None takes the preset's."""
    batch_size: int | None = None
    """Images per step; None takes the preset's."""
    learning_rate: float | None = None
    """Peak of Adam's learning rate; None takes the preset's."""
    ema_decay: float | None = None
    """Decay of the weight average; None takes the preset's."""
    seed: int = 0
    """Seed of weights, data order and noise."""


def main(config: Config) -> Path:
    """Train, or resume, and return the model file."""
    preset, images = load(config.data_dir, config.emoji64_dir)
    run = claim(config.out, config)
    train(
        "teacher",
        run,
        mc.DiffusionLoss(),
        new_denoiser(preset, config.seed),
        images,
        iterations=config.iterations or preset.teacher_iterations,
        batch_size=config.batch_size or preset.batch_size,
        learning_rate=config.learning_rate or preset.teacher_learning_rate,
        ema_decay=preset.ema_decay if config.ema_decay is None else config.ema_decay,
        seed=config.seed,
    )
    print(f"teacher: {run / 'teacher.eqx'}")
    return run / "teacher.eqx"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
