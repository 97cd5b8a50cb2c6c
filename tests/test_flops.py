"""Operations counted by hand, layer by layer, and by XLA where nothing is scanned."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend.core import Primitive

from mcmeqx import (
    Cosine,
    Denoiser,
    DiffusionLoss,
    Example,
    Learner,
    count_flops,
    matmul_peak,
)
from mcmeqx._sharding import is_placed
from mcmeqx.nets import MLPConfig, Stage, imagenet64_small, unet32
from mcmeqx.nets._network import network_shapes

A, B, W = (jnp.ones(s, jnp.float32) for s in ((5, 7), (7, 3), (3, 3, 4, 8)))
IMAGE = jnp.ones((2, 6, 6, 4), jnp.float32)
# Along an axis of six pixels three taps meet 3 * 6 - 2 of them; the rest is padding.
CONVOLUTION = 2 * 2 * 16**2 * 4 * 8


def convolve(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def scanned(a):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ a), None), a, None, length=9)[0]


SQUARE = jnp.ones((4, 4), jnp.float32)

# The paper's network with four blocks in the middle, which are not scanned.
UVIT = dataclasses.replace(
    imagenet64_small,
    stages=(*imagenet64_small.stages[:2], Stage("transformer", 1024, 4)),
)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.matmul, (A, B), 2 * 5 * 7 * 3),
        (jax.jit(jnp.matmul), (A, B), 2 * 5 * 7 * 3),
        (lambda a, b: jnp.tanh(a + b), (A, A), 0),
        (convolve, (IMAGE, W), CONVOLUTION),
        (scanned, (SQUARE,), 9 * 2 * 4**3),
        (jax.checkpoint(scanned), (SQUARE,), 9 * 2 * 4**3),
        (jax.vmap(jnp.matmul), (jnp.ones((6, 2, 3)), jnp.ones((6, 3, 5))), 6 * 60),
        (
            lambda a: jax.lax.cond(True, lambda b: b @ b, lambda b: b, a),
            (SQUARE,),
            2 * 4**3,
        ),
    ],
)
def test_products_convolutions_and_loops_are_counted_by_hand(
    function, arguments, expected
):
    assert count_flops(function, *arguments) == expected
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    assert count_flops(function, *shapes) == expected


@pytest.mark.parametrize(("kind", "products"), [("fwd", 2), ("bwd", 4)])
def test_a_kernel_of_attention_counts_as_its_formula(kind, products):
    """By name: cuDNN's own can be traced on a GPU alone."""
    kernel = Primitive(f"dot_product_attention_{kind}_wrapper")
    kernel.def_abstract_eval(lambda q, *_: q)
    q, kv = jnp.ones((6, 5, 3, 8)), jnp.ones((6, 7, 3, 8))
    unused = jnp.zeros(0)
    counted = count_flops(lambda *a: kernel.bind(*a), q, kv, kv, unused)
    assert counted == products * 2 * 6 * 3 * 5 * 7 * 8


def test_the_gradient_of_a_product_and_of_a_convolution_costs_twice_as_much():
    def dense(a):
        return jnp.sum(jnp.matmul(a, B) ** 2)

    def conv(w, image):
        return jnp.sum(convolve(image, w) ** 2)

    assert count_flops(jax.value_and_grad(dense), A) == 2 * 2 * 5 * 7 * 3
    both = jax.value_and_grad(conv, argnums=(0, 1))
    assert count_flops(jax.value_and_grad(conv), W, IMAGE) == 2 * CONVOLUTION
    assert count_flops(both, W, IMAGE) == 3 * CONVOLUTION


