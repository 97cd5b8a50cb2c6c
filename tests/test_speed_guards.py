"""What keeps a step fast on any machine, read from its program.

Elsewhere: one compilation a run in test_train and, for samplers, in test_sampler; the
count of operations against XLA's in test_flops.
"""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxprs import equations

from mcmeqx import (
    ADDIM,
    DDIM,
    Cosine,
    Denoiser,
    DistillationTeacher,
    DPMSolver,
    Example,
    Learner,
    MultistepConsistencyLoss,
    Segments,
    make_mesh,
    place,
    uniform_grid,
)
from mcmeqx._generate import padded, sample_rows
from mcmeqx._sharding import split_batch
from mcmeqx.nets import MLPConfig, Stage, UNetConfig, UViTConfig

pytestmark = pytest.mark.usefixtures("as_users_run")
SMALL = {"classes": 4, "embedding": 12, "head_width": 16}
# One transformer block is unrolled, seven are scanned.
STAGES = tuple(Stage(*s) for s in (("resnet", 16, 1), ("transformer", 32, 7)))
NETWORKS = {
    "uvit": UViTConfig(8, (*STAGES, Stage("transformer", 32, 1)), **SMALL),
    "unet": UNetConfig(8, 32, (1, 1), attention=(4,), **SMALL),
}


def learner_and_state(config, dtype, key):
    model = Denoiser(config.build(key=key), Cosine(), dtype=jnp.dtype(dtype))
    loss = MultistepConsistencyLoss(DistillationTeacher(model), Segments(2))
    learner = Learner(loss, optax.adam(1e-3))
    return learner, learner.init(model, key=key)


@pytest.fixture(scope="module")
def started():
    """A learner that has taken its first step, on a mesh, and the batch of the next."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        config = MLPConfig(2, width=8, depth=1, embedding=8)
        mesh = make_mesh(2, 2)
        learner, state = place(
            learner_and_state(config, "float32", jax.random.key(0)), mesh
        )
        batch = split_batch(Example(np.ones((8, 2), "f4")), mesh)
        with jax.set_mesh(mesh):
            state, _ = learner.step(state, batch)
        return learner, state, batch, mesh


def test_a_step_moves_nothing_between_host_and_devices_and_takes_its_buffers(started):
    learner, state, batch, mesh = started
    old = [a for a in jax.tree.leaves(state) if eqx.is_array(a)]
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        state, _ = learner.step(state, batch)
    state = jax.block_until_ready(state)
    assert old
    assert all(a.is_deleted() for a in old)
    # The guard is one that sees a batch come from the host.
    host = Example(np.ones((8, 2), "f4"))
    with (
        jax.set_mesh(mesh),
        jax.transfer_guard("disallow"),
        pytest.raises(Exception, match="host-to-device"),
    ):
        learner.step(state, host)


@jax.tree_util.register_pytree_node_class
class Counted:
    """A part of the optimiser's state that counts how often it is taken apart."""

    times = 0

    def __init__(self, value):
        self.value = value

    def tree_flatten(self):
        Counted.times += 1
        return (self.value,), None

    @classmethod
    def tree_unflatten(cls, _, values):
        return cls(*values)


def test_the_host_takes_a_state_apart_once_a_step():
    """Leaf by leaf in Python, it takes longer than a GPU takes for a small network."""
    counting = optax.GradientTransformation(
        # A number at first: a state may change its form.
        lambda _: Counted(0),
        lambda updates, state, _: (updates, Counted(jnp.asarray(state.value) + 1)),
    )
    config, key = MLPConfig(2, width=8, depth=1, embedding=8), jax.random.key(0)
    learner, state = learner_and_state(config, "float32", key)
    optimizer = optax.chain(optax.sgd(1e-3), counting)
    learner = dataclasses.replace(learner, optimizer=optimizer)
    state, batch = learner.init(state.model, key=key), Example(np.ones((4, 2)))
    for _ in range(3):
        before = Counted.times
        state, _ = learner.step(state, batch)
    assert Counted.times - before == 1
    assert state.opt_state[1].value == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_no_product_of_a_bfloat16_step_takes_float32(name):
    def build(key):
        return learner_and_state(NETWORKS[name], "bfloat16", key)

    def is_shape(leaf):
        return isinstance(leaf, jax.ShapeDtypeStruct)

    learner, state = eqx.filter_eval_shape(build, jax.random.key(0))
    image = jax.ShapeDtypeStruct((4, 3, 8, 8), jnp.float32)
    batch = Example(image, jax.ShapeDtypeStruct((4,), jnp.int32))
    given, fixed = eqx.partition((learner, state, batch), is_shape)

    def step(given):
        learner, state, batch = eqx.combine(given, fixed)
        return eqx.filter(learner.step(state, batch), eqx.is_array)

    text = jax.jit(step).lower(given).as_text()
    product = r"stablehlo\.(?:dot_general|convolution).* : \((.*)\) -> "
    operands = re.findall(product, text)
    # Apart from the embedding: twelve features of the noise level to a width of twelve.
    wide = [o for o in operands if "f32" in o and "12x12xf32" not in o]
    assert [o for o in wide if "tensor<12x4xf32>, tensor<4x12xf32>" not in o] == []
    assert sum("bf16" in o for o in operands) > 100


@pytest.mark.parametrize("sampler", [DDIM(), ADDIM(), DPMSolver()], ids=repr)
def test_sampling_asks_the_host_for_nothing_but_the_end_of_its_loop(sampler):
    """A branch makes the host of a GPU wait, at each of the steps it may skip too."""
    key = jax.random.key(0)
    config = MLPConfig(2, width=8, depth=1, embedding=8)
    model = Denoiser(config.build(key=key), Cosine())
    ts, steps = padded(uniform_grid(3))

    def sampled(ts, steps, noise, keys):
        return sample_rows(model, sampler, ts, noise, None, None, keys, steps)

    rows = np.zeros((4, 2), "f4"), jax.random.split(key, 4)
    program = jax.make_jaxpr(sampled)(ts, steps, *rows)
    names = [str(e.primitive) for e in equations(program.jaxpr)]
    assert names.count("while") == 1
    assert "cond" not in names
