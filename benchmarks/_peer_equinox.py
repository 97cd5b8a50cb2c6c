"""Plain Equinox as a contestant: layers of `eqx.nn`, channel first, under vmap."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _plain_jax import contestant, features
from _worker import serve
from equinox import nn

WIDTHS, EMBEDDING, HEAD = (64, 128, 128), 256, 64


class ResNet(eqx.Module):
    """Norm, swish, convolution, norm, FiLM, swish, convolution, and a skip."""

    norms: list[nn.GroupNorm]
    convs: list[nn.Conv2d]
    film: nn.Linear
    skip: nn.Conv2d | nn.Identity
    scale: float = eqx.field(static=True)

    def __init__(self, n_in: int, n_out: int, key: jax.Array, scale: float = 1.0):
        a, b, c, d = jax.random.split(key, 4)
        self.norms = [nn.GroupNorm(32, n_in), nn.GroupNorm(32, n_out)]
        self.convs = [
            nn.Conv2d(n_in, n_out, 3, padding=1, key=a),
            nn.Conv2d(n_out, n_out, 3, padding=1, key=b),
        ]
        self.film = nn.Linear(EMBEDDING, 2 * n_out, key=c)
        self.skip = nn.Identity()
        if n_in != n_out:
            self.skip = nn.Conv2d(n_in, n_out, 1, key=d)
        self.scale = scale

    def __call__(self, x: Any, emb: Any) -> Any:
        """The map after the block."""
        h = resampled(jax.nn.silu(self.norms[0](x)), self.scale)
        scale, shift = jnp.split(self.film(emb)[:, None, None], 2)
        h = self.norms[1](self.convs[0](h)) * (1 + scale) + shift
        return self.skip(resampled(x, self.scale)) + self.convs[1](jax.nn.silu(h))


def resampled(x: Any, scale: float) -> Any:
    """The map at `scale` times its sides."""
    if scale == 2.0:
        return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return nn.AvgPool2d(2, 2)(x) if scale == 0.5 else x


class Attention(eqx.Module):
    """Self-attention of the pixels of a normalised map."""

    norm: nn.GroupNorm
    qkv: nn.Conv2d
    out: nn.Conv2d

    def __init__(self, width: int, key: jax.Array):
        a, b = jax.random.split(key)
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, key=a)
        self.out = nn.Conv2d(width, width, 1, key=b)

    def __call__(self, x: Any) -> Any:
        """The map after attention."""
        channels, height, width = x.shape
        tokens = self.qkv(self.norm(x)).reshape(3, -1, HEAD, height * width)
        q, k, v = tokens.transpose(0, 3, 1, 2)
        h = jax.nn.dot_product_attention(q, k, v).transpose(1, 2, 0)
        return x + self.out(h.reshape(channels, height, width))


class UNet(eqx.Module):
    """The shape of `mcmeqx.nets.unet32`."""

    embed: nn.Linear
    stem: nn.Conv2d
    blocks: list[list[Any]]
    norm: nn.GroupNorm
    head: nn.Conv2d

    def __init__(self, key: jax.Array):
        keys = iter(jax.random.split(key, 32))

        def pair(n_in: int, n_out: int) -> list[Any]:
            block = ResNet(n_in, n_out, next(keys))
            return [block, Attention(n_out, next(keys))] if n_out > 64 else [block]

        def between(n: int, scale: float) -> list[Any]:
            return [ResNet(n, n, next(keys), scale)]

        a, b, c = WIDTHS
        self.embed = nn.Linear(256, EMBEDDING, key=next(keys))
        self.stem = nn.Conv2d(3, a, 3, padding=1, key=next(keys))
        middle = [*pair(c, c), ResNet(c, c, next(keys))]
        down = [pair(a, a), between(a, 0.5), pair(a, b), between(b, 0.5), pair(b, c)]
        up = [pair(c + c, c), pair(c + b, c), between(c, 2.0)]
        up += [pair(c + b, b), pair(b + a, b), between(b, 2.0)]
        up += [pair(b + a, a), pair(a + a, a)]
        self.blocks = [*down, middle, *up]
        self.norm = nn.GroupNorm(32, a)
        self.head = nn.Conv2d(a, 3, 3, padding=1, key=next(keys))

    def __call__(self, z: Any, t: Any) -> Any:
        """The raw prediction for one image (channel, height, width)."""
        emb = jax.nn.silu(self.embed(features(t[None])[0]))
        h = self.stem(z)
        skips = [h]
        for i, layers in enumerate(self.blocks):
            grows = isinstance(layers[0], ResNet) and layers[0].scale == 2.0
            if i > 5 and not grows:
                h = jnp.concatenate([h, skips.pop()])
            for layer in layers:
                h = layer(h, emb) if isinstance(layer, ResNet) else layer(h)
            skips += [h] if i < 5 else []
        return self.head(jax.nn.silu(self.norm(h)))


def main() -> None:
    """Serve."""
    params, static = eqx.partition(UNet(jax.random.key(0)), eqx.is_array)

    def apply(params: Any, z: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(z, t)

    serve(contestant(apply, params, f"equinox {eqx.__version__}", "NCHW"))


if __name__ == "__main__":
    main()
