import collections
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

from mcmeqx.nets import Stage, UNetConfig, UViTConfig, _blocks
from mcmeqx.nets._dropout import dropout
from mcmeqx.nets._network import network_shapes

KEY = jax.random.key(0)
SIZE = 2**20


def mask(rate, key=KEY, shape=(SIZE,)):
    """Where ones are kept, once all are known to be 0 or the one other value."""
    out = np.asarray(dropout(jnp.ones(shape), rate, key), np.float64)
    kept = out > 0
    # Inverted dropout (Srivastava et al. 2014, sec. 10): the mean stays.
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=2**-16 / (1 - rate))
    assert np.all(out[~kept] == 0.0)
    return kept


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
def test_the_share_that_falls_is_the_rate_in_every_part(rate):
    kept = mask(rate)
    for parts in (1, 4, 64):
        share = kept.reshape(parts, -1).mean(1)
        sigma = np.sqrt(rate * (1 - rate) / (SIZE // parts))
        assert np.abs(share - (1 - rate)).max() < 5 * sigma + 2**-17


def test_elements_fall_each_by_itself():
    """Those of one hash lie a fourth of the array apart; keys and neighbours too."""
    kept = mask(0.2).astype(float)
    others = [mask(0.2, jax.random.key(i)).astype(float) for i in (1, 2)]
    lags = (1, 2, 3, 4, 256, SIZE // 4, SIZE // 2, 3 * SIZE // 4)
    pairs = [(kept, np.roll(kept, lag)) for lag in lags]
    pairs += itertools.combinations([kept, *others], 2)
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(SIZE)
    # Runs of four in a row, as often as independence has it: a chi-squared of 15.
    codes = np.bincount(kept.astype(int).reshape(-1, 4) @ [8, 4, 2, 1], minlength=16)
    ones = np.array([bin(code).count("1") for code in range(16)])
    expected = SIZE / 4 * 0.8**ones * 0.2 ** (4 - ones)
    assert np.sum((codes - expected) ** 2 / expected) < 45  # p = 8e-5


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5, 1), (7, 3), (2, 3, 5)])
def test_any_shape_will_do_and_rows_of_a_batch_are_as_alone(shape):
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    keys = jax.random.split(KEY, 3)
    rows = jax.vmap(lambda x, key: dropout(x, 0.5, key))(x, keys)
    for row, own, key in zip(rows, x, keys, strict=True):
        assert jnp.all((row == 0) | (row == 2 * own))
        np.testing.assert_array_equal(row, dropout(own, 0.5, key))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_what_stays_is_scaled_in_float32_or_wider_and_so_is_its_gradient(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jax.random.normal(jax.random.key(1), (4096,), dtype)
        out, pull = jax.vjp(lambda x: dropout(x, 0.1, KEY), x)
        (slope,) = pull(jnp.ones_like(x))
        assert out.dtype == slope.dtype == dtype
        scale = 65536 / 58982  # the nearest to 1 / 0.9
        exact = np.asarray(x, np.float64) * scale
        kept = np.asarray(out, np.float64) != 0
        # Of a product in float32 that is rounded, or of a rounded factor's product.
        eps = float(jnp.finfo(dtype).eps) * (0.51 if dtype == jnp.bfloat16 else 1)
        np.testing.assert_allclose(np.asarray(out, float)[kept], exact[kept], eps)
        np.testing.assert_allclose(np.asarray(slope, float), kept * scale, eps)
        assert 0.85 < kept.mean() < 0.95


def test_without_a_key_or_a_rate_nothing_falls_and_never_everything():
    x = jnp.arange(8.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x
    assert dropout(x, 1e-6, KEY) is x
    assert mask(0.999999, shape=(2**22,)).sum() > 0


def test_a_key_of_another_generator_will_do():
    kept = mask(0.2, jax.random.key(0, impl="rbg"), (2**16,))
    assert abs(kept.mean() - 0.8) < 5 * np.sqrt(0.16 / 2**16)


def test_four_elements_share_one_hash():
    program = jax.make_jaxpr(lambda x, key: dropout(x, 0.2, key))(jnp.ones(4096), KEY)
    hashed = [
        equation.outvars[0].aval.size
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "threefry2x32"
    ]
    assert hashed == [1024]


UVIT = UViTConfig(
    8,
    (
        Stage("resnet", 8, 2, 0.1),
        Stage("transformer", 16, 2, 0.2),
        Stage("transformer", 16, 7, 0.3),
    ),
    embedding=8,
    head_width=8,
)
UNET = UNetConfig(8, 8, (1, 2), 1, (4,), embedding=8, head_width=8, dropout=0.25)


# Stages but the middle have their blocks twice; a U-Net has one a level on the way
# down, two on the way up, two in the middle, and one at each change of resolution.
@pytest.mark.parametrize(
    ("config", "rates"), [(UVIT, {0.1: 4, 0.2: 4, 0.3: 7}), (UNET, {0.25: 10})]
)
def test_every_block_drops_at_its_stages_rate_by_a_key_of_its_own(
    config, rates, monkeypatch
):
    noted, keys = collections.Counter(), []

    def note(rate, data):
        noted[rate] += 1
        keys.append(tuple(data.tolist()))

    def dropped(x, rate, key):
        jax.debug.callback(functools.partial(note, rate), jax.random.key_data(key))
        return x

    monkeypatch.setattr(_blocks, "dropout", dropped)
    network = network_shapes(config)
    network = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), network)
    z = jnp.zeros((3, 8, 8), jnp.float32)
    eqx.filter_jit(network)(z, jnp.float32(0.0), key=KEY)
    jax.effects_barrier()
    assert dict(noted) == rates
    assert len(set(keys)) == len(keys) == sum(rates.values())
