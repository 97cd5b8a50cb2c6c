"""From a network's output to an estimate of x.

A network may predict x, eps or v. All three become x, the hub through which every
other quantity is reached: `x = alpha z - sigma v`, `x = (z - sigma eps) / alpha`.
v-prediction divides by nothing and is exact at both ends of time: at t = 0 it returns
about z, at t = 1 about -v (Salimans & Ho 2022).
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import Label, Sample, ScalarLike
from mcmeqx.nets._network import AbstractNetwork, Embedding

Model = Any
"""Whatever a loss trains or a teacher asks: `model(z, t, label, *, guidance, key)`
gives x for one example, and `model.schedule` is its schedule. A `Denoiser`, a `Guided`
one, or an exact oracle."""

Parameterisation = Callable[[AbstractNoiseSchedule, Sample, Sample, ScalarLike], Sample]


def x_prediction(
    schedule: AbstractNoiseSchedule, z: Sample, out: Sample, t: ScalarLike
) -> Sample:
    """x from a network that predicts x."""
    return out


def eps_prediction(
    schedule: AbstractNoiseSchedule, z: Sample, out: Sample, t: ScalarLike
) -> Sample:
    """x from a network that predicts eps; its error grows like `sigma_t / alpha_t`."""
    return (z - schedule.sigma(t) * out) / schedule.alpha(t)


def v_prediction(
    schedule: AbstractNoiseSchedule, z: Sample, out: Sample, t: ScalarLike
) -> Sample:
    """x from a network that predicts `v = alpha eps - sigma x`."""
    return schedule.alpha(t) * z - schedule.sigma(t) * out


class Denoiser(eqx.Module):
    """A network, its schedule and its parameterisation: `(z_t, t) -> x`."""

    network: AbstractNetwork
    """The trainable function of (z, logsnr, label)."""
    schedule: AbstractNoiseSchedule
    """The schedule that the network was, or will be, trained on."""
    to_x: Parameterisation = eqx.field(default=v_prediction, static=True)
    """What the network predicts: `x_prediction`, `eps_prediction`, `v_prediction`."""
    dtype: jnp.dtype = eqx.field(default=jnp.dtype("float32"), static=True)
    """Precision in which the network computes; all else keeps that of `z`.

    In bfloat16 the parameters stay float32 and so do their gradients; matrix products
    and convolutions are bfloat16. Noise level and its embedding, norms, sums with
    vectors and softmax are float32."""

    def __check_init__(self):
        if not isinstance(self.network, AbstractNetwork):
            raise ValueError(
                f"{type(self.network).__name__} is no network that files and "
                "checkpoints know: derive its class from mcmeqx.nets.AbstractNetwork"
            )
        if any(map(eqx.is_array, jax.tree.leaves(self.schedule))):
            raise ValueError(
                f"{type(self.schedule).__name__} holds arrays, which training would "
                "change: make the schedule's numbers static fields"
            )
        with jax.ensure_compile_time_eval():
            data, noise = (float(self.schedule.logsnr(t)) for t in (0.0, 1.0))
        if not -math.inf < noise < data < math.inf:
            raise ValueError(
                f"{type(self.schedule).__name__}.logsnr goes from {data} at t = 0 to "
                f"{noise} at t = 1: it has to fall, and be finite at both: let t = 0 "
                "stand for a little noise, and t = 1 for a little signal"
            )

    def __call__(
        self,
        z: Sample,
        t: ScalarLike,
        label: Label = None,
        *,
        guidance: ScalarLike | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Sample:
        """The estimate of x for one noisy example, in the shape and dtype of `z`.

        `t` lies in [0, 1]. `guidance` is the scale of a student that takes one, and
        None for every other network. A `key` turns dropout on; without one the call is
        deterministic.
        """
        logsnr = jnp.asarray(self.schedule.logsnr(t), jnp.float32)
        network = jax.tree.map(
            self._cast, self.network, is_leaf=lambda node: isinstance(node, Embedding)
        )
        z_in = z.astype(self.dtype)
        out = network(z_in, logsnr, label, guidance=guidance, key=key)
        return self.to_x(self.schedule, z, out.astype(z.dtype), t).astype(z.dtype)

    def _cast(self, leaf: Any) -> Any:
        return leaf.astype(self.dtype) if eqx.is_inexact_array(leaf) else leaf
