"""The models that come with the package: a teacher of 64x64 emoji and its student.

`weights/README.md` says how they were made, from which data and under which licences.
"""

from pathlib import Path

from mcmeqx._denoiser import Denoiser
from mcmeqx._model_file import read_model

_WEIGHTS = Path(__file__).parent / "weights"
EMOJI_TEACHER = _WEIGHTS / "emoji_teacher.eqx"
EMOJI_STUDENT = _WEIGHTS / "emoji_student_8.eqx"


def emoji_teacher() -> Denoiser:
    """The teacher: images (3, 64, 64), label as in `data.openmoji`.

    It learned from images with `headroom=0.1`: black and white at -1.1 and 1.1.
    """
    return read_model(EMOJI_TEACHER)


def emoji_student() -> Denoiser:
    """Its student of 8 steps, to be sampled with `DDIM` on `Segments(8).grid()`."""
    return read_model(EMOJI_STUDENT)
