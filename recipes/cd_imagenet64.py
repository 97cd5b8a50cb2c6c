"""Multistep consistency distillation (CD): teach, distil, sample and compare.

    python recipes/cd_imagenet64.py --steps 8

Without --data-dir this is a demo on 64x64 OpenMoji emoji with a small UViT. It distils
the package's diffusion teacher into a student of --steps network evaluations (Heek et
al. 2024, Alg. 1, aDDIM teacher), and writes a picture and a table that compare the two.

The demo takes 9 minutes on two CPU cores. FD-EffLite0 to OpenMoji, 96 samples, one
seed: data 1075, teacher at 256 steps 3713 (DDIM), teacher at 8 steps 3501 (DDIM) and
3366 (aDDIM), student at 8 steps 3669. The student draws what the teacher draws in 256
steps; that this is further from OpenMoji than the teacher's paler 8 steps says that the
teacher, trained for 20 minutes on other vendors' emoji, is still poor.
"""

from _student import Config, run_student

import mcmeqx as mc


def main(config: Config):
    """Run, resume or finish the job; return the path of the table."""
    return run_student("cd", config, mc.DistillationTeacher)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
