"""The image sets of the table, each with its network and how long that trains."""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import mcmeqx as mc

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from _stages import DEMO, Preset, with_headroom

STUDENTS = (
    "iterations",
    "learning_rate",
    "anneal",
    "data_anneal",
    "weighting",
    "teacher_step",
)
"""Fields of a preset that its teacher does not depend on."""


Taught = Literal["teacher", "cd", "ct"]
"""A model of the table: the teacher, or a student by distillation or from data."""


@dataclass(frozen=True)
class ImageSet:
    """What a table is about."""

    preset: Preset
    images: mc.data.Images
    """What models learn from, and what samples are compared with."""
    teacher: Path
    """The file of the teacher that the committed table is of; without it, one is
    trained by the preset."""

    @property
    def teacher_sha256(self) -> str:
        """SHA-256 of the teacher's file; empty without one."""
        if not self.teacher.exists():
            return ""
        return hashlib.sha256(self.teacher.read_bytes()).hexdigest()

    def plan(self, taught: Taught) -> str:
        """A name of all but images and seed that this model's training depends on."""
        without = dict.fromkeys(STUDENTS) if taught == "teacher" else {}
        preset = self.preset.training(from_data=taught == "ct")
        text = repr(replace(preset, **without)) + self.teacher_sha256
        return hashlib.sha256(text.encode()).hexdigest()[:16]


GREY32 = Preset(
    "fashion-mnist",
    replace(mc.nets.demo64, image_size=32, channels=1, classes=10, null_class=False),
    mc.Cosine(),
    batch_size=32,
    teacher="scratch",
    teacher_iterations=10_000,
    teacher_learning_rate=2e-3,
    label_dropout=0.0,
    iterations=4000,
    learning_rate=5e-4,
    ema_decay=0.999,
    anneal=(16.0, 32.0, 3000),
    samples=5000,
    weighting="sqrt_snr_plus_one",
    headroom=0.1,
    teacher_step="ddim",
)


EMOJI = replace(
    DEMO,
    name="emoji64",
    batch_size=32,
    iterations=4000,
    learning_rate=5e-4,
    ema_decay=0.999,
    anneal=(8.0, 16.0, 3000),
    weighting="sqrt_snr_plus_one",
    data_anneal=(32.0, 128.0, 3000),
)


PRESETS = {"fashion_mnist": GREY32, "emoji64": EMOJI}
"""By the names of the functions below."""


def fashion_mnist(folder: Path | None) -> ImageSet:
    """Fashion-MNIST of 32x32: 60,000 images, and a UViT of 1.6 million parameters."""
    teacher = Path(__file__).with_name("fashion_mnist_teacher.eqx")
    images = with_headroom(mc.data.fashion_mnist(folder), GREY32)
    return ImageSet(GREY32, images, teacher)


def emoji64(folder: Path | None) -> ImageSet:
    """Emoji of five vendors at 64x64, the embedded teacher and students like it."""
    if folder is None:
        raise ValueError("emoji64 needs --folder: where the npm tarballs lie")
    images = with_headroom(mc.data.emoji64(folder, split="train"), EMOJI)
    return ImageSet(EMOJI, images, mc.EMOJI_TEACHER)
