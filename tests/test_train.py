import dataclasses
import gc
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import cosine_line, time_of

from mcmeqx import (
    DDIM,
    AbstractLoss,
    Checkpoints,
    Cosine,
    DataTeacher,
    Denoiser,
    DiffusionLoss,
    DistillationTeacher,
    Example,
    Learner,
    MultistepConsistencyLoss,
    PseudoHuber,
    Segments,
    annealed_steps,
    fit,
    generate,
    make_mesh,
)
from mcmeqx import _train as train_module
from mcmeqx._sharding import shardings
from mcmeqx.nets import AbstractNetwork, MLPConfig

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam raises a float to an integer, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def model():
    config = MLPConfig(2, width=8, depth=1, embedding=8)
    return Denoiser(config.build(key=KEY), Cosine())


def batches(count: int, size: int = 8) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(rng.normal(size=(size, 2)).astype("f4")) for _ in range(count)]


def learner(loss=None, **options) -> Learner:
    return Learner(loss or DiffusionLoss(), optax.adam(1e-2), **options)


def arrays(tree) -> list[np.ndarray]:
    return [
        np.asarray(a) for a in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    ]


def assert_close(first, second, **tolerance):
    for a, b in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def wide() -> Denoiser:
    config = MLPConfig(2, width=128, depth=1, embedding=8)
    return Denoiser(config.build(key=KEY), Cosine())


def weak(bias):
    return jnp.full(bias.shape, 0.1)


def live_bytes() -> int:
    """Of all arrays on one device; some are of the same bytes."""
    # Other tests leave arrays, some on several devices.
    gc.collect()
    found = [a for a in jax.live_arrays() if len(a.sharding.device_set) == 1]
    found = [a for a in found if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]
    return sum({a.unsafe_buffer_pointer(): a.nbytes for a in found}.values())


class Traced(AbstractLoss):
    """Counts how often a step that takes it is traced."""

    times = 0

    def __call__(self, model, example, *, step, key):
        Traced.times += 1
        return jnp.sum(model(example.x, 0.5).astype(jnp.float32) ** 2), {}


class DrawnLoss(AbstractLoss):
    """A metric that shows the key; NaN at one step."""

    bad_step: int = -1

    def __call__(self, model, example, *, step, key):
        draw = jax.random.uniform(key, (), jnp.float32)
        value = jnp.where(step == self.bad_step, jnp.float32(jnp.nan), draw)
        return value + 0.0 * jnp.sum(model(example.x, 0.5)), {"loss": value}


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.contrib.prodigy()])
def test_init_shares_no_buffer_with_the_model(optimizer):
    given = model()
    made = dataclasses.replace(learner(), optimizer=optimizer)
    state = made.init(given, key=KEY)
    trees = (given, state.model, state.ema, state.opt_state)
    pointers = [
        a.unsafe_buffer_pointer()
        for tree in trees
        for a in jax.tree.leaves(tree)
        if eqx.is_inexact_array(a)
    ]
    assert len(set(pointers)) == len(pointers)
    assert_close(state.model, given)
    assert_close(state.ema, given)
    made.step(state, batches(1)[0])
    assert np.all(np.isfinite(np.concatenate([a.ravel() for a in arrays(given)])))
    jax.random.key_data(KEY)


