"""What is timed: a training step or a sampler of a preset, compiled ahead of time.

Arrays may be shapes: then a job compiles, and cannot run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcmeqx as mc
from mcmeqx._generate import padded, sample_rows
from mcmeqx._sharding import is_placed

TRAINING = ("teacher", "cd", "ct")
PRECISIONS = ("float32", "bfloat16", "float16")
SEGMENTS = mc.Segments(8)
_TRUNK = mc.nets.UViTConfig(
    64, (mc.nets.Stage("transformer", 256, 8),), classes=1000, patch=4
)
_NETWORKS = {
    name: config
    for name, config in vars(mc.nets).items()
    if isinstance(config, mc.nets.UViTConfig | mc.nets.UNetConfig)
} | {"trunk64": _TRUNK, "trunk64_remat": replace(_TRUNK, remat=True)}


def config_of(network: str) -> Any:
    """A preset of `mcmeqx.nets`, or a trunk of eight transformer blocks at 16x16.

    Raises ValueError for any other name.
    """
    if network not in _NETWORKS:
        raise ValueError(f"networks are {', '.join(_NETWORKS)}, got {network}")
    return _NETWORKS[network]


def check_precision(name: str) -> None:
    """ValueError for a precision in which JAX, as set here, would not compute."""
    if name not in PRECISIONS:
        raise ValueError(f"precisions are {', '.join(PRECISIONS)}, got {name}")


@dataclass(frozen=True)
class Job:
    """A compiled program of one batch, and what it costs."""

    program: Any
    """A `jax.stages.Compiled`."""
    run: Callable[[], Any]
    """Start one call; give something to wait for."""
    flops: int
    compile_seconds: float

    def memory(self) -> int:
        """Bytes of arguments, results and temporaries, by XLA's plan."""
        plan = self.program.memory_analysis()
        total = plan.argument_size_in_bytes + plan.temp_size_in_bytes
        return total + plan.output_size_in_bytes - plan.alias_size_in_bytes


def build(config: Any, job: str, batch_size: int, dtype: str, *, real: bool) -> Job:
    """A job of a network: `teacher`, `cd`, `ct`, or `sample<steps>` by DDIM."""
    shape = (batch_size, config.channels, config.image_size, config.image_size)

    def arrays(key: jax.Array) -> Any:
        model = mc.Denoiser(config.build(key=key), mc.Cosine(), dtype=jnp.dtype(dtype))
        classes = config.classes is not None
        labels = jnp.zeros(batch_size, jnp.int32) if classes else None
        images = jax.random.normal(key, shape, jnp.float32)
        if job not in TRAINING:
            return model, images, labels, jax.random.split(key, batch_size)
        learner = _learner(job, model)
        return learner, mc.Example(images, labels), learner.init(model, key=key)

    # With this generator, drawing the parameters compiles in a moment.
    key = jax.random.key(0, impl="rbg")
    if real:
        made: Any = eqx.filter_jit(arrays)(key)
    else:
        made = eqx.filter_eval_shape(arrays, key)
    if job in TRAINING:
        return _training(*made)
    model, noise, labels, keys = made
    return _sampling(model, noise, labels, keys, steps=int(job[6:]))


def _learner(job: str, model: mc.Denoiser) -> mc.Learner:
    losses = {
        "teacher": mc.DiffusionLoss(),
        "cd": mc.MultistepConsistencyLoss(mc.DistillationTeacher(model), SEGMENTS),
        "ct": mc.MultistepConsistencyLoss(mc.DataTeacher(), SEGMENTS),
    }
    return mc.Learner(losses[job], optax.adam(1e-4))


def _training(learner: mc.Learner, batch: mc.Example, state: mc.TrainState) -> Job:
    flops = learner.flops(state, batch)
    begun = time.perf_counter()
    program = learner.compiled(state, batch)
    seconds = time.perf_counter() - begun
    inputs = eqx.filter((learner, batch), is_placed)
    states = [eqx.filter(state, is_placed)]

    def run() -> Any:
        state, metrics = program(inputs, states.pop())
        states.append(state)
        return metrics["loss"]

    return Job(program, run, flops, seconds)


def _sampling(
    model: mc.Denoiser, noise: Any, labels: Any, keys: Any, steps: int
) -> Job:
    ts = np.asarray(mc.uniform_grid(steps), np.float32)
    given, fixed = eqx.partition((model, noise, labels, keys), is_placed)

    def function(given: Any, ts: Any, steps: Any) -> jax.Array:
        model, noise, labels, keys = eqx.combine(given, fixed)
        return sample_rows(model, mc.DDIM(), ts, noise, labels, None, keys, steps)

    flops = mc.count_flops(function, given, jnp.asarray(ts), None)
    times = padded(ts)
    begun = time.perf_counter()
    program = jax.jit(function).lower(given, *times).compile()
    seconds = time.perf_counter() - begun
    return Job(program, lambda: program(given, *times), flops, seconds)
