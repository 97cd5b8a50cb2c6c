"""The convolutional U-Net of ADM (Dhariwal & Nichol 2021, app. A), for small images.

Levels run from full resolution down to the coarsest and back up. Each is some ResNet
blocks, with self-attention after them at chosen resolutions. A ResNet block with an
average pool in it leads to the next level, and one with nearest-neighbour upsampling
back. On the way up, where a level has one block more, each block takes in what the stem
or a block gave on the way down, by concatenation.
"""

import itertools
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mcmeqx._types import Label, Sample, Scalar, ScalarLike
from mcmeqx.nets._attention import attend
from mcmeqx.nets._blocks import ResNetBlock
from mcmeqx.nets._layers import Conv, Dense, GroupNorm, Map, NewMap, Vector
from mcmeqx.nets._network import AbstractNetwork, Embedding, check_config, check_sample
from mcmeqx.nets._resample import pool, upsample


@dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is built from, checked at once; `build` draws the parameters."""

    image_size: int
    """Side of the image, in pixels."""
    width: int = 64
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each level, in units of `width`; each but the last halves the
    image."""
    depth: int = 1
    """Blocks a level on the way down; one more on the way up."""
    attention: tuple[int, ...] = (16, 8)
    """Sides, in pixels, of the levels that have attention; the middle has it always."""
    channels: int = 3
    """Channels of the image."""
    classes: int | None = None
    """Number of classes; None for an unconditional network."""
    null_class: bool = False
    """One more class, of label -1 or None: no class, as guidance needs it."""
    guidance_input: bool = False
    """Take a guidance scale as a further input."""
    embedding: int = 256
    """Width of the vector of noise level and class."""
    head_width: int = 64
    """Channels of one attention head."""
    dropout: float = 0.0
    """Dropout rate in every block, in [0, 1)."""

    def __post_init__(self):
        check_config(self, "image_size", "width", "depth", "channels", "head_width")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                "UNetConfig.multipliers is one or more numbers of 1 or more, got "
                f"{self.multipliers}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"UNetConfig.dropout lies in [0, 1), got {self.dropout}")
        coarsest = 2 ** (len(self.multipliers) - 1)
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {coarsest}: "
                f"{len(self.multipliers) - 1} 2x2 pools"
            )
        self._check_attention()

    def _check_attention(self) -> None:
        sides = [self.image_size >> i for i in range(len(self.multipliers))]
        if not set(self.attention) <= set(sides):
            raise ValueError(
                f"UNetConfig.attention is among the levels' sides {sides}, got "
                f"{self.attention}"
            )
        levels = list(zip(sides, self.multipliers, strict=True))
        attending = [m for side, m in levels if side in self.attention]
        for multiplier in (*attending, self.multipliers[-1]):
            if self.width * multiplier % self.head_width:
                raise ValueError(
                    f"a level of width {self.width * multiplier} with attention, as "
                    "the last always has, does not split into heads of head_width "
                    f"{self.head_width}: give another head_width"
                )

    def build(self, *, key: Key[Array, ""]) -> "UNet":
        """A freshly initialised network; its first output is zero."""
        return UNet(self, key=key)


class Attention(eqx.Module):
    """x plus self-attention of its group-normalised pixels, which starts at zero."""

    norm: GroupNorm
    qkv: Dense
    out: Dense
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, head_width: int, *, key: Key[Array, ""]):
        qkv_key, out_key = jax.random.split(key)
        self.norm = GroupNorm(width)
        self.qkv = Dense(width, 3 * width, key=qkv_key)
        self.out = Dense(width, width, gain=0.0, key=out_key)
        self.heads = width // head_width

    def __call__(self, x: Map) -> Map:
        """The map after attention, in the shape of `x`."""
        pixels = x.shape[0] * x.shape[1]
        qkv = jnp.split(self.qkv(self.norm(x)), 3, axis=-1)
        q, k, v = (a.reshape(pixels, self.heads, -1) for a in qkv)
        attended = attend(q, k, v)
        return x + self.out(attended.reshape(x.shape))


