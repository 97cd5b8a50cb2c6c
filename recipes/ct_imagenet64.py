"""Multistep consistency training (CT): the same student, taught by the data alone.

    python recipes/ct_imagenet64.py --steps 8

As in the paper the student starts from a diffusion model (--teacher), which is not
consulted again; the table compares the two. Without --data-dir this is a demo on
64x64 OpenMoji emoji with a small UViT.
"""

from _options import Config
from _student import run_student

import mcmeqx as mc


def main(config: Config):
    """Run, resume or finish the job; return the path of the table."""
    return run_student("ct", config, lambda teacher: mc.DataTeacher())


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
