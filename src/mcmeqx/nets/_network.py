"""What a network is, and the features of noise level and class that all share."""

import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._sharding import keep_row
from mcmeqx._types import NULL_LABEL, Label, Sample, Scalar, ScalarLike


class AbstractNetwork(eqx.Module):
    """A trainable function of a noisy sample, its noise level and its class."""

    # A field with a default in an abstract class, against the custom here: an exact
    # oracle is a network too, and has no configuration to state.
    config: Any = eqx.field(default=None, kw_only=True, static=True)
    """The frozen dataclass whose `build` gives a network of this structure, or None."""

    @abstractmethod
    def __call__(
        self,
        z: Sample,
        logsnr: Scalar,
        label: Label = None,
        *,
        guidance: ScalarLike | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Sample:
        """The raw prediction for one example, in the shape and dtype of `z`.

        `logsnr` is float32, in nats, finite. `guidance` is the scale for a network that
        takes one. `key` drives dropout; None turns it off.
        """


def network_shapes(config: Any) -> Any:
    """The network that `config` builds, with shapes for arrays; allocates nothing."""
    return eqx.filter_eval_shape(lambda key: config.build(key=key), jax.random.key(0))


def noise_level_features(
    logsnr: Scalar, width: int, max_frequency: float = 1000.0
) -> Float[Array, " width"]:
    """Sines and cosines of `u = arctan(exp(-logsnr / 2)) / (pi / 2)`.

    u is t itself on the plain cosine schedule and lies in [0, 1] on any. The angular
    frequencies run geometrically from pi / 2 to `max_frequency`. A multistep student
    jumps at every segment end, so its features must tell t = k/S from the next time of
    a grid of 1280 teacher steps: at 1000 the phase moves by 0.8 between them.
    """
    if width < 4 or width % 2:
        raise ValueError(f"width of noise features is even and at least 4, got {width}")
    u = jnp.arctan(jnp.exp(-0.5 * logsnr)) / (0.5 * math.pi)
    steps = jnp.arange(width // 2, dtype=u.dtype) / (width // 2 - 1)
    low = 0.5 * math.pi
    frequencies = low * jnp.exp(steps * math.log(max_frequency / low))
    return jnp.concatenate([jnp.sin(frequencies * u), jnp.cos(frequencies * u)])


GUIDANCE_FEATURES = 32


def check_sample(z: Array, config: Any) -> None:
    """ValueError for an image of another size than the network's.

    Convolutions would take it, with attention at sizes it was not meant for.
    """
    wanted = (config.channels, config.image_size, config.image_size)
    if z.shape != wanted:
        raise ValueError(
            f"this network takes images of (channel, height, width) {wanted}, got "
            f"{z.shape}"
        )


def check_config(config: Any, *counts: str) -> None:
    """ValueError, naming the field, for what no network of this library can be.

    The fields `counts` are 1 or more; those that an `Embedding` reads fit together.
    """
    owner, embedding, classes = type(config).__name__, config.embedding, config.classes
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(
                f"{owner}.{name} is at least 1, got {getattr(config, name)}"
            )
    if embedding < 4 or embedding % 2:
        raise ValueError(f"{owner}.embedding is even and at least 4, got {embedding}")
    if classes is not None and classes < 1:
        raise ValueError(f"{owner}.classes is None or at least 1, got {classes}")
    if config.null_class and classes is None:
        raise ValueError(f"{owner}.null_class needs classes, got classes=None")


def guidance_features(g: ScalarLike) -> Float[Array, " features"]:
    """Sines and cosines of `g / (1 + g)`, for a guidance scale g >= 0."""
    u = jnp.asarray(g, jnp.float32)
    multiples = jnp.arange(1, GUIDANCE_FEATURES // 2 + 1, dtype=u.dtype)
    phases = 0.5 * math.pi * (u / (1.0 + u)) * multiples
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])


def unheard_guidance(width: int) -> Float[Array, "width features"]:
    """The map of `guidance_features` to a vector that starts at zero."""
    return jnp.zeros((width, GUIDANCE_FEATURES), jnp.float32)


class Embedding(eqx.Module):
    """The conditioning vector: swish of a linear map of the noise level plus the class.

    One layer here, since every block has a layer of its own behind it: with two
    `imagenet64_large` would be more than 1% above the paper's count of parameters. The
    map of the guidance scale starts at zero, so that a network given one is unchanged
    by it.

    A `Denoiser` of lower precision leaves it in float32: it is next to no work, and a
    student must tell noise levels that lie 1/1280 of the way apart.

    `config` is a network's: it has `embedding` (the width), `classes`, `null_class` and
    `guidance_input`.
    """

    project: eqx.nn.Linear
    classes: Float[Array, "classes width"] | None
    guidance: Float[Array, "width features"] | None
    null_class: bool = eqx.field(static=True)

    def __init__(self, config: Any, *, key: Key[Array, ""]):
        width, classes = config.embedding, config.classes
        project_key, class_key = jax.random.split(key)
        self.project = eqx.nn.Linear(
            min(width, 256), width, dtype=jnp.float32, key=project_key
        )
        self.null_class = config.null_class
        self.classes = None
        if classes is not None:
            shape = (classes + config.null_class, width)
            self.classes = 0.5 * jax.random.normal(class_key, shape, jnp.float32)
        self.guidance = unheard_guidance(width) if config.guidance_input else None

    def __call__(
        self, logsnr: Scalar, label: Label, guidance: ScalarLike | None = None
    ) -> Float[Array, " width"]:
        """The vector for one example.

        The null class is the last row, which label -1 reaches from the end. ValueError
        if label or guidance are missing, or given and not taken.
        """
        if label is None and self.null_class:
            label = NULL_LABEL
        if (self.classes is None) != (label is None):
            raise ValueError(
                "a network with classes needs a label, unless it has a null class, and "
                "one without takes none: "
                f"classes={None if self.classes is None else len(self.classes)}, "
                f"label={'None' if label is None else 'given'}"
            )
        if (self.guidance is None) != (guidance is None):
            raise ValueError(
                "a network with guidance_input needs a guidance scale and one without "
                f"takes none: guidance={'None' if guidance is None else 'given'}"
            )
        weight = self.project.weight
        features = noise_level_features(logsnr, weight.shape[1]).astype(weight.dtype)
        h = keep_row(self.project(features))
        if self.classes is not None:
            h = h + keep_row(self.classes)[label]
        if self.guidance is not None and guidance is not None:
            h = h + self.guidance @ guidance_features(guidance).astype(weight.dtype)
        return jax.nn.silu(h)