def test_init_on_a_mesh_is_the_same_state_in_its_places():
    given = wide()
    made, mesh = learner(), make_mesh(2, 2)

    def traced(parameters):
        # So nothing is whole on the first device.
        assert all(isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(parameters))
        return made.optimizer.init(parameters)

    inside = made.optimizer._replace(init=traced)
    state = dataclasses.replace(made, optimizer=inside).init(given, key=KEY, mesh=mesh)
    expected = made.init(given, key=KEY)
    where = shardings(expected, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    pointers = []
    for own, other, place in zip(
        *map(jax.tree.leaves, (state, expected, where)), strict=True
    ):
        assert (own.sharding, own.dtype) == (place, other.dtype)
        pairs = (own, other)
        if jnp.issubdtype(own.dtype, jax.dtypes.prng_key):
            pairs = map(jax.random.key_data, pairs)
        else:
            shards = own.addressable_shards
            pointers += [shard.data.unsafe_buffer_pointer() for shard in shards]
        np.testing.assert_array_equal(*map(np.asarray, pairs))
    assert len(set(pointers)) == len(pointers)
    # Split weights among them.
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert all(not a.is_deleted() for a in jax.tree.leaves(given) if eqx.is_array(a))


@pytest.mark.slow
def test_a_run_holds_one_state_and_one_teacher_where_it_is_given_away():
    given, mesh = wide(), make_mesh(1)
    loss = MultistepConsistencyLoss(DistillationTeacher(given), Segments(2))
    made, held = learner(loss), []
    before = live_bytes()
    states = [made.init(given, key=KEY, mesh=mesh)]
    state = live_bytes() - before

    def count(step, state, metrics):
        held.append(live_bytes() - before)

    # What checks types in tests keeps its arguments.
    bare = inspect.unwrap(fit)
    bare(made, states.pop(), batches(3), steps=3, callbacks=[count], mesh=mesh)
    # Four times the parameters, and batches and metrics.
    assert state > 100_000
    assert max(held) < 1.05 * state


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_half_precision_have_an_average_of_single_and_go_on(
    dtype, tmp_path
):
    def start():
        half = jax.tree.map(
            lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model()
        )
        return made.init(half, key=KEY)

    # Moments of single precision, as is usual, have updates of it.
    adam = optax.adam(1e-2, mu_dtype=jnp.float32)
    made = dataclasses.replace(learner(Traced()), optimizer=adam)
    traced = Traced.times
    state = start()
    assert {a.dtype for a in arrays(state.model)} == {np.dtype(dtype)}
    assert {a.dtype for a in arrays(state.ema)} == {np.dtype("f4")}
    for batch in batches(3):
        state, _ = made.step(state, batch)
    assert Traced.times == traced + 1
    assert {a.dtype for a in arrays(state.model)} == {np.dtype(dtype)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.wait()
    again = Checkpoints(tmp_path).restore(start())
    for a, b in zip(arrays(again), arrays(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_parameter_of_a_weak_type_does_not_compile_the_step_again():
    given = eqx.tree_at(
        lambda m: m.network.embed.project.bias, model(), replace_fn=weak
    )
    assert given.network.embed.project.bias.weak_type
    made, traced = learner(Traced()), Traced.times
    state = made.init(given, key=KEY)
    for batch in batches(3):
        state, _ = made.step(state, batch)
    assert Traced.times == traced + 1


def test_a_step_is_deterministic_and_gives_its_state_away():
    made, (batch,) = learner(), batches(1)
    old = [made.init(model(), key=KEY) for _ in range(2)]
    new = [made.step(state, batch)[0] for state in old]
    assert_close(new[0], new[1], rtol=0, atol=0)
    assert int(new[0].step) == 1
    assert all(a.is_deleted() for a in jax.tree.leaves(old[0].model) if eqx.is_array(a))


def test_step_i_uses_fold_in_of_the_run_key():
    made, state = learner(DrawnLoss()), learner().init(model(), key=KEY)
    for step, batch in enumerate(batches(3)):
        keys = jax.random.split(jax.random.fold_in(KEY, step), 8)
        drawn = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys)
        state, metrics = made.step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(drawn.mean()), rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9999])
def test_the_average_follows_its_formula(decay):
    made = learner(ema_decay=decay)
    state = made.init(model(), key=KEY)
    expected = arrays(state.ema)
    for step, batch in enumerate(batches(3)):
        state, _ = made.step(state, batch)
        kept = min(decay, (1 + step) / (10 + step))
        expected = [
            kept * e + (1 - kept) * m
            for e, m in zip(expected, arrays(state.model), strict=True)
        ]
    for got, want in zip(arrays(state.ema), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    apart = zip(arrays(state.ema), arrays(state.model), strict=True)
    assert (max(np.abs(e - m).max() for e, m in apart) > 1e-4) == (decay > 0)


def test_fit_on_four_devices_is_the_loop_of_steps_on_one():
    assert jax.device_count() == 4
    made, data, seen = learner(), batches(5), []
    state, losses = made.init(model(), key=KEY), []
    for batch in data:
        state, metrics = made.step(state, batch)
        losses.append(float(metrics["loss"]))

    def callback(step, state, metrics):
        seen.append((step, metrics["loss"]))

    fitted = fit(made, made.init(model(), key=KEY), data, steps=5, callbacks=[callback])
    assert int(fitted.step) == 5
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([value for _, value in seen], losses, rtol=1e-4)
    # Adam divides by the root of a gradient, so rounding grows to a share of a step.
    assert_close(fitted.model, state.model, atol=1e-5)
    assert len(fitted.model.network.last.weight.sharding.device_set) == 4


def test_fit_gives_each_device_its_own_rows_of_the_batch(monkeypatch):
    seen, real, (batch,) = [], train_module._step, batches(1)

    def spy(inputs, state):
        seen.append(inputs[1].x.addressable_shards)
        return real(inputs, state)

    monkeypatch.setattr(train_module, "_step", spy)
    made = learner()
    fit(made, made.init(model(), key=KEY), [batch], steps=1)
    (shards,) = seen
    assert [shard.device for shard in shards] == jax.devices()
    assert [shard.data.shape for shard in shards] == [(2, 2)] * 4
    rows = np.concatenate([np.asarray(shard.data) for shard in shards])
    np.testing.assert_array_equal(rows, batch.x)


def test_fit_goes_on_from_the_step_of_its_state():
    made, data = learner(), batches(4)
    whole = fit(made, made.init(model(), key=KEY), data, steps=4)
    half = fit(made, made.init(model(), key=KEY), data[:2], steps=2)
    assert_close(fit(made, half, data[2:], steps=4), whole, rtol=0, atol=0)


def test_fit_names_what_is_wrong_with_the_batches():
    made = learner()
    with pytest.raises(ValueError, match=r"batch_size 6 .* 4 devices"):
        fit(made, made.init(model(), key=KEY), batches(1, size=6), steps=1)
    with pytest.raises(ValueError, match="before step 3 of 5"):
        fit(made, made.init(model(), key=KEY), batches(2), steps=5)


def test_annealed_training_compiles_once():
    traces, anneal = [], annealed_steps(8.0, 64.0, 6)

    def counted(step):
        traces.append(1)
        return anneal(step)

    made = learner(MultistepConsistencyLoss(DataTeacher(), Segments(2), counted))
    steps = []
    fit(
        made,
        made.init(model(), key=KEY),
        batches(7),
        steps=7,
        callbacks=[lambda step, state, metrics: steps.append(metrics["teacher_steps"])],
    )
    assert len(traces) == 1
    np.testing.assert_allclose(steps, 8.0 ** (1 + np.arange(7) / 6), rtol=1e-5)


class Gains(AbstractNetwork):
    """A network of four parameters: its v is a gain of z at each quarter of time."""

    gain: jax.Array

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        quarter = jnp.rint(4 * time_of(logsnr, Cosine())).astype(jnp.int32)
        return self.gain[quarter - 1] * z


def test_the_average_of_a_phase_teaches_the_next_phase_of_tract():
    # On unit Gaussians v = 0 is exact, and each of its DDIM steps of a quarter keeps
    # cos(h) of z. Both phases, 4 steps to 2 and 2 steps to 1, compose them.
    rng, h = np.random.default_rng(0), cosine_line(Cosine())[1] / 4
    data = [Example(rng.normal(size=(8, 16)).astype("f4")) for _ in range(120)]
    noise = rng.normal(size=(4, 16)).astype("f4")
    trained = Denoiser(Gains(jnp.zeros(4, jnp.float32)), Cosine())
    for segments in (Segments(2), Segments(1)):
        loss = MultistepConsistencyLoss(
            DistillationTeacher(trained, x_var_fraction=0.0),
            segments,
            lambda step, n=2 * segments.student_steps: n,
            distance=PseudoHuber(eps=1.0),
        )
        made = Learner(loss, optax.sgd(1.0), ema_decay=0.8)
        state = fit(made, made.init(trained, key=KEY), data, steps=len(data))
        trained = state.ema
        out = generate(trained, DDIM(), segments.grid(), noise, key=KEY)
        np.testing.assert_allclose(out, np.cos(h) ** 4 * noise, atol=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(ValueError, match=str(decay)):
        learner(ema_decay=decay)


class Slopes(AbstractLoss):
    """A loss that is linear in two parameters of the last bias."""

    def __call__(self, model, example, *, step, key):
        value = jnp.vdot(model.network.last.bias, jnp.float32([3.0, 4.0]))
        return value, {"loss": value}


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_that_is_told_is_that_of_the_gradient(accumulate):
    made = Learner(Slopes(), optax.sgd(0.1), accumulate=accumulate)
    _, metrics = made.step(made.init(model(), key=KEY), batches(1)[0])
    assert float(metrics["grad_norm"]) == pytest.approx(5.0, rel=1e-6)


def test_the_average_forgets_as_slowly_as_the_papers():
    assert Learner(DiffusionLoss(), optax.sgd(1.0)).ema_decay == 0.9999
