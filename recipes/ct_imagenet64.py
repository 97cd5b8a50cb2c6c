"""Multistep consistency training (CT): the same student, taught by the data alone.

    python recipes/ct_imagenet64.py --steps 8

As in the paper the student starts from a diffusion model (--teacher), which is not
consulted again; the table compares the two. Without --data-dir this is a demo on
64x64 OpenMoji emoji with a small UViT.
"""

from dataclasses import dataclass, replace
from typing import Literal

from _options import Config as StudentConfig
from _student import run_student

import mcmeqx as mc


@dataclass(frozen=True)
class Config(StudentConfig):
    """Options of consistency training."""

    order: Literal[1, 2] | None = None
    """Of the targets' error in the length of a step: the paper's 1; or 2, by one more
    call of the student, two steps back. None is 2 in the demo and 1 on ImageNet."""


def main(config: Config):
    """Run, resume or finish the job; return the path of the table."""
    usual = 2 if config.data_dir is None else 1
    order = config.order or usual
    named = () if order == usual else (f"order_{order}",)
    return run_student(
        "ct",
        replace(config, order=order),
        lambda teacher: mc.DataTeacher(),
        named=named,
        order=order,
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
