"""The stages of a UViT: blocks of one kind at one resolution.

Many equal transformer blocks are one stacked block under `lax.scan`, so compile time
does not grow with depth; few are unrolled, and so are convolutions, whose gradients are
slow inside a loop on CPUs.
"""

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mcmeqx.nets._blocks import Fusion, ResNetBlock, TransformerBlock
from mcmeqx.nets._layers import Map, Vector


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


# A scan of few blocks costs more in copies than its compile time is worth: with six
# blocks of width 128, unrolled, a small UViT trains 1.15 times as fast on two CPU cores
# and samples 1.24 times as fast.
UNROLLED = 6

# What a block under the scan keeps for its backward pass: products, attention, the
# statistics of norms and the masks of dropout. The rest takes longer to write and read
# than to compute again, and more memory.
_KEPT = ("dot_general", "dot_product_attention_fwd_wrapper", "rsqrt", "lt")


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _KEPT


class ResNets(eqx.Module):
    """The ResNet blocks of one stage, unrolled."""

    blocks: tuple[ResNetBlock, ...]
    fusions: tuple[Fusion, ...] | None
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        stage: Stage,
        embedding: int,
        group_width: int,
        *,
        fuse: bool,
        remat: bool,
        key: Key[Array, ""],
    ):
        keys, n = jax.random.split(key, stage.depth), stage.width
        arguments = (n, n, embedding, stage.dropout)
        self.blocks = tuple(
            ResNetBlock(*arguments, group_width=group_width, key=k) for k in keys
        )
        self.fusions = tuple(Fusion(n) for _ in keys) if fuse else None
        self.remat = remat

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
        self,
        stage: Stage,
        embedding: int,
        head_width: int,
        *,
        fuse: bool,
        remat: bool,
        key: Key[Array, ""],
    ):
        arguments = (stage.width, embedding, stage.dropout, head_width)

        def block(key: Key[Array, ""]) -> tuple[TransformerBlock, Fusion | None]:
            fusion = Fusion(stage.width) if fuse else None
            return TransformerBlock(*arguments, key=key), fusion

        keys = jax.random.split(key, stage.depth)
        self.blocks, self.fusions = eqx.filter_vmap(block)(keys)
        self.depth, self.remat = stage.depth, remat

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

        few = self.depth <= UNROLLED
        # In a loop no compiler can share the two computations of a block; unrolled, the
        # one for CPUs does, and the memory is back.
        policy = None if self.remat else _is_kept
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        tokens, outputs = jax.lax.scan(
            body,
            h.reshape(-1, shape[-1]),
            (arrays, skips, keys),
            unroll=self.depth if few and not self.remat else 1,
        )
        return tokens.reshape(shape), outputs.reshape(-1, *shape)


Blocks = ResNets | Transformers
