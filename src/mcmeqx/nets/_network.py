"""What a network is, and the features of noise level and class that all share."""

import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._types import Label, Sample, Scalar


class AbstractNetwork(eqx.Module):
    """A trainable function of a noisy sample, its noise level and its class."""

    @abstractmethod
    def __call__(
        self,
        z: Sample,
        logsnr: Scalar,
        label: Label = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Sample:
        """The raw prediction for one example, in the shape and dtype of `z`.

        `logsnr` is float32, in nats, finite. `key` drives dropout; None turns it off.
        """


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


class Embedding(eqx.Module):
    """The conditioning vector: swish of a linear map of the noise level plus the class.

    One layer here, since every block has a layer of its own behind it: with two the
    large ImageNet networks would have more parameters than the paper counts.
    """

    project: eqx.nn.Linear
    classes: Float[Array, "classes width"] | None

    def __init__(self, width: int, classes: int | None, *, key: Key[Array, ""]):
        project_key, class_key = jax.random.split(key)
        self.project = eqx.nn.Linear(
            min(width, 256), width, dtype=jnp.float32, key=project_key
        )
        self.classes = (
            None
            if classes is None
            else 0.5 * jax.random.normal(class_key, (classes, width), jnp.float32)
        )

    def __call__(self, logsnr: Scalar, label: Label) -> Float[Array, " width"]:
        """The vector for one example; ValueError if classes and label do not agree."""
        if (self.classes is None) != (label is None):
            raise ValueError(
                "a network with classes needs a label and one without takes none: "
                f"classes={None if self.classes is None else len(self.classes)}, "
                f"label={'None' if label is None else 'given'}"
            )
        weight = self.project.weight
        features = noise_level_features(logsnr, weight.shape[1]).astype(weight.dtype)
        h = self.project(features)
        return jax.nn.silu(h if self.classes is None else h + self.classes[label])
