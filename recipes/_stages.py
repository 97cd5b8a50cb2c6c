"""What the ImageNet 64x64 recipes share: presets, data, training stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

import mcmeqx as mc


@dataclass(frozen=True)
class Preset:
    """Everything about a job that follows from its data."""

    name: str
    network: mc.nets.UViTConfig
    schedule: mc.AbstractNoiseSchedule
    batch_size: int
    teacher_iterations: int
    teacher_learning_rate: float
    iterations: int
    learning_rate: float
    ema_decay: float
    anneal: tuple[float, float, int]
    samples: int


# Heek et al. 2024, sec. 4 and app. A; learning rate, EMA: Hoogeboom et al. 2023.
IMAGENET = Preset(
    "imagenet64",
    mc.nets.imagenet64_small,
    mc.Shifted(64, low=32, high=64),
    batch_size=2048,
    teacher_iterations=700_000,
    teacher_learning_rate=1e-4,
    iterations=200_000,
    learning_rate=1e-4,
    ema_decay=0.9999,
    anneal=(64.0, 1280.0, 100_000),
    samples=50_000,
)
DEMO = Preset(
    "emoji-demo",
    mc.nets.demo64,
    mc.Cosine(),
    batch_size=32,
    teacher_iterations=400,
    teacher_learning_rate=1e-3,
    iterations=250,
    learning_rate=3e-4,
    ema_decay=0.98,
    anneal=(64.0, 1280.0, 200),
    samples=96,
)


def load(data_dir: Path | None, emoji64_dir: Path | None = None) -> Any:
    """The preset and images of a job; prints which data it runs on."""
    if data_dir is not None:
        return IMAGENET, mc.data.imagenet64(data_dir)
    if emoji64_dir is not None:
        images, what = mc.data.emoji64(emoji64_dir), "emoji of five vendors"
    else:
        images, what = mc.data.openmoji(), "OpenMoji emoji"
    line = "=" * 78
    print(
        f"{line}\nDEMO, NOT IMAGENET: {len(images)} {what} at 64x64, "
        f"{len(images.classes)} classes, a small UViT.\n"
        f"Give --data-dir to train on ImageNet 64x64 as the paper does.\n{line}",
        flush=True,
    )
    return DEMO, images


def new_denoiser(preset: Preset, seed: int) -> mc.Denoiser:
    """A fresh denoiser of the preset's network and schedule."""
    network = preset.network.build(key=jax.random.key(seed))
    return mc.Denoiser(network, preset.schedule)


def train(
    name: str,
    run: Path,
    loss: mc.AbstractLoss,
    model: mc.Denoiser,
    images: mc.data.Images,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
) -> mc.Denoiser:
    """The EMA after `iterations` steps; resumes, or loads what is done.

    Writes `<name>.eqx`, checkpoints in `<name>/` and metrics in `<name>.jsonl`.
    """
    done = run / f"{name}.eqx"
    if done.exists():
        return mc.load_model(done, model)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, iterations // 20), iterations, 0.05 * learning_rate
    )
    adam = optax.adam(rate, b1=0.9, b2=0.99, eps=1e-12)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    learner = mc.Learner(loss, optimizer, ema_decay)
    checkpoints = mc.Checkpoints(run / name, every=max(1, iterations // 10))
    state = checkpoints.restore(learner.init(model, key=jax.random.key(seed)))
    start = int(state.step)
    callbacks = (
        mc.ProgressBar(name, steps=iterations, start=start, batch_size=batch_size),
        mc.JsonLines(run / f"{name}.jsonl", every=10),
        checkpoints,
    )
    stream = mc.data.batches(images, batch_size=batch_size, seed=seed, start=start)
    state = mc.fit(learner, state, stream, steps=iterations, callbacks=callbacks)
    mc.save_model(done, state.ema)
    return mc.load_model(done, model)