@pytest.mark.parametrize("keep", [None, jax.checkpoint_policies.dots_saveable])
def test_what_a_gradient_computes_again_is_not_work(keep):
    """Two layers, the second under a scan of nine: a pass, and two for derivatives."""

    def layers(a):
        return jnp.sum(scanned(jnp.tanh(a @ a)))

    again = jax.checkpoint(layers, policy=keep)
    # All of them, though all but the last are computed once more for the gradient.
    assert count_flops(jax.grad(again), SQUARE) == 3 * 10 * 2 * 4**3
    inner = jax.checkpoint(lambda h, _: (jnp.tanh(h @ SQUARE), None), policy=keep)

    def loop(a):
        return jnp.sum(jax.lax.scan(inner, a, None, length=9)[0])

    assert count_flops(jax.grad(loop), SQUARE) == 2 * 9 * 2 * 4**3


@pytest.mark.parametrize("kind", ["resnet", "transformer"])
def test_a_network_that_computes_blocks_again_has_the_operations_of_one_that_keeps(
    kind,
):
    def operations(remat):
        stages = (Stage("resnet", 8, 1), Stage(kind, 64, 6))
        config = dataclasses.replace(
            imagenet64_small, image_size=16, stages=stages, remat=remat
        )
        shapes, static = eqx.partition(network_shapes(config), is_placed)

        def loss(shapes, z):
            network = eqx.combine(shapes, static)
            return jnp.sum(network(z, jnp.float32(0.3), jnp.asarray(0)) ** 2)

        z = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32)
        return count_flops(jax.grad(loss), shapes, z)

    assert operations(True) == operations(False) > 0


def test_a_training_step_of_an_mlp_is_what_xla_counts(as_users_run):
    width, rows = 64, 8
    network = MLPConfig(8, width, 3, embedding=64).build(key=jax.random.key(0))
    learner = Learner(DiffusionLoss(), optax.sgd(1.0))
    state = learner.init(Denoiser(network, Cosine()), key=jax.random.key(1))
    batch = Example(jnp.ones((rows, 8), jnp.float32))
    found = learner.flops(state, batch)

    def loss(model):
        keys = jax.random.split(jax.random.key(2), rows)
        one = jax.vmap(lambda x, k: learner.loss(model, Example(x), step=0, key=k)[0])
        return jnp.mean(one(batch.x, keys))

    compiled = jax.jit(jax.grad(loss)).lower(state.model).compile()
    # XLA counts elementwise work too, which such narrow layers have much of.
    xla = compiled.cost_analysis()["flops"]
    assert 0.6 * xla < found < 1.03 * xla


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("lhs_dilation", [1, 3])
@pytest.mark.parametrize("rhs_dilation", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (1, 3), (2, 0)])
def test_products_of_a_convolution_are_those_of_its_matrix(
    stride, lhs_dilation, rhs_dilation, padding
):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride,),
            (padding,),
            (lhs_dilation,),
            (rhs_dilation,),
            ("NWC", "WIO", "NWC"),
        )

    # With ones for weights and image, the sum of outputs is the number of products.
    x, w = jnp.ones((2, 7, 3), jnp.float32), jnp.ones((3, 3, 5), jnp.float32)
    assert count_flops(convolve, x, w) == 2 * int(jnp.sum(convolve(x, w)))


@pytest.mark.slow
@pytest.mark.parametrize("config", [unet32, UVIT])
def test_passes_of_a_network_cost_what_xla_counts(config, as_users_run):
    """A step is the network's passes; XLA counts elementwise work beside products."""
    arrays, static = eqx.partition(network_shapes(config), is_placed)
    z = jax.ShapeDtypeStruct((2, 3, config.image_size, config.image_size), jnp.float32)
    label = None if config.classes is None else jnp.asarray(0)

    def loss(arrays, z):
        network = eqx.combine(arrays, static)
        one = jax.vmap(lambda z: network(z, jnp.float32(0.3), label))
        return jnp.sum(one(z) ** 2)

    for function in (loss, jax.grad(loss)):
        found = count_flops(function, arrays, z)
        xla = jax.jit(function).lower(arrays, z).cost_analysis()["flops"]
        assert found == pytest.approx(xla, rel=0.03)


def test_the_measured_peak_is_one_that_a_machine_can_have():
    assert 1e8 < matmul_peak() < 1e16
