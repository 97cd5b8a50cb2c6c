"""The model that comes with the package: a small diffusion teacher of 64x64 emoji.

`weights/README.md` says how it was made, from which data and under which licences.
"""

from pathlib import Path

from mcmeqx._denoiser import Denoiser
from mcmeqx._model_file import read_model

EMOJI_TEACHER = Path(__file__).parent / "weights" / "emoji_teacher.eqx"


def emoji_teacher() -> Denoiser:
    """The teacher: images (3, 64, 64) in [-1, 1], label as in `data.openmoji`."""
    return read_model(EMOJI_TEACHER)
