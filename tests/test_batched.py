"""Rows in batches over all devices: what each device gets, and what comes back."""

import equinox as eqx
import jax
import numpy as np
import pytest

from mcmeqx import (
    DDIM,
    Cosine,
    Denoiser,
    _generate,
    generate,
    make_mesh,
    uniform_grid,
)
from mcmeqx._batched import batched
from mcmeqx.nets import MLPConfig, Stage, UViTConfig


@pytest.mark.parametrize("count", [1, 4, 9])
def test_each_device_has_its_share_of_rows_and_all_constants(count):
    shares, numbers = [], np.random.default_rng(0).normal(size=(count, 3))

    def function(constants, rows):
        weight, name = constants
        assert name == "a name"
        assert {s.data.shape for s in weight.addressable_shards} == {(3,)}
        x, none = rows
        assert none is None
        shares.append([s.data.shape for s in x.addressable_shards])
        return (x * weight).sum(1)

    weight = jax.numpy.arange(3.0)
    found = batched(function, (weight, "a name"), (numbers, None), batch_size=3)
    assert jax.local_device_count() == 4
    # Batches of 3 are of 4 rows: one for each device, and the last filled up.
    assert shares == [[(1, 3)] * 4] * -(-count // 4)
    np.testing.assert_allclose(found, numbers @ np.arange(3.0), rtol=1e-12)


@pytest.mark.usefixtures("as_users_run")
def test_samples_are_the_same_on_a_mesh_of_the_users():
    key = jax.random.key(0)
    stages = (Stage("resnet", 64, 1),)
    network = UViTConfig(4, stages, embedding=64, head_width=64).build(key=key)
    # A fresh network draws nothing.
    network = jax.tree.map(lambda a: a + 0.01 if eqx.is_array(a) else a, network)
    noise = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype("f4")

    def sampled():
        model = Denoiser(network, Cosine())
        return generate(model, DDIM(), uniform_grid(2), noise, key=key)

    expected = sampled()
    with jax.set_mesh(make_mesh(1, 2)):
        np.testing.assert_array_equal(sampled(), expected)
    assert np.std(expected) > 0.1


def test_samples_are_made_on_all_devices(monkeypatch):
    shares, real = [], _generate._sample_batch

    def record(constants, rows):
        shares.append(jax.tree.map(lambda a: len(a.sharding.device_set), rows))
        return real(constants, rows)

    monkeypatch.setattr(_generate, "_sample_batch", record)
    key, other = jax.random.key(0), jax.devices()[1]
    network = MLPConfig(2, width=4, depth=1, classes=1, embedding=4).build(key=key)
    # As it is after training on another device than the first.
    arrays, static = eqx.partition(network, eqx.is_array)
    network = eqx.combine(jax.device_put(arrays, other), static)
    model = Denoiser(network, Cosine())
    assert network.last.weight.committed
    noise = np.ones((5, 2), np.float32)
    labels = np.zeros(5, np.int32)
    generate(model, DDIM(), uniform_grid(1), noise, labels, key=key, batch_size=3)
    assert shares == [(4, 4, 4)] * 2
