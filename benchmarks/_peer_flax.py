"""Plain Flax as a contestant: layers of `flax.linen`, channels last, batched."""

# pyright: reportMissingImports=false

from typing import Any

import flax
import jax
import jax.numpy as jnp
from _plain_jax import contestant, features
from _worker import serve
from flax import linen as nn

WIDTHS, EMBEDDING, HEAD = (64, 128, 128), 256, 64


class ResNet(nn.Module):
    """Norm, swish, convolution, norm, FiLM, swish, convolution, and a skip."""

    width: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Any, emb: Any) -> Any:
        """The map after the block."""
        h = resampled(nn.swish(nn.GroupNorm(32)(x)), self.scale)
        h = nn.GroupNorm(32)(nn.Conv(self.width, (3, 3))(h))
        film = nn.Dense(2 * self.width)(emb)[:, None, None]
        scale, shift = jnp.split(film, 2, -1)
        h = nn.Conv(self.width, (3, 3))(nn.swish(h * (1 + scale) + shift))
        x = resampled(x, self.scale)
        return h + (x if x.shape[-1] == self.width else nn.Dense(self.width)(x))


def resampled(x: Any, scale: float) -> Any:
    """The maps at `scale` times their sides."""
    if scale == 2.0:
        return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return nn.avg_pool(x, (2, 2), (2, 2)) if scale == 0.5 else x


class Attention(nn.Module):
    """Self-attention of the pixels of a normalised map."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The maps after attention."""
        batch, height, width, channels = x.shape
        qkv = nn.Dense(3 * channels)(nn.GroupNorm(32)(x))
        qkv = qkv.reshape(batch, height * width, 3, -1, HEAD)
        q, k, v = (qkv[:, :, i] for i in range(3))
        h = jax.nn.dot_product_attention(q, k, v)
        return x + nn.Dense(channels)(h.reshape(x.shape))


class UNet(nn.Module):
    """The shape of `mcmeqx.nets.unet32`."""

    @nn.compact
    def __call__(self, z: Any, t: Any) -> Any:
        """The raw predictions for a batch (n, height, width, channel)."""

        def pair(h: Any, n: int) -> Any:
            h = ResNet(n)(h, emb)
            return Attention()(h) if n > 64 else h

        emb = nn.swish(nn.Dense(EMBEDDING)(features(t)))
        h = nn.Conv(WIDTHS[0], (3, 3))(z)
        skips = [h]
        for level, n in enumerate(WIDTHS):
            if level:
                h = ResNet(WIDTHS[level - 1], 0.5)(h, emb)
                skips.append(h)
            h = pair(h, n)
            skips.append(h)
        h = ResNet(h.shape[-1])(pair(h, h.shape[-1]), emb)
        for level, n in reversed(list(enumerate(WIDTHS))):
            for _ in range(2):
                h = pair(jnp.concatenate([h, skips.pop()], -1), n)
            h = ResNet(n, 2.0)(h, emb) if level else h
        return nn.Conv(3, (3, 3))(nn.swish(nn.GroupNorm(32)(h)))


def main() -> None:
    """Serve."""
    network = UNet()
    z, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    params = jax.jit(network.init)(jax.random.key(0, impl="rbg"), z, t)
    serve(contestant(network.apply, params, f"flax {flax.__version__}", "NHWC"))


if __name__ == "__main__":
    main()
