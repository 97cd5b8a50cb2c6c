"""Multistep consistency training (CT): the same student, taught by the data alone.

    python recipes/ct_imagenet64.py --steps 8

As in the paper the student starts from a diffusion model (--teacher), which is not
consulted again; the table compares the two. Without --data-dir this is a demo on
64x64 OpenMoji emoji with a small UViT.
"""

from dataclasses import dataclass
from typing import Literal

from _options import Config as StudentConfig
from _student import run_student

import mcmeqx as mc


@dataclass(frozen=True)
class Config(StudentConfig):
    """Options of consistency training."""

    order: Literal[1, 2] = 1
    """Of the targets, whose error is a step's length to the power of order + 1: the
    paper's 1, or 2 by one more call of the student."""


def main(config: Config):
    """Run, resume or finish the job; return the path of the table."""
    named = () if config.order == 1 else (f"order_{config.order}",)
    return run_student(
        "ct",
        config,
        lambda teacher: mc.DataTeacher(),
        named=named,
        order=config.order,
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
