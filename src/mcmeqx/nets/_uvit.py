"""The UViT of simple diffusion (Hoogeboom et al. 2023), the paper's network.

Stages run from full resolution down to the middle and back up through mirrored ones.
An average pool ends each stage on the way down, nearest-neighbour upsampling opens each
on the way up, 1x1 projections change the width, and every block on the way up takes in
its partner's output on the way down. Many equal transformer blocks are one stacked
block under `lax.scan`, so compile time does not grow with depth; few are unrolled, and
so are convolutions, whose gradients are slow inside a loop on CPUs.
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._types import Label, Sample, Scalar, ScalarLike
from mcmeqx.nets._layers import (
    Conv,
    Dense,
    Fusion,
    GroupNorm,
    Map,
    ResNetBlock,
    TransformerBlock,
    Vector,
    fold,
    pool,
    unfold,
    upsample,
    wide,
)
from mcmeqx.nets._network import AbstractNetwork, Embedding, check_conditioning


@dataclass(frozen=True)
class Stage:
    """Blocks of one kind at one resolution."""

    kind: Literal["resnet", "transformer"]
    """What the blocks are."""
    width: int
    """Channels."""
    depth: int
    """Blocks on the way down, and again on the way up; once in the middle."""
    dropout: float = 0.0
    """Dropout rate in every block, in [0, 1)."""


@dataclass(frozen=True)
class UViTConfig:
    """What a UViT is built from; `build` checks it and draws the parameters."""

    image_size: int
    """Side of the image, in pixels."""
    stages: tuple[Stage, ...]
    """From full resolution to the middle; each but the last ends in a 2x2 pool."""
    channels: int = 3
    """Channels of the image."""
    classes: int | None = None
    """Number of classes; None for an unconditional network."""
    null_class: bool = False
    """One more class, of label -1 or None: no class, as guidance needs it."""
    guidance_input: bool = False
    """Take a guidance scale as a further input."""
    embedding: int = 1024
    """Width of the vector of noise level and class."""
    head_width: int = 64
    """Channels of one attention head."""
    group_width: int = 1
    """Fewest channels of a normalisation group, of which there are 32 at most: 4 for
    narrow networks (as in Karras et al. 2022), whose training gains much by it."""
    patch: int = 1
    """Side of the pixel blocks that are folded into channels before the first stage."""
    remat: bool = False
    """Compute every block again in the backward pass instead of storing its insides.
    A compiler for CPUs undoes this for ResNet blocks."""

    def __post_init__(self):
        if not self.stages:
            raise ValueError(
                "UViTConfig.stages is empty; give at least the middle stage"
            )
        for name in ("image_size", "channels", "head_width", "group_width", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"UViTConfig.{name} is at least 1, got {getattr(self, name)}"
                )
        check_conditioning("UViTConfig", self.embedding, self.classes, self.null_class)
        coarsest = self.patch * 2 ** (len(self.stages) - 1)
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {coarsest}: patch "
                f"{self.patch} and {len(self.stages) - 1} 2x2 pools"
            )
        for stage in self.stages:
            self._check_stage(stage)

    def _check_stage(self, stage: Stage) -> None:
        if stage.kind not in ("resnet", "transformer"):
            raise ValueError(
                f"a stage's kind is resnet or transformer, got {stage.kind}"
            )
        if stage.kind == "transformer" and stage.width % self.head_width:
            raise ValueError(
                f"a transformer stage of width {stage.width} does not split into "
                f"heads of head_width {self.head_width}"
            )
        if min(stage.width, stage.depth) < 1 or not 0.0 <= stage.dropout < 1.0:
            raise ValueError(
                f"a stage needs width >= 1, depth >= 1 and dropout in [0, 1), "
                f"got {stage}"
            )

    def build(self, *, key: Key[Array, ""]) -> "UViT":
        """A freshly initialised network; its first output is zero."""
        return UViT(self, key=key)


# A scan of few blocks costs more in copies than its compile time is worth: with six
# blocks of width 128, unrolled, a small UViT trains 1.15 times as fast on two CPU cores
# and samples 1.24 times as fast.
_UNROLL = 6


class ResNets(eqx.Module):
    """The ResNet blocks of one stage, unrolled."""

    blocks: tuple[ResNetBlock, ...]
    fusions: tuple[Fusion, ...] | None
    remat: bool = eqx.field(static=True)

    def __init__(
        self, config: UViTConfig, stage: Stage, *, fuse: bool, key: Key[Array, ""]
    ):
        keys, n = jax.random.split(key, stage.depth), stage.width
        self.blocks = tuple(
            ResNetBlock(
                n,
                n,
                config.embedding,
                stage.dropout,
                group_width=config.group_width,
                key=k,
            )
            for k in keys
        )
        self.fusions = tuple(Fusion(n) for _ in keys) if fuse else None
        self.remat = config.remat

    def __call__(
        self, h: Map, emb: Vector, skips: Array | None, key: Key[Array, ""] | None
    ) -> tuple[Map, Array]:
        """The map after all blocks, and every block's output, stacked.

        `skips` are the outputs of the stage that this one mirrors.
        """
        count = len(self.blocks)
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        outputs = []
        for i, block in enumerate(self.blocks):
            if self.fusions is not None and skips is not None:
                h = self.fusions[i](h, skips[-1 - i])
            run = eqx.filter_checkpoint(block) if self.remat else block
            h = run(h, emb, keys[i])
            outputs.append(h)
        return h, jnp.stack(outputs)


class Transformers(eqx.Module):
    """The transformer blocks of one stage: one stacked block under a scan."""

    blocks: TransformerBlock
    fusions: Fusion | None
    depth: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self, config: UViTConfig, stage: Stage, *, fuse: bool, key: Key[Array, ""]
    ):
        def block(key: Key[Array, ""]) -> tuple[TransformerBlock, Fusion | None]:
            arguments = (stage.width, config.embedding, stage.dropout)
            fusion = Fusion(stage.width) if fuse else None
            return TransformerBlock(*arguments, config.head_width, key=key), fusion

        keys = jax.random.split(key, stage.depth)
        self.blocks, self.fusions = eqx.filter_vmap(block)(keys)
        self.depth, self.remat = stage.depth, config.remat

    def __call__(
        self, h: Map, emb: Vector, skips: Array | None, key: Key[Array, ""] | None
    ) -> tuple[Map, Array]:
        """The map after all blocks, and every block's output, stacked.

        `skips` are the outputs of the stage that this one mirrors.
        """
        shape = h.shape
        keys = None if key is None else jax.random.split(key, self.depth)
        arrays, static = eqx.partition((self.blocks, self.fusions), eqx.is_array)
        if skips is not None:
            skips = skips[::-1].reshape(self.depth, -1, shape[-1])

        def body(tokens, inputs):
            arrays, skip, key = inputs
            block, fusion = eqx.combine(arrays, static)
            tokens = tokens if skip is None else fusion(tokens, skip)
            tokens = block(tokens, emb, key)
            return tokens, tokens

        few = self.depth <= _UNROLL
        # In a loop no compiler can share the two computations of a block; unrolled, the
        # one for CPUs does, and the memory is back.
        body = jax.checkpoint(body, prevent_cse=False) if self.remat else body
        tokens, outputs = jax.lax.scan(
            body,
            h.reshape(-1, shape[-1]),
            (arrays, skips, keys),
            unroll=self.depth if few and not self.remat else 1,
        )
        return tokens.reshape(shape), outputs.reshape(-1, *shape)


Blocks = ResNets | Transformers


def _blocks(
    config: UViTConfig, stage: Stage, *, fuse: bool, key: Key[Array, ""]
) -> Blocks:
    kind = ResNets if stage.kind == "resnet" else Transformers
    return kind(config, stage, fuse=fuse, key=key)


class UViT(AbstractNetwork):
    """A U-shaped network, convolutional outside and a vision transformer inside."""

    embed: Embedding
    stem: Conv
    down: tuple[Blocks, ...]
    narrow_to_wide: tuple[Dense, ...]
    position: Float[Array, "height width channel"]
    middle: Blocks
    wide_to_narrow: tuple[Dense, ...]
    up: tuple[Blocks, ...]
    norm: GroupNorm
    head: Conv
    config: UViTConfig = eqx.field(static=True)

    def __init__(self, config: UViTConfig, *, key: Key[Array, ""]):
        keys = iter(jax.random.split(key, 5 + 4 * len(config.stages)))
        outer, middle = config.stages[:-1], config.stages[-1]
        pairs = list(
            zip(
                [s.width for s in outer],
                [s.width for s in config.stages[1:]],
                strict=True,
            )
        )
        folded = config.channels * config.patch**2
        first = config.stages[0].width
        side = config.image_size // (config.patch * 2 ** len(outer))
        self.config = config
        self.embed = Embedding(
            config.embedding,
            config.classes,
            null_class=config.null_class,
            guidance_input=config.guidance_input,
            key=next(keys),
        )
        self.stem = Conv(folded, first, key=next(keys))
        self.down = tuple(_blocks(config, s, fuse=False, key=next(keys)) for s in outer)
        self.narrow_to_wide = tuple(Dense(a, b, key=next(keys)) for a, b in pairs)
        position = jax.random.normal(
            next(keys), (side, side, middle.width), jnp.float32
        )
        self.position = 0.02 * position
        self.middle = _blocks(config, middle, fuse=False, key=next(keys))
        self.wide_to_narrow = tuple(Dense(b, a, key=next(keys)) for a, b in pairs)
        self.up = tuple(_blocks(config, s, fuse=True, key=next(keys)) for s in outer)
        self.norm = GroupNorm(first, config.group_width)
        self.head = Conv(first, folded, gain=0.0, key=next(keys))

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
        count = 2 * len(self.down) + 1
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        emb = self.embed(logsnr, label, guidance).astype(z.dtype)
        h = self.stem(fold(z.transpose(1, 2, 0), self.config.patch))
        skips = []
        for stage, widen in zip(self.down, self.narrow_to_wide, strict=True):
            h, outputs = stage(h, emb, None, keys.pop())
            skips.append(outputs)
            h = widen(pool(h))
        h = (wide(h) + wide(self.position)).astype(h.dtype)
        h, _ = self.middle(h, emb, None, keys.pop())
        for stage, narrow in zip(self.up[::-1], self.wide_to_narrow[::-1], strict=True):
            h = upsample(narrow(h))
            h, _ = stage(h, emb, skips.pop(), keys.pop())
        out = self.head(jax.nn.silu(self.norm(h)))
        return unfold(out, self.config.patch).transpose(2, 0, 1)
