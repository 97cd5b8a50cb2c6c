"""What a deep network costs to compile and to differentiate."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcmeqx.nets import Stage, UViTConfig
from mcmeqx.nets._network import network_shapes

KEY = jax.random.key(0)
TRUNK = UViTConfig(
    16, (Stage("transformer", 64, 12, 0.1),), embedding=64, head_width=64
)
CONVOLUTIONS = UViTConfig(
    8,
    (Stage("resnet", 16, 4, 0.1), Stage("transformer", 16, 1)),
    embedding=8,
    head_width=16,
)
U = UViTConfig(
    8,
    (Stage("resnet", 8, 1, 0.3), Stage("transformer", 16, 7, 0.3)),
    embedding=8,
    head_width=16,
)
U_OF_TRANSFORMERS = dataclasses.replace(
    U, stages=(Stage("transformer", 16, 2, 0.3), Stage("transformer", 16, 1))
)


def loss_and_arguments(config):
    """A scalar of the network's output with dropout, and shapes to trace it with."""
    arrays, static = eqx.partition(
        network_shapes(config), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )

    def loss(arrays, z, key):
        return jnp.sum(eqx.combine(arrays, static)(z, jnp.float32(0.3), key=key) ** 2)

    shape = (config.channels, config.image_size, config.image_size)
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    return loss, (arrays, z, jax.eval_shape(lambda: jax.random.key(0)))


def with_remat(config):
    return dataclasses.replace(config, remat=True)


@pytest.mark.slow
@pytest.mark.parametrize("config", [U, U_OF_TRANSFORMERS], ids=["u", "transformers"])
def test_rematerialised_blocks_have_the_same_values_and_gradients(config):
    z = jax.random.normal(jax.random.key(1), (3, 8, 8), jnp.float64)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def value_and_grad(network, key):
        return jnp.sum(z * network(z, jnp.float32(0.3), key=key))

    def moved(config):
        network = eqx.filter_jit(lambda key: config.build(key=key))(KEY)
        rng = np.random.default_rng(0)
        arrays, static = eqx.partition(network, eqx.is_array)
        arrays = jax.tree.map(
            lambda a: np.asarray(a, "f8") + 0.1 * rng.normal(size=a.shape), arrays
        )
        return eqx.combine(jax.tree.map(jnp.asarray, arrays), static)

    # The noise level is float32: in float64 all else needs promotion.
    with jax.numpy_dtype_promotion("standard"):
        kept, kept_grad = value_and_grad(moved(config), jax.random.key(2))
        again, again_grad = value_and_grad(moved(with_remat(config)), jax.random.key(2))
    np.testing.assert_allclose(kept, again, rtol=1e-10)
    for a, b in zip(*map(jax.tree.leaves, (kept_grad, again_grad)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize(
    ("config", "factor"),
    [(TRUNK, 12), (CONVOLUTIONS, 3)],
    ids=["trunk", "convolutions"],
)
def test_rematerialised_blocks_hand_little_to_the_backward_pass(config, factor):
    def kept(config):
        loss, arguments = loss_and_arguments(config)
        pullback = jax.eval_shape(lambda *a: jax.vjp(loss, *a)[1], *arguments)
        return sum(a.size for a in jax.tree.leaves(pullback))

    arrays = loss_and_arguments(config)[1][0]
    parameters = sum(a.size for a in jax.tree.leaves(arrays))
    assert kept(config) - parameters > factor * (kept(with_remat(config)) - parameters)


@pytest.mark.slow
def test_a_rematerialised_trunk_needs_less_than_a_fourth_of_the_memory():
    def temporary(config):
        loss, arguments = loss_and_arguments(config)
        compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 4 * temporary(with_remat(TRUNK)) < temporary(TRUNK)


@pytest.mark.parametrize("remat", [False, True])
def test_the_program_of_a_scanned_trunk_does_not_grow_with_its_depth(remat):
    def size(depth):
        stages = (Stage("transformer", 16, depth), Stage("transformer", 16, depth))
        config = dataclasses.replace(U, stages=stages, remat=remat)
        loss, arguments = loss_and_arguments(config)
        return len(jax.jit(jax.grad(loss)).lower(*arguments).as_text())

    # Digits of the depth are all that differs.
    assert size(32) == pytest.approx(size(8), rel=0.02)
