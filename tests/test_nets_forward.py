"""What the networks compute, written again in NumPy, in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mcmeqx.nets import MLPConfig, Stage, UNetConfig, UViTConfig

RNG = np.random.default_rng(0)


def silu(x):
    return x * scipy.special.expit(x)


def dense(layer, x):
    return x @ np.float64(layer.weight) + np.float64(layer.bias)


def conv(layer, x):
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return np.float64(layer.bias) + sum(
        padded[i : i + height, j : j + width] @ np.float64(layer.weight[i, j])
        for i in range(3)
        for j in range(3)
    )


def group_norm(norm, x, groups):
    parts = np.split(x, groups, -1)
    parts = [(p - p.mean()) / np.sqrt(p.var() + 1e-5) for p in parts]
    return np.concatenate(parts, -1) * np.float64(norm.scale) + np.float64(norm.bias)


def rms_norm(norm, x):
    square = np.mean(x**2, -1, keepdims=True)
    return x / np.sqrt(square + 1e-6) * np.float64(norm.scale)


def film(layer, h, emb):
    scale, shift = np.split(dense(layer, emb), 2)
    return h * (1 + scale) + shift


def attention(q, k, v):
    """Tokens first; heads in the middle."""
    out = np.empty_like(q)
    for n in range(q.shape[1]):
        scores = q[:, n] @ k[:, n].T / np.sqrt(q.shape[-1])
        out[:, n] = scipy.special.softmax(scores, -1) @ v[:, n]
    return out


def pool(x):
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def grow(x):
    return np.kron(x, np.ones((2, 2, 1)))


def embedding(embed, logsnr, label, guidance=None):
    width = embed.project.weight.shape[1]
    u = np.arctan(np.exp(-logsnr / 2)) / (np.pi / 2)
    phases = u * np.geomspace(np.pi / 2, 1000, width // 2)
    features = np.concatenate([np.sin(phases), np.cos(phases)])
    h = np.float64(embed.project.weight) @ features + np.float64(embed.project.bias)
    if guidance is not None:
        phases = np.pi / 2 * guidance / (1 + guidance) * np.arange(1, 17)
        features = np.concatenate([np.sin(phases), np.cos(phases)])
        h = h + np.float64(embed.guidance) @ features
    return silu(h + np.float64(embed.classes[label]))


def resnet(block, x, emb, groups, resample=lambda x: x):
    """`groups` gives those of a width."""
    h = silu(group_norm(block.norm_in, x, groups(x.shape[-1])))
    h = conv(block.conv_in, resample(h))
    h = group_norm(block.norm_out, h, groups(h.shape[-1]))
    x = resample(x)
    x = x if block.project is None else dense(block.project, x)
    return x + conv(block.conv_out, silu(film(block.film, h, emb)))


def transformer(block, x, emb, head_width):
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    h = silu(dense(block.mlp_in, rms_norm(block.norm_mlp, x)))
    x = x + dense(block.mlp_out, film(block.film, h, emb))
    qkv = np.split(dense(block.qkv, rms_norm(block.norm_attention, x)), 3, -1)
    q, k, v = (a.reshape(len(x), -1, head_width) for a in qkv)
    h = attention(rms_norm(block.norm_q, q), rms_norm(block.norm_k, k), v)
    return (x + dense(block.out, h.reshape(x.shape))).reshape(shape)


def one(stacked, i):
    return jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, stacked)


def uvit(network, z, logsnr, label):
    config, skips = network.config, []
    emb = embedding(network.embed, logsnr, label)

    def groups(width):
        return min(width, 32, width // config.group_width)

    def blocks(stage, part):
        for i in range(stage.depth):
            if stage.kind == "resnet":
                fusion = None if part.fusions is None else part.fusions[i]
                block = part.blocks[i]
                yield fusion, lambda h, b=block: resnet(b, h, emb, groups)
            else:
                fusion = None if part.fusions is None else one(part.fusions, i)
                block = one(part.blocks, i)
                yield (
                    fusion,
                    lambda h, b=block: transformer(b, h, emb, config.head_width),
                )

    side, p = config.image_size // config.patch, config.patch
    h = np.empty((side, side, p * p * config.channels))
    for i, j, a, b in np.ndindex(side, side, p, p):
        h[i, j].reshape(p, p, -1)[a, b] = z[:, p * i + a, p * j + b]
    h = conv(network.stem, h)
    *outer, middle = config.stages
    for i, stage in enumerate(outer):
        for _, block in blocks(stage, network.down[i]):
            h = block(h)
            skips.append(h)
        h = dense(network.narrow_to_wide[i], pool(h))
    h = h + np.float64(network.position)
    for _, block in blocks(middle, network.middle):
        h = block(h)
    for i, stage in reversed(list(enumerate(outer))):
        h = grow(dense(network.wide_to_narrow[i], h))
        for fusion, block in blocks(stage, network.up[i]):
            skip = rms_norm(fusion.norm_skip, skips.pop())
            h = block((rms_norm(fusion.norm_h, h) + skip) / np.sqrt(2))
    assert not skips
    h = conv(network.head, silu(group_norm(network.norm, h, groups(h.shape[-1]))))
    out = np.empty(z.shape)
    for i, j, a, b in np.ndindex(side, side, p, p):
        out[:, p * i + a, p * j + b] = h[i, j].reshape(p, p, -1)[a, b]
    return out


def unet(network, z, logsnr, label):
    config = network.config
    emb = embedding(network.embed, logsnr, label)

    def groups(width):
        return np.gcd(width, 32)

    def run(block, h):
        h = resnet(block.resnet, h, emb, groups)
        a = block.attention
        if a is None:
            return h
        qkv = np.split(dense(a.qkv, group_norm(a.norm, h, groups(h.shape[-1]))), 3, -1)
        heads = (b.reshape(h.shape[0] ** 2, -1, config.head_width) for b in qkv)
        return h + dense(a.out, attention(*heads).reshape(h.shape))

    h = conv(network.stem, z.transpose(1, 2, 0))
    skips = [h]
    for i, level in enumerate(network.down):
        if i:
            h = resnet(network.shrink[i - 1], h, emb, groups, pool)
            skips.append(h)
        for block in level:
            h = run(block, h)
            skips.append(h)
    for block in network.middle:
        h = run(block, h)
    for i, level in enumerate(network.up):
        if i:
            h = resnet(network.grow[i - 1], h, emb, groups, grow)
        for block in level:
            h = run(block, np.concatenate([h, skips.pop()], -1))
    assert not skips
    h = silu(group_norm(network.norm, h, groups(h.shape[-1])))
    return conv(network.head, h).transpose(2, 0, 1)


UVIT = UViTConfig(
    16,
    (Stage("resnet", 8, 2), Stage("transformer", 12, 3), Stage("transformer", 16, 2)),
    channels=2,
    classes=3,
    embedding=12,
    head_width=4,
    group_width=4,
    patch=2,
)
UNET = UNetConfig(
    8,
    width=8,
    multipliers=(1, 2),
    depth=2,
    attention=(8,),
    channels=2,
    classes=3,
    embedding=12,
    head_width=4,
)


MLP = MLPConfig(5, width=12, depth=2, classes=3, embedding=12, guidance_input=True)


def mlp(network, z, logsnr, label, guidance):
    emb = embedding(network.embed, logsnr, label, guidance)
    h = dense(network.first, z)
    for to_film, layer in zip(network.films, network.layers, strict=True):
        h = h + dense(layer, silu(film(to_film, h, emb)))
    return dense(network.last, silu(h))


@pytest.mark.parametrize(
    ("config", "formula"),
    [(UVIT, uvit), (UNET, unet), (MLP, mlp)],
    ids=["UViT", "UNet", "MLP"],
)
def test_a_network_is_its_formula(config, formula):
    network = eqx.filter_jit(config.build)(key=jax.random.key(0))

    def fresh(a):
        # Of the size that keeps maps near 1; where they begin at 0 or 1, around that.
        scale = 0.3 if a.ndim < 2 else a.shape[-2] ** -0.5 / (3 if a.ndim == 4 else 1)
        centre = float(a.mean()) if a.ndim < 2 else 0.0
        return jnp.asarray(centre + scale * RNG.normal(size=a.shape), a.dtype)

    arrays, static = eqx.partition(network, eqx.is_array)
    network = eqx.combine(jax.tree.map(fresh, arrays), static)
    shape = (5,) if config is MLP else (config.channels, *[config.image_size] * 2)
    z = RNG.normal(size=shape)
    for logsnr, label, guidance in ((-3.0, 0, 0.5), (1.5, 2, 2.0)):
        scale = {"guidance": guidance} if config is MLP else {}
        inputs = (jnp.float32(z), jnp.float32(logsnr), jnp.int32(label))
        found = eqx.filter_jit(network)(*inputs, **scale)
        expected = formula(network, z, logsnr, label, **scale)
        assert 0.1 < expected.std() < 100
        np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())
