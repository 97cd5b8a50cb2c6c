"""Guidance: away from a worse denoiser (Ho & Salimans 2022; Karras et al. 2024).

    x = (1 + g) x_conditional - g x_negative

as Heek et al. count: g = 0 is the conditional model alone. Papers that write
`x_negative + w (x_conditional - x_negative)` mean w = 1 + g. The negative is the same
model without its class (classifier-free guidance) or a weaker one (autoguidance). g may
be confined to an interval of noise levels (Kynkaanniemi et al. 2024).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from mcmeqx._denoiser import Denoiser, Model
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import NULL_LABEL, DenoiseFn, Label, Sample, Scalar, ScalarLike
from mcmeqx.nets._network import network_shapes, unheard_guidance

Scale = ScalarLike | Callable[[ScalarLike], ScalarLike]


def guide(conditional: DenoiseFn, negative: DenoiseFn, scale: Scale) -> DenoiseFn:
    """`(z, t) -> (1 + g) conditional - g negative`, g a number or a function of t."""

    def guided(z: Sample, t: ScalarLike) -> Sample:
        g = scale(t) if callable(scale) else scale
        return _away(conditional(z, t), negative(z, t), g)

    return guided


def _away(x: Sample, negative: Sample, g: ScalarLike) -> Sample:
    return x + g * (x - negative)


class Guidance(eqx.Module):
    """How a model is guided."""

    scale: ScalarLike = 1.0
    """g, where the noise level lies in the interval; 0 outside. Other papers' w - 1;
    between -1 and 0 it mixes the two estimates."""
    logsnr_range: tuple[float, float] = eqx.field(
        default=(-math.inf, math.inf), static=True
    )
    """Lowest and highest logsnr, in nats, at which the model is guided."""
    negative: Model | None = None
    """The model to move away from; None is the guided model without its class."""

    def __check_init__(self):
        low, high = self.logsnr_range
        if isinstance(self.scale, int | float) and not -1 < self.scale < math.inf:
            raise ValueError(
                f"Guidance.scale is g = w - 1, finite and above -1, got {self.scale}"
            )
        if not low < high:
            raise ValueError(
                f"Guidance.logsnr_range rises, got {self.logsnr_range}: give the "
                "noisier end first"
            )
        if isinstance(self.negative, Guided):
            raise ValueError(
                "Guidance.negative is Guided, which makes two calls where one is "
                "counted: give a model itself"
            )

    def at(
        self,
        schedule: AbstractNoiseSchedule,
        t: ScalarLike,
        scale: ScalarLike | None = None,
    ) -> Scalar:
        """g at time t, with another `scale` than the object's own if one is given."""
        logsnr, (low, high) = schedule.logsnr(t), self.logsnr_range
        g = jnp.asarray(self.scale if scale is None else scale, logsnr.dtype)
        return jnp.where((low <= logsnr) & (logsnr <= high), g, 0.0)


def guided_pair(
    model: Model,
    guidance: Guidance | None,
    z: Sample,
    t: ScalarLike,
    label: Label,
    scale: ScalarLike | None = None,
) -> tuple[Sample, Sample]:
    """The guided x and the conditional, unguided one, of one example.

    The two are equal bit for bit at g = 0. Without a negative model both forwards run
    as one batch. Raises ValueError without guidance if there is a `scale`, without a
    label or a null class where the negative is the model itself, and for a negative of
    another schedule.
    """
    if guidance is None:
        if scale is not None:
            raise ValueError(
                "a guidance scale is asked of a teacher without guidance: give it a "
                "Guidance"
            )
        x = model(z, t, label)
        return x, x
    g = guidance.at(model.schedule, t, scale).astype(z.dtype)
    if guidance.negative is not None:
        if guidance.negative.schedule != model.schedule:
            raise ValueError(
                f"the negative model's schedule is {guidance.negative.schedule}, the "
                f"guided model's is {model.schedule}: they must be the same"
            )
        x, negative = model(z, t, label), guidance.negative(z, t, label)
    else:
        labels = with_null(model, z, t, label)
        x, negative = jax.vmap(lambda label: model(z, t, label))(labels)
    return _away(x, negative, g), x


def calls_each(guidance: Guidance | None) -> int:
    """Calls of a network that one `guided_pair` takes."""
    return 1 if guidance is None else 2


def with_null(model: Model, z: Sample, t: ScalarLike, label: Label) -> jax.Array:
    """The label and the null label; ValueError if there is none or the model has none.

    A network without a null class refuses to be called without a label.
    """
    if label is None:
        raise ValueError("classifier-free guidance needs labels, got None")
    eqx.filter_eval_shape(lambda z: model(z, t, None), z)
    return jnp.stack([jnp.asarray(label, jnp.int32), jnp.int32(NULL_LABEL)])


class Guided(eqx.Module):
    """A guided model: a model like any other, for samplers and `generate`."""

    model: Model
    """What is guided."""
    guidance: Guidance
    """How."""

    @property
    def schedule(self) -> AbstractNoiseSchedule:
        """The model's own."""
        return self.model.schedule

    def __call__(
        self,
        z: Sample,
        t: ScalarLike,
        label: Label = None,
        *,
        guidance: ScalarLike | None = None,
        key: None = None,
    ) -> Sample:
        """The guided x; `guidance` replaces the scale. There is no dropout."""
        return guided_pair(self.model, self.guidance, z, t, label, guidance)[0]


def with_guidance_input(model: Denoiser) -> Denoiser:
    """A copy that takes a guidance scale, and at first does not heed it.

    What a student of a guided teacher starts from (`guidance_range` of the loss).
    Raises ValueError if the model takes one already, or its network is not one of the
    library's.
    """
    network = _configured(model)
    if network.config.guidance_input:
        raise ValueError(
            "with_guidance_input is for a model that takes no guidance scale: this one "
            "does, and would forget what it learned of it"
        )
    unheard = unheard_guidance(network.embed.project.weight.shape[0])
    config = replace(network.config, guidance_input=True)
    return _of_config(model, config, guidance=unheard)


def with_null_class(model: Denoiser) -> Denoiser:
    """A copy with a null class, which starts as the mean of the others.

    For a conditional model that goes on training with label dropout. Raises ValueError
    if the model has no classes, or a null class already, or its network is not one of
    the library's.
    """
    network = _configured(model)
    old = network.embed
    if old.classes is None or old.null_class:
        raise ValueError(
            "with_null_class is for a model with classes and no null class, got "
            f"classes={old.classes is not None}, null_class={old.null_class}"
        )
    rows = jnp.concatenate([old.classes, old.classes.mean(0, keepdims=True)])
    return _of_config(model, replace(network.config, null_class=True), classes=rows)


def _configured(model: Denoiser) -> Any:
    """The network; ValueError if no configuration builds it."""
    if model.network.config is None:
        raise ValueError(
            f"{type(model.network).__name__} has no configuration to build it anew "
            "from: give it the further input or class where it is defined"
        )
    return model.network


def _of_config(model: Denoiser, config: Any, **embed: jax.Array) -> Denoiser:
    """`model` with a network built from `config`, its leaves kept but those of `embed`.

    Built anew, so that the network and its configuration cannot come apart.
    """
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree.leaves_with_path(model.network)
    }
    leaves |= {f".embed.{name}": leaf for name, leaf in embed.items()}
    network = jax.tree.map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path)], network_shapes(config)
    )
    return replace(model, network=network)
