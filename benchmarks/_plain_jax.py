"""The jobs of `versus.py` as one writes them in plain JAX, for any batched network."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _worker import (
    BATCH_SIZE,
    EMA_DECAY,
    LEARNING_RATE,
    SEGMENTS,
    SIDE,
    STEPS,
    TEACHER_STEPS,
    Contestant,
)

Apply = Callable[[Any, jax.Array, jax.Array], jax.Array]


def features(t: jax.Array, width: int = 256) -> jax.Array:
    """Sines and cosines of a batch of times."""
    frequencies = 2.0 * math.pi * jnp.exp(jnp.linspace(0.0, 5.0, width // 2))
    phases = t[:, None] * frequencies
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], -1)


def _levels(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    angle = 0.5 * math.pi * t[:, None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def _denoise(apply: Apply, params: Any, z: jax.Array, t: jax.Array) -> jax.Array:
    alpha, sigma = _levels(t)
    return alpha * z - sigma * apply(params, z, t)


def _jump(z: jax.Array, x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """DDIM from t to s."""
    (alpha, sigma), (alpha_s, sigma_s) = _levels(t), _levels(s)
    return alpha_s * x + sigma_s * (z - alpha * x) / jnp.maximum(sigma, 1e-6)


def _loss(apply: Apply, params: Any, teacher: Any, x: jax.Array, key: jax.Array):
    time_key, noise_key = jax.random.split(key)
    steps = jax.random.randint(time_key, (len(x),), 1, TEACHER_STEPS + 1)
    t, s = steps / TEACHER_STEPS, (steps - 1) / TEACHER_STEPS
    r = jnp.floor(s * SEGMENTS) / SEGMENTS
    alpha, sigma = _levels(t)
    z = alpha * x + sigma * jax.random.normal(noise_key, x.shape)
    z_s = _jump(z, _denoise(apply, teacher, z, t), t, s)
    z_r = _jump(z_s, _denoise(apply, params, z_s, s), s, r)
    # The x whose jump from t to r ends in z_r.
    (alpha_r, sigma_r), ratio = _levels(r), 1.0 / jnp.maximum(sigma, 1e-6)
    target = (z_r - sigma_r * ratio * z) / (alpha_r - alpha * sigma_r * ratio)
    difference = jax.lax.stop_gradient(target) - _denoise(apply, params, z, t)
    return jnp.mean((difference / jnp.maximum(sigma, 1e-2)) ** 2)


def contestant(apply: Apply, params: Any, version: str, layout: str) -> Contestant:
    """A contestant whose images have the axes `layout`, "NCHW" or "NHWC"."""
    sides = {"N": BATCH_SIZE, "C": 3, "H": SIDE, "W": SIDE}
    shape = tuple(sides[axis] for axis in layout)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    adam = optax.adam(LEARNING_RATE)
    copy = partial(jax.tree.map, lambda a: jnp.array(a, copy=True))

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, teacher: Any, x: jax.Array, key: jax.Array) -> Any:
        params, ema, moments = state
        loss, grads = jax.value_and_grad(partial(_loss, apply))(params, teacher, x, key)
        updates, moments = adam.update(grads, moments)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(
            lambda e, p: EMA_DECAY * e + (1 - EMA_DECAY) * p, ema, params
        )
        return (params, ema, moments), loss

    @partial(jax.jit, static_argnums=2)
    def sample(params: Any, z: jax.Array, steps: int) -> jax.Array:
        for i in range(steps, 0, -1):
            t, s = (jnp.full(len(z), k / steps) for k in (i, i - 1))
            z = _jump(z, _denoise(apply, params, z, t), t, s)
        return z

    states = [(copy(params), copy(params), adam.init(params))]

    def distil() -> None:
        state, loss = step(states.pop(), params, x, jax.random.key(0))
        states.append(state)
        jax.block_until_ready((state, loss))

    jobs: dict[str, Callable[[], Any]] = {"cd": distil}
    for steps in STEPS:
        jobs[f"sample{steps}"] = lambda n=steps: jax.block_until_ready(
            sample(params, x, n)
        )
    count = sum(a.size for a in jax.tree.leaves(params))
    return Contestant(count, version, jax.devices()[0].device_kind, jobs)
