"""Multistep consistency distillation (CD): teach, distil, sample and compare.

    python recipes/cd_imagenet64.py --steps 8

Without --data-dir this is a demo on 64x64 OpenMoji emoji with a small UViT. It trains a
diffusion teacher, distils it into a student of --steps network evaluations (Heek et al.
2024, Alg. 1, aDDIM teacher), and writes a picture and a table that compare the two.
"""

import tyro
from _student import Config, run_student

import mcmeqx as mc


def main(config: Config):
    """Run, resume or finish the job; return the path of the table."""
    return run_student("cd", config, mc.DistillationTeacher)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
