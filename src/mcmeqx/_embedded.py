"""The model that comes with the package: a small diffusion teacher of 64x64 emoji.

`weights/README.md` says how it was made, from which data and under which licences.
"""

from pathlib import Path

import equinox as eqx
import jax

from mcmeqx._checkpoint import load_model
from mcmeqx._denoiser import Denoiser
from mcmeqx._schedule import Cosine
from mcmeqx.nets import demo64

EMOJI_TEACHER = Path(__file__).parent / "weights" / "emoji_teacher.eqx"


def emoji_teacher() -> Denoiser:
    """The teacher: images (3, 64, 64) in [-1, 1], label as in `data.openmoji`."""
    network = eqx.filter_eval_shape(
        lambda key: demo64.build(key=key), jax.random.key(0)
    )
    return load_model(EMOJI_TEACHER, Denoiser(network, Cosine()))
