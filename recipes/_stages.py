"""What the ImageNet 64x64 recipes share: presets, data, and models in files."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _solvers import Kind

import mcmeqx as mc

WEIGHTINGS = {
    "snr_plus_one": mc.snr_plus_one,
    "sqrt_snr_plus_one": mc.sqrt_snr_plus_one,
}


@dataclass(frozen=True)
class Preset:
    """Everything about a job that follows from its data."""

    name: str
    network: mc.nets.UViTConfig
    schedule: mc.AbstractNoiseSchedule
    batch_size: int
    teacher: str
    teacher_iterations: int
    teacher_learning_rate: float
    label_dropout: float
    iterations: int
    learning_rate: float
    ema_decay: float
    anneal: tuple[float, float, int]
    samples: int
    precision: str = "float32"
    flip: bool = False
    weighting: str = "snr_plus_one"
    headroom: float = 0.0
    teacher_step: Kind = "addim"
    data_anneal: tuple[float, float, int] | None = field(default=None, repr=False)
    """`anneal` of consistency training where it differs: its targets have the error of
    DDIM's steps, and need more of them than a better teacher takes. Not in the repr,
    by which the table names what trained a student: `training` puts it into anneal."""

    def training(self, *, from_data: bool) -> "Preset":
        """The preset of a student from data or by distillation, with its `anneal`."""
        anneal = self.data_anneal if from_data else None
        return replace(self, anneal=anneal or self.anneal)


# Heek et al. 2024, sec. 4 and app. A; learning rate, EMA: Hoogeboom et al. 2023.
IMAGENET = Preset(
    "imagenet64",
    mc.nets.imagenet64_small,
    mc.Shifted(64, low=32, high=64),
    batch_size=2048,
    teacher="scratch",
    teacher_iterations=700_000,
    teacher_learning_rate=1e-4,
    label_dropout=0.0,
    iterations=200_000,
    learning_rate=1e-4,
    ema_decay=0.9999,
    anneal=(64.0, 1280.0, 100_000),
    samples=50_000,
    precision="bfloat16",
    flip=True,
)
DEMO = Preset(
    "emoji-demo",
    mc.nets.demo64,
    mc.Cosine(),
    batch_size=16,
    teacher="embedded",
    teacher_iterations=600,
    teacher_learning_rate=2e-3,
    label_dropout=0.1,
    iterations=300,
    learning_rate=3e-4,
    ema_decay=0.99,
    anneal=(8.0, 16.0, 240),
    samples=96,
    headroom=0.1,
    teacher_step="midpoint",
    data_anneal=(16.0, 32.0, 240),
)


def preset_of(data_dir: Path | None) -> Preset:
    """The preset of a job on ImageNet, or, without its folder, on emoji."""
    return DEMO if data_dir is None else IMAGENET


def load(
    data_dir: Path | None, emoji64_dir: Path | None = None
) -> tuple[Preset, mc.data.Images]:
    """The preset and images of a job; first prints which data it runs on."""
    if data_dir is not None and emoji64_dir is not None:
        raise ValueError("give --data-dir or --emoji64-dir, not both")
    preset = preset_of(data_dir)
    if data_dir is not None:
        images = mc.data.imagenet64(data_dir)
        print(f"ImageNet 64x64 from {data_dir}: {_size(images)}", flush=True)
        # A part of ImageNet has labels of its own.
        network = replace(preset.network, classes=len(images.classes))
        return replace(preset, network=network), with_headroom(images, preset)
    what = "OpenMoji emoji" if emoji64_dir is None else "emoji of five vendors"
    line = "=" * 78
    print(
        f"{line}\nDEMO, NOT IMAGENET: {what} at 64x64 and a small UViT.\n"
        f"Give --data-dir to train on ImageNet 64x64 as the paper does.\n{line}",
        flush=True,
    )
    images = (
        mc.data.openmoji()
        if emoji64_dir is None
        else mc.data.emoji64(emoji64_dir, split="train")
    )
    print(_size(images), flush=True)
    return preset, with_headroom(images, preset)


def data_sha256(images: mc.data.Images) -> str:
    """Hash of all labels and of the pixels of 2,048 images, or of all if fewer."""
    some = np.linspace(0, len(images) - 1, min(len(images), 2048)).astype(int)
    found = hashlib.sha256(repr((images.shape, images.classes)).encode())
    found.update(images.labels.tobytes())
    found.update(images.pixels[some].tobytes())
    return found.hexdigest()


def with_headroom(images: mc.data.Images, preset: Preset) -> mc.data.Images:
    """The images as models of the preset learn and draw them."""
    return replace(images, headroom=preset.headroom)


def _size(images: mc.data.Images) -> str:
    return f"{len(images)} images, {len(images.classes)} classes"


def denoiser_shapes(preset: Preset) -> mc.Denoiser:
    """The preset's denoiser with shapes for arrays: what `load_model` compares with."""
    return eqx.filter_eval_shape(new_denoiser, preset, jax.random.key(0))


def new_denoiser(preset: Preset, key: jax.Array) -> mc.Denoiser:
    """A fresh denoiser of the preset's network and schedule."""
    network = preset.network.build(key=key)
    return mc.Denoiser(network, preset.schedule, dtype=jnp.dtype(preset.precision))


def with_label_dropout(preset: Preset, share: float) -> Preset:
    """The preset with a null class in its network if labels are dropped at all."""
    network = replace(preset.network, null_class=share > 0)
    return replace(preset, label_dropout=share, network=network)


def computed(preset: Preset, precision: str, remat: bool) -> Preset:
    """The preset with a network that computes so."""
    network = replace(preset.network, remat=remat)
    return replace(preset, precision=precision, network=network)
