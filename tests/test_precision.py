"""A bfloat16 Denoiser: what is computed in which precision, read from its jaxpr."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from oracles import alpha_sigma

from mcmeqx import Cosine, Denoiser
from mcmeqx.nets import MLPConfig, Stage, UNetConfig, UViTConfig
from mcmeqx.nets._network import network_shapes

KEY = jax.random.key(0)
BFLOAT16 = jnp.dtype("bfloat16")
# One transformer block is unrolled, seven are scanned.
UVIT = UViTConfig(
    8,
    (Stage("resnet", 8, 1), Stage("transformer", 16, 1), Stage("transformer", 16, 7)),
    classes=4,
    guidance_input=True,
    embedding=12,
    head_width=8,
)
MLP = MLPConfig(3, width=8, depth=2, classes=4, guidance_input=True, embedding=12)
UNET = UNetConfig(
    8,
    24,
    (1, 1),
    attention=(4,),
    classes=4,
    guidance_input=True,
    embedding=12,
    head_width=8,
)
CONFIGS = {"uvit": (UVIT, (3, 8, 8)), "unet": (UNET, (3, 8, 8)), "mlp": (MLP, (3,))}
denoisers = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def pair(name):
    """The same parameters, none zero, in a float32 and in a bfloat16 denoiser."""
    config, shape = CONFIGS[name]
    network = eqx.filter_jit(lambda key: config.build(key=key))(KEY)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda a: (
            jnp.asarray(a + 0.1 * rng.normal(size=a.shape).astype("f4"))
            if eqx.is_array(a)
            else a
        ),
        network,
    )
    z = jnp.asarray(rng.normal(size=(4, *shape)).astype("f4"))
    wide = Denoiser(moved, Cosine())
    return wide, dataclasses.replace(wide, dtype=BFLOAT16), z


def dtypes(equation):
    return {a.aval.dtype for a in equation.invars if hasattr(a.aval, "dtype")}


def batch_loss(arrays, static, z, weights):
    model = eqx.combine(arrays, static)

    def one(z):
        return model(z, jnp.float32(0.4), jnp.int32(1), guidance=jnp.float32(0.5))

    return jnp.sum(weights * jax.vmap(one)(z))


@pytest.mark.usefixtures("as_users_run")
@denoisers
def test_the_estimate_has_the_precision_of_its_input(name):
    config, shape = CONFIGS[name]
    for dtype in (jnp.dtype("float32"), BFLOAT16):
        model = Denoiser(network_shapes(config), Cosine(), dtype=dtype)
        z = jnp.zeros(shape, BFLOAT16)
        told = {"guidance": jnp.float32(0.5)}
        found = eqx.filter_eval_shape(model, z, jnp.float32(0.4), jnp.int32(1), **told)
        assert found.dtype == BFLOAT16


@pytest.mark.usefixtures("as_users_run")
@denoisers
def test_products_are_bfloat16_and_sums_float32_forward_and_backward(name):
    _, model, z = pair(name)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    jaxpr = jax.make_jaxpr(lambda a: batch_loss(a, static, z, z))(arrays)
    products, sums, softmaxes = 0, 0, 0
    for equation in equations(jaxpr.jaxpr):
        kind = equation.primitive.name
        if kind in ("dot_general", "conv_general_dilated"):
            shapes = [a.aval.shape for a in equation.invars]
            # Of the embedding alone: maps from 12 and 32 features to 12 channels.
            if (12, 12) in shapes or (12, 32) in shapes:
                assert dtypes(equation) == {jnp.dtype("float32")}
            else:
                assert dtypes(equation) == {BFLOAT16}, equation
                products += 1
        if kind in ("reduce_sum", "reduce_max"):
            assert dtypes(equation) == {jnp.dtype("float32")}, equation
            sums += 1
        if kind in ("exp", "rsqrt", "sin", "cos"):
            assert dtypes(equation) == {jnp.dtype("float32")}, equation
            softmaxes += kind == "exp"
    # The MLP: first, last, two layers and two FiLMs.
    assert products == 6 if name == "mlp" else products > 30
    assert sums > 20 or name == "mlp"
    assert softmaxes > 1

    backward = jax.make_jaxpr(jax.grad(lambda a: batch_loss(a, static, z, z)))(arrays)
    found = [e for e in equations(backward.jaxpr) if e.primitive.name == "reduce_sum"]
    assert len(found) > sums
    for equation in found:
        terms = equation.invars[0].aval.size / equation.outvars[0].aval.size
        # Of two terms, where the way up doubles the pixels, the sum is as good narrow.
        assert terms <= 2 or dtypes(equation) == {jnp.dtype("float32")}, equation


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_run")
@denoisers
def test_a_bfloat16_denoiser_is_within_rounding_of_a_float32_one(name):
    wide, narrow, z = pair(name)

    @eqx.filter_jit
    def both(model):
        arrays, static = eqx.partition(model, eqx.is_inexact_array)
        value = jax.vmap(
            lambda z: model(z, jnp.float32(0.4), 1, guidance=jnp.float32(0.5))
        )(z)
        return value, jax.grad(batch_loss)(arrays, static, z, z)

    (x, grad), (x_narrow, grad_narrow) = both(wide), both(narrow)
    assert x_narrow.dtype == jnp.float32
    # Rounding is 2^-9 of each operand, independent from layer to layer: about 30 layers
    # of three roundings each add up to 2^-9 sqrt(90), the input's own share included.
    layers = 4 if name == "mlp" else 30
    bound = 2.0**-9 * np.sqrt(3 * layers)
    v, v_narrow = (a - Cosine().alpha(0.4) * z for a in (x, x_narrow))
    error = np.linalg.norm(v_narrow - v) / np.linalg.norm(v)
    assert 2.0**-12 < error < bound
    for path, leaf in jax.tree.leaves_with_path(grad_narrow):
        assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)
    flat, flat_narrow = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (grad, grad_narrow)
    )
    # Backward, each layer rounds once more.
    error = np.linalg.norm(flat_narrow - flat) / np.linalg.norm(flat)
    assert 2.0**-12 < error < np.sqrt(2) * bound


@pytest.mark.usefixtures("as_users_run")
def test_a_denoiser_of_half_precision_keeps_what_it_was_given():
    # A fresh network answers 0, so that x is alpha z.
    network = MLPConfig(64, width=8, depth=1, embedding=8).build(key=KEY)
    model = Denoiser(network, Cosine(), dtype=jnp.dtype("bfloat16"))
    z = jax.random.normal(KEY, (64,), jnp.float32)
    for t in (0.01, 0.5):
        found = model(z, jnp.float32(t))
        alpha = alpha_sigma(Cosine(), t)[0]
        np.testing.assert_allclose(found, alpha * np.asarray(z), rtol=1e-6)
