"""Emoji by the package's models, from one noise: a picture, in under a minute.

    python recipes/samples.py --out emoji.png

The teacher in 256 steps of DDIM and in 8, and its consistency student in 8.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _machine import keep_programs
from _pictures import check_new, draw, from_one_noise
from _runs import at_least

import mcmeqx as mc


@dataclass(frozen=True)
class Config:
    """What to draw."""

    out: Path = Path("emoji.png")
    """The picture; a file that is there already is refused."""
    columns: int = 9
    """Samples of each model, their classes in turn."""
    seed: int = 0
    """Seed of the noise."""


def main(config: Config) -> Path:
    """Sample, draw, and return the picture's path."""
    at_least(1, columns=config.columns)
    at_least(0, seed=config.seed)
    check_new(config.out)
    keep_programs()
    teacher, student = mc.emoji_teacher(), mc.emoji_student()
    rng = np.random.default_rng(config.seed)
    noise = rng.standard_normal((config.columns, 3, 64, 64), np.float32)
    labels = np.arange(config.columns, dtype=np.int32) % 9
    models = {
        "teacher, 256 steps": (teacher, 256),
        "teacher, 8 steps": (teacher, 8),
        "student, 8 steps": (student, 8),
    }
    rows = from_one_noise(models, noise, labels, seed=config.seed)
    draw(rows, config.out, "one noise and class down each column")
    print(f"picture: {config.out}")
    return config.out


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
