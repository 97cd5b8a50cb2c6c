"""What samplers are measured on: a mixture with exact flow, and the emoji teacher."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import mcmeqx as mc

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from _compare import data_moments, moments_of
from _stages import DEMO, with_headroom
from _toy_data import Mixture, exact_denoiser


class Problem(NamedTuple):
    """A model, where its samples start and end, and how else they are judged."""

    model: Any
    noise: np.ndarray
    labels: np.ndarray | None
    data: mc.Example
    exact: np.ndarray
    distances: Callable[[np.ndarray], tuple[float, float]] | None


def mixture(samples: int, seed: int) -> Problem:
    """16 Gaussians of deviation 0.2 about random corners of a 192-dimensional cube."""
    rng = np.random.default_rng(seed)
    means = 0.5 * rng.choice([-1.0, 1.0], (16, 192)).astype(np.float32)
    data = Mixture(jnp.asarray(means), 0.2)
    model = exact_denoiser(data, mc.Cosine())
    noise = rng.standard_normal((samples, 192), np.float32)
    batch = mc.Example(jnp.asarray(data.draw(256, rng)))
    return Problem(model, noise, None, batch, _exact_flow(means, noise), None)


def _exact_flow(means: np.ndarray, noise: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        schedule = mc.Cosine()
        network = Mixture(jnp.asarray(means, jnp.float64), 0.2)

        def end(z):
            return mc.probability_flow(
                # A Denoiser would hand the network a float32 logsnr.
                lambda z, t: network(z, schedule.logsnr(t)),
                schedule,
                z,
                1.0,
                0.0,
                solver=diffrax.Dopri8(),
                stepsize_controller=mc.adaptive_steps(1e-10),
            ).z

        return np.asarray(jax.jit(jax.vmap(end))(noise.astype(np.float64)))


def teacher(samples: int, seed: int) -> Problem:
    """The emoji teacher against OpenMoji."""
    images = with_headroom(mc.data.openmoji(), DEMO)
    network = mc.metrics.EfficientNetLite0.load()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    held = images.take(order[:samples])
    noise = rng.standard_normal((samples, *images.shape), np.float32)
    reference = data_moments(network, images, order[samples:])

    moments = partial(moments_of, network)
    model, labels = mc.emoji_teacher(), np.asarray(held.label)
    controller = mc.adaptive_steps(1e-5)
    exact = np.asarray(
        counted_flow(model, diffrax.Tsit5(), controller, noise, labels).z
    )
    flow = moments(exact)

    def distances(x: np.ndarray) -> tuple[float, float]:
        own = moments(x)
        return mc.metrics.frechet_distance(own, reference), (
            mc.metrics.frechet_distance(own, flow)
        )

    return Problem(model, noise, labels, held, exact, distances)


@eqx.filter_jit
def counted_flow(model, solver, controller, noise, labels):
    """Where the flow of each example ends, and at how many evaluations of its own."""

    def one(z, label):
        return mc.probability_flow(
            lambda z, t: model(z, t, label),
            model.schedule,
            z,
            1.0,
            0.0,
            solver=solver,
            stepsize_controller=controller,
        )

    return jax.vmap(one)(noise, labels)