class Block(eqx.Module):
    """A ResNet block, and attention where there is some."""

    resnet: ResNetBlock
    attention: Attention | None

    def __init__(
        self,
        config: UNetConfig,
        n_in: int,
        n_out: int,
        *,
        attend: bool,
        key: Key[Array, ""],
    ):
        resnet_key, attention_key = jax.random.split(key)
        self.resnet = ResNetBlock(
            n_in, n_out, config.embedding, config.dropout, key=resnet_key
        )
        self.attention = (
            Attention(n_out, config.head_width, key=attention_key) if attend else None
        )

    def __call__(self, x: Map, emb: Vector, key: Key[Array, ""] | None) -> NewMap:
        """The map after the block, with `n_out` channels."""
        h = self.resnet(x, emb, key)
        return h if self.attention is None else self.attention(h)


class UNet(AbstractNetwork):
    """A U-shaped network of ResNet blocks, with attention at low resolutions."""

    embed: Embedding
    stem: Conv
    down: tuple[tuple[Block, ...], ...]
    shrink: tuple[ResNetBlock, ...]
    middle: tuple[Block, Block]
    up: tuple[tuple[Block, ...], ...]
    grow: tuple[ResNetBlock, ...]
    norm: GroupNorm
    head: Conv
    config: UNetConfig = eqx.field(static=True)

    def __init__(self, config: UNetConfig, *, key: Key[Array, ""]):
        keys = (jax.random.fold_in(key, i) for i in itertools.count())

        def block(n_in: int, n_out: int, attends: bool) -> Block:
            return Block(config, n_in, n_out, attend=attends, key=next(keys))

        def between(n: int) -> ResNetBlock:
            return ResNetBlock(n, n, config.embedding, config.dropout, key=next(keys))

        self.config = config
        self.embed = Embedding(config, key=next(keys))
        n = config.width
        self.stem = Conv(config.channels, n, key=next(keys))
        levels = [
            (config.width * m, config.image_size >> i in config.attention)
            for i, m in enumerate(config.multipliers)
        ]
        down, up, skips = [], [], [n]
        for i, (width, attends) in enumerate(levels):
            skips += [n] if i else []
            widths = [n, *[width] * config.depth]
            down.append(tuple(block(a, width, attends) for a in widths[:-1]))
            skips += widths[1:]
            n = width
        self.down = tuple(down)
        self.middle = (block(n, n, True), block(n, n, False))
        for width, attends in levels[::-1]:
            widths = [n, *[width] * config.depth]
            up.append(tuple(block(a + skips.pop(), width, attends) for a in widths))
            n = width
        self.up = tuple(up)
        outer = [width for width, _ in levels]
        self.shrink = tuple(between(width) for width in outer[:-1])
        self.grow = tuple(between(width) for width in outer[:0:-1])
        self.norm = GroupNorm(n)
        self.head = Conv(n, config.channels, gain=0.0, key=next(keys))

    def __call__(
        self,
        z: Sample,
        logsnr: Scalar,
        label: Label = None,
        *,
        guidance: ScalarLike | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Sample:
        """The raw prediction for one image (channel, height, width)."""
        check_sample(z, self.config)
        keys = (
            None if key is None else jax.random.fold_in(key, i)
            for i in itertools.count()
        )
        emb = self.embed(logsnr, label, guidance).astype(z.dtype)
        h = self.stem(z.transpose(1, 2, 0))
        skips = [h]
        for i, level in enumerate(self.down):
            if i:
                h = self.shrink[i - 1](h, emb, next(keys), pool)
                skips.append(h)
            for block in level:
                h = block(h, emb, next(keys))
                skips.append(h)
        for block in self.middle:
            h = block(h, emb, next(keys))
        for i, level in enumerate(self.up):
            h = self.grow[i - 1](h, emb, next(keys), upsample) if i else h
            for block in level:
                h = block(jnp.concatenate([h, skips.pop()], -1), emb, next(keys))
        return self.head(jax.nn.silu(self.norm(h))).transpose(2, 0, 1)
