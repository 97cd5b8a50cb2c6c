"""The UViT of simple diffusion (Hoogeboom et al. 2023), the paper's network.

Stages run from full resolution down to the middle and back up through mirrored ones.
An average pool ends each stage on the way down, nearest-neighbour upsampling opens each
on the way up, 1x1 projections change the width, and every block on the way up takes in
its partner's output on the way down.
"""

import itertools
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcmeqx._types import Label, Sample, Scalar, ScalarLike
from mcmeqx.nets._layers import Conv, Dense, GroupNorm, wide
from mcmeqx.nets._network import AbstractNetwork, Embedding, check_config, check_sample
from mcmeqx.nets._resample import fold, pool, unfold, upsample
from mcmeqx.nets._uvit_stages import Blocks, ResNets, Stage, Transformers


@dataclass(frozen=True)
class UViTConfig:
    """What a UViT is built from, checked at once; `build` draws the parameters."""

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
        check_config(
            self, "image_size", "channels", "head_width", "group_width", "patch"
        )
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


def _blocks(
    config: UViTConfig, stage: Stage, *, fuse: bool, key: Key[Array, ""]
) -> Blocks:
    width, options = config.embedding, {"remat": config.remat, "key": key}
    if stage.kind == "resnet":
        return ResNets(stage, width, config.group_width, fuse=fuse, **options)
    return Transformers(stage, width, config.head_width, fuse=fuse, **options)


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
        pairs = list(itertools.pairwise(stage.width for stage in config.stages))
        folded = config.channels * config.patch**2
        first = config.stages[0].width
        side = config.image_size // (config.patch * 2 ** len(outer))
        self.config = config
        self.embed = Embedding(config, key=next(keys))
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
        check_sample(z, self.config)
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
