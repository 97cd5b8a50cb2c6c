"""A small training run as a process of its own, for tests of devices and of kills.

    python program.py OUT --steps 5 --data 4 --fsdp 2

It distils a tiny UViT with dropout, and resumes what lies in OUT. When it is through,
OUT/result.npz holds the average, the model, Adam's moments and the losses.
"""

import argparse
import os
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--devices", type=int, default=8)
parser.add_argument("--data", type=int)
parser.add_argument("--fsdp", type=int, default=1)
parser.add_argument("--save-every", type=int, default=1000)
parser.add_argument("--pause", type=float, default=0.0)
parser.add_argument("--coordinator")
parser.add_argument("--count", type=int)
parser.add_argument("--index", type=int)
options = parser.parse_args()

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={options.devices} "
    "--xla_backend_optimization_level=1"
)

import time  # noqa: E402

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import mcmeqx as mc  # noqa: E402
from mcmeqx.nets import Stage, UViTConfig  # noqa: E402

CONFIG = UViTConfig(
    8,
    (Stage("resnet", 32, 1), Stage("transformer", 64, 1, dropout=0.1)),
    classes=4,
    embedding=64,
    head_width=32,
)


def images() -> mc.data.Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 4, 40).astype(np.int32)
    return mc.data.Images(pixels, labels, tuple("abcd"), "noise")


def numbers(tree) -> list[np.ndarray]:
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return [np.asarray(a) for a in arrays]


def main() -> None:
    mc.connect(options.coordinator, options.count, options.index)
    mesh = mc.make_mesh(options.data, options.fsdp)
    keys = jax.random.split(jax.random.key(0), 3)
    teacher, student = (mc.Denoiser(CONFIG.build(key=k), mc.Cosine()) for k in keys[:2])
    loss = mc.MultistepConsistencyLoss(
        mc.DistillationTeacher(teacher), mc.Segments(2), mc.annealed_steps(8, 64, 100)
    )
    learner = mc.Learner(loss, optax.adam(1e-3), 0.99)
    checkpoints = mc.Checkpoints(options.out / "saved")
    state = mc.place(learner.init(student, key=keys[2]), mesh)
    state = checkpoints.restore(state)
    begun = int(state.step)
    losses = options.out / "loss.jsonl"
    ready = options.out / "ready"
    callbacks: list[mc.Callback] = [lambda *_: ready.touch()]
    if jax.process_index() == 0:
        lines = mc.JsonLines(losses, every=1, steps=options.steps, start=begun)
        callbacks.insert(0, lines)
    if options.pause:
        callbacks.append(lambda *_: time.sleep(options.pause))
    stream = mc.data.batches(
        images(),
        batch_size=16,
        seed=0,
        start=begun,
        flip=True,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    try:
        state = mc.fit(
            learner,
            state,
            stream,
            steps=options.steps,
            callbacks=callbacks,
            save=checkpoints.save,
            save_every=options.save_every,
            mesh=mesh,
        )
    except mc.Interrupted as stopped:
        checkpoints.save(stopped.state)
        checkpoints.wait()
        raise SystemExit(str(stopped)) from None
    checkpoints.save(state)
    checkpoints.wait()
    kept = (state.model, state.ema, state.opt_state)
    held = [
        shard
        for a in jax.tree.leaves(kept)
        if eqx.is_array(a)
        for shard in a.addressable_shards
    ]
    first = min(shard.device.id for shard in held)
    here = sum(shard.data.nbytes for shard in held if shard.device.id == first)
    model, ema, opt_state = mc.gathered(kept, mesh)
    if jax.process_index() == 0:
        arrays = numbers((ema, model, opt_state))
        total = sum(a.nbytes for a in arrays)
        found = [r["loss"] for r in mc.read_metrics(losses)]
        names = {f"a{i:03d}": a for i, a in enumerate(arrays)}
        np.savez(options.out / "part.npz", loss=found, here=here, total=total, **names)
        (options.out / "part.npz").rename(options.out / "result.npz")


main()
