"""A residual multilayer perceptron for samples that are short vectors.

Every layer is `h + W silu(film(h))`, with FiLM from the vector of noise level and
class. The last layer starts at zero, so a fresh network predicts zero.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import Array, Key

from mcmeqx._types import Label, Sample, Scalar, ScalarLike
from mcmeqx.nets._layers import Dense, film
from mcmeqx.nets._network import AbstractNetwork, Embedding, check_config


@dataclass(frozen=True)
class MLPConfig:
    """What an MLP is built from; `build` draws the parameters."""

    size: int
    """Elements of one sample, which has the shape (size,)."""
    width: int = 256
    """Hidden units of every layer."""
    depth: int = 3
    """Hidden layers after the first."""
    classes: int | None = None
    """Number of classes; None for an unconditional network."""
    null_class: bool = False
    """One more class, of label -1 or None: no class, as guidance needs it."""
    guidance_input: bool = False
    """Take a guidance scale as a further input."""
    embedding: int = 64
    """Width of the vector of noise level and class; even, at least 4."""

    def __post_init__(self) -> None:
        check_config(self, "size", "width", "depth")

    def build(self, *, key: Key[Array, ""]) -> "MLP":
        """A freshly initialised network; its first output is zero."""
        return MLP(self, key=key)


class MLP(AbstractNetwork):
    """Residual layers of one width between a first and a last linear map."""

    embed: Embedding
    first: Dense
    films: tuple[Dense, ...]
    layers: tuple[Dense, ...]
    last: Dense
    config: MLPConfig = eqx.field(static=True)

    def __init__(self, config: MLPConfig, *, key: Key[Array, ""]) -> None:
        embed_key, first_key, last_key, films_key, layers_key = jax.random.split(key, 5)
        width = config.width
        self.config = config
        self.embed = Embedding(config, key=embed_key)
        self.first = Dense(config.size, width, key=first_key)
        self.films = tuple(
            Dense(config.embedding, 2 * width, key=k)
            for k in jax.random.split(films_key, config.depth)
        )
        self.layers = tuple(
            Dense(width, width, key=k)
            for k in jax.random.split(layers_key, config.depth)
        )
        self.last = Dense(width, config.size, gain=0.0, key=last_key)

    def __call__(
        self,
        z: Sample,
        logsnr: Scalar,
        label: Label = None,
        *,
        guidance: ScalarLike | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Sample:
        """The raw prediction for one vector (size,); there is no dropout to key."""
        emb = self.embed(logsnr, label, guidance).astype(z.dtype)
        h = self.first(z)
        for to_film, layer in zip(self.films, self.layers, strict=True):
            h = h + layer(jax.nn.silu(film(h, to_film(emb))))
        return self.last(jax.nn.silu(h))
