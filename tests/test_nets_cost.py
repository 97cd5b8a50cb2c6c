"""What a deep network costs to compile and to differentiate."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jaxprs import equations

from mcmeqx.nets import Stage, UViTConfig, _uvit_stages
from mcmeqx.nets._blocks import ResNetBlock
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


def handed(config):
    """Bytes that the forward pass hands to the backward pass, beside parameters."""
    loss, arguments = loss_and_arguments(config)
    pullback = jax.eval_shape(lambda *a: jax.vjp(loss, *a)[1], *arguments)
    taken, given = (
        sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
        for tree in (pullback, arguments[0])
    )
    return taken - given


def temporary(config):
    """Bytes of temporary memory of the gradient's program."""
    loss, arguments = loss_and_arguments(config)
    compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.fixture
def all_of_the_trunk(monkeypatch):
    """A measure of the trunk whose blocks keep all that derivatives ask for."""

    def measured(measure):
        with monkeypatch.context() as patch:
            keep_all = jax.checkpoint_policies.everything_saveable
            patch.setattr(_uvit_stages, "_is_kept", keep_all)
            return measure(TRUNK)

    return measured


def test_scanned_blocks_hand_less_than_a_third_to_the_backward_pass(all_of_the_trunk):
    assert 3 * handed(TRUNK) < all_of_the_trunk(handed)


def test_scanned_blocks_compute_no_product_norm_or_mask_again(all_of_the_trunk):
    def costly(config):
        loss, arguments = loss_and_arguments(config)
        jaxpr = jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr
        names = [equation.primitive.name for equation in equations(jaxpr)]
        return [names.count(n) for n in ("dot_general", "rsqrt", "threefry2x32")]

    assert costly(TRUNK) == all_of_the_trunk(costly)


def test_no_map_of_constants_is_read_in_every_turn_of_a_scan():
    loss, arguments = loss_and_arguments(TRUNK)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(*arguments).jaxpr
    scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert len(scans) == 2
    for scan in scans:
        constants = scan.invars[: scan.params["num_consts"]]
        # A block's widest map has 256 tokens of 4 x 64 channels.
        assert all(c.aval.size <= 256 * 64 for c in constants)


def test_a_rematerialised_trunk_hands_little_to_the_backward_pass(all_of_the_trunk):
    rematerialised = handed(with_remat(TRUNK))
    assert 24 * rematerialised < all_of_the_trunk(handed)
    assert 6 * rematerialised < handed(TRUNK)


def test_few_rematerialised_blocks_are_not_unrolled():
    # Unrolled, the compiler for CPUs computes nothing again, and the memory is back.
    few = dataclasses.replace(TRUNK, stages=(Stage("transformer", 64, 4, 0.1),))
    loss, arguments = loss_and_arguments(with_remat(few))
    jaxpr = jax.make_jaxpr(loss)(*arguments).jaxpr
    (scan,) = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert (scan.params["length"], scan.params["unroll"]) == (4, 1)


def test_a_kernels_attention_is_kept_for_the_backward_pass():
    # What JAX binds for cuDNN, by JAX's own name.
    assert _uvit_stages._is_kept(cudnn._dot_product_attention_fwd_p_wrapper)


def test_rematerialised_convolutions_hand_little_to_the_backward_pass():
    assert 3 * handed(with_remat(CONVOLUTIONS)) < handed(CONVOLUTIONS)


@pytest.mark.slow
def test_a_rematerialised_trunk_needs_less_than_a_fourth_of_the_memory(
    all_of_the_trunk,
):
    everything = all_of_the_trunk(temporary)
    assert 4 * temporary(with_remat(TRUNK)) < everything
    assert 2 * temporary(TRUNK) < everything


@pytest.mark.parametrize("remat", [False, True])
def test_the_program_of_a_scanned_trunk_does_not_grow_with_its_depth(remat):
    def size(depth):
        stages = (Stage("transformer", 16, depth), Stage("transformer", 16, depth))
        config = dataclasses.replace(U, stages=stages, remat=remat)
        loss, arguments = loss_and_arguments(config)
        return len(jax.jit(jax.grad(loss)).lower(*arguments).as_text())

    # Digits of the depth are all that differs.
    assert size(32) == pytest.approx(size(8), rel=0.02)


def test_no_loop_over_pixels_computes_film_from_its_vector():
    block = ResNetBlock(16, 16, 8, 0.0, key=KEY)
    program = jax.jit(jax.vmap(lambda x, emb: block(x, emb, None)))
    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 8, 8, 16), (3, 8)))
    text = program.lower(*shapes).compile().as_text()
    loops = re.findall(r"^%\S+ \((.*)\) -> f32\[3,8,8,16\] \{$", text, re.MULTILINE)
    assert any("f32[3,8,8,16]" in parameters for parameters in loops)
    assert not any("f32[3,32]" in parameters for parameters in loops)
