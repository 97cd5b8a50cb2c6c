"""The loop: steps that are skipped, runs that stop, metrics by segment, the order."""

import contextlib
import os
import signal
import threading

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcmeqx import (
    DDIM,
    AbstractLoss,
    Cosine,
    DataTeacher,
    Denoiser,
    DiffusionLoss,
    DistillationTeacher,
    Example,
    Guidance,
    Guided,
    Interrupted,
    Learner,
    MidpointTeacher,
    MultistepConsistencyLoss,
    NonFiniteLossError,
    ODETeacher,
    OutOfBatchesError,
    Segments,
    adaptive_steps,
    fit,
    fixed_steps,
    generate,
    make_mesh,
    measure_x_var,
    place,
    uniform_grid,
)
from mcmeqx import _fit as fit_module
from mcmeqx._checks import check_classes
from mcmeqx._sharding import split_batch
from mcmeqx._signals import stop_signals
from mcmeqx.nets import AbstractNetwork, MLPConfig

pytestmark = pytest.mark.usefixtures("as_users_run")

KEY = jax.random.key(3)


def start(made: Learner):
    network = MLPConfig(2, width=8, depth=1, embedding=8).build(key=KEY)
    return made.init(Denoiser(network, Cosine()), key=KEY)


def batches(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(rng.normal(size=(8, 2)).astype("f4")) for _ in range(count)]


def learner(loss=None, **options) -> Learner:
    return Learner(loss or DiffusionLoss(), optax.adam(1e-2), **options)


def arrays(state) -> list[np.ndarray]:
    tree = (state.model, state.ema, state.opt_state)
    return [np.asarray(a) for a in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


class Exploding(AbstractLoss):
    """The loss, or its gradient alone, is not finite in some steps."""

    bad: tuple[int, ...] = eqx.field(static=True)
    gradient_only: bool = eqx.field(static=True, default=False)

    def __call__(self, model, example, *, step, key):
        bad = jnp.any(jnp.asarray(self.bad, jnp.int32) == step)
        out = jnp.sum(model(example.x, 0.5) ** 2)
        if self.gradient_only:
            # At 0 the root is 0 and its slope is infinite.
            inner = jnp.where(bad, 0.0 * out, 1.0)
            value = out + jnp.where(bad, jnp.sqrt(inner), 0.0)
        else:
            value = jnp.where(bad, jnp.float32(jnp.nan), 1.0) * out
        return value, {"loss": value}


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(gradient_only):
    made, data, seen = learner(Exploding((1, 3), gradient_only)), batches(5), []

    def callback(step, state, metrics):
        seen.append((step, metrics["skipped"], np.isfinite(metrics["loss"])))

    whole = fit(made, start(made), data, steps=5, callbacks=[callback])
    finite = [True] * 5 if gradient_only else [True, False, True, False, True]
    assert seen == list(zip(range(1, 6), [0, 1, 1, 2, 2], finite, strict=True))
    assert (int(whole.step), int(whole.skipped)) == (5, 2)
    state = start(made)
    for i, batch in enumerate(data):
        state, _ = made.step(state, batch)
        if i in (0, 2):
            before = arrays(state)
        if i in (1, 3):
            for a, b in zip(arrays(state), before, strict=True):
                np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(a).all() for a in arrays(whole))


def test_a_run_that_does_not_recover_stops_and_hands_over_the_batch():
    bad = (2, *range(4, 40))
    made, data, seen = learner(Exploding(bad)), batches(40), []
    with pytest.raises(NonFiniteLossError, match=r"\d steps in a row.*up to step") as e:
        fit(
            made,
            start(made),
            data,
            steps=40,
            patience=3,
            callbacks=[lambda step, state, metrics: seen.append(step)],
        )
    error = e.value
    assert seen[-1] == error.step == int(error.state.step)
    assert 7 <= error.step <= 9
    np.testing.assert_array_equal(error.batch.x, data[error.step - 1].x)
    state = start(made)
    for batch in data[:4]:
        state, _ = made.step(state, batch)
    for a, b in zip(arrays(error.state), arrays(state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    losses, norms = made.examine(state, data[4])
    assert np.isnan(losses).all()
    assert np.isnan(norms).all()


def test_a_run_whose_gradients_alone_do_not_recover_stops():
    made = learner(Exploding(tuple(range(2, 20)), gradient_only=True))
    with pytest.raises(NonFiniteLossError, match="loss or gradient that is not finite"):
        fit(made, start(made), batches(20), steps=20, patience=3)


def test_a_state_of_more_steps_than_asked_for_is_refused():
    made = learner()
    state = fit(made, start(made), batches(2), steps=2)
    assert int(fit(made, state, batches(1), steps=2).step) == 2
    with pytest.raises(ValueError, match="has done 2 steps already, and steps is 1"):
        fit(made, state, batches(1), steps=1)


def test_a_batch_is_as_large_as_all_processes_shares(monkeypatch):
    mesh = make_mesh()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(fit_module, "split_batch", lambda batch, mesh: batch)

    def first(rows: int) -> Example:
        own = Example(np.zeros((rows, 2), np.float32))
        return next(fit_module._ahead([own], mesh, 0, 1, 1, None))

    # Over four devices twelve rows split, and six do not.
    assert len(first(6).x) == 6
    with pytest.raises(ValueError, match="batch_size 6 does not split over 4"):
        first(3)


def test_a_run_that_recovers_each_time_goes_on_to_its_end():
    made = learner(Exploding((0, 1, 3, 4, 6, 7)))
    state = fit(made, start(made), batches(9), steps=9, patience=3)
    assert (int(state.step), int(state.skipped)) == (9, 6)


def test_what_was_reached_when_the_batches_ran_out_is_handed_over():
    made, seen = learner(), []
    note = [lambda step, state, metrics: seen.append(step)]
    with pytest.raises(OutOfBatchesError, match="ran out before step 4 of 9") as error:
        fit(made, start(made), batches(3), steps=9, callbacks=note)
    assert seen == [1, 2, 3]
    whole = fit(made, start(made), batches(3), steps=3)
    for a, b in zip(arrays(error.value.state), arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("null_class", "wrong"), [(False, -1), (False, 3), (True, 3)])
def test_a_label_of_no_class_of_the_model_is_refused(null_class, wrong):
    config = MLPConfig(
        2, width=8, depth=1, embedding=8, classes=3, null_class=null_class
    )
    made = learner()
    state = made.init(Denoiser(config.build(key=KEY), Cosine()), key=KEY)
    labels = np.array([0, 2, 1, -1 if null_class else 1] * 2, np.int32)
    right = [b._replace(label=labels) for b in batches(2)]
    state = fit(made, state, right, steps=1)
    labels = np.where(labels == 1, wrong, labels)
    message = f"labels go from {labels.min()} to {labels.max()}, the model's classes"
    with pytest.raises(ValueError, match=message):
        fit(made, state, [right[0]._replace(label=labels)], steps=2)


def test_a_label_of_no_class_of_a_teacher_or_of_what_guides_it_is_refused():
    def of(classes, null_class=False):
        options = {"classes": classes, "null_class": null_class, "embedding": 8}
        config = MLPConfig(2, width=8, depth=1, **options)
        return Denoiser(config.build(key=KEY), Cosine())

    (batch,) = batches(1)
    batch = batch._replace(label=np.arange(8, dtype=np.int32))
    weak = Guidance(1.0, negative=of(5))
    for teacher, known in (
        (DistillationTeacher(of(3)), "from 0 to 2,"),
        (MidpointTeacher(of(8, True), guidance=weak), "from 0 to 4,"),
        (DistillationTeacher(of(9)), ""),
    ):
        loss = MultistepConsistencyLoss(teacher, Segments(2))
        made = Learner(loss, optax.adam(1e-3))
        state = made.init(of(8, True), key=KEY)
        if known:
            with pytest.raises(ValueError, match=f"from 0 to 7, .* classes {known}"):
                fit(made, state, [batch], steps=1)
        else:
            fit(made, state, [batch], steps=1)
    guided = Guided(of(8), weak)
    with pytest.raises(ValueError, match=r"from 0 to 7, .* classes from 0 to 4,"):
        generate(guided, DDIM(), uniform_grid(1), batch.x, batch.label, key=KEY)
    with pytest.raises(ValueError, match=r"from 0 to 7, .* classes from 0 to 2,"):
        measure_x_var(of(3), batch, np.array([0.5]), key=KEY)


def test_examine_sees_each_example_as_the_step_does():
    made, (batch,) = learner(), batches(1)
    losses, norms = made.examine(start(made), batch)
    _, metrics = made.step(start(made), batch)
    assert losses.shape == norms.shape == (8,)
    assert float(losses.mean()) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert float(norms.max()) * 8 >= float(metrics["grad_norm"])


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_between_two_steps_and_hands_over_the_state(number):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    made, data, seen = learner(), batches(9), []

    def callback(step, state, metrics):
        seen.append(step)
        if step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=f"of 9 by {number.name}") as e:
        fit(made, start(made), data, steps=9, callbacks=[callback])
    reached = int(e.value.state.step)
    assert reached < 9
    assert seen == list(range(1, reached + 1))
    assert e.value.signal == number
    assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    whole = fit(made, start(made), data, steps=9)
    rest = fit(made, e.value.state, data[reached:], steps=9)
    for a, b in zip(arrays(whole), arrays(rest), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_that_comes_with_the_last_metrics_is_not_lost():
    made, data = learner(), batches(3)

    def callback(step, state, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after the last of 3 steps by SIGTERM") as e:
        fit(made, start(made), data, steps=3, callbacks=[callback])
    whole = fit(made, start(made), data, steps=3)
    for a, b in zip(arrays(e.value.state), arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(fit(made, e.value.state, [], steps=3).step) == 3


def test_processes_are_asked_once_more_after_the_last_step(monkeypatch):
    asked, made = [], learner()

    @contextlib.contextmanager
    def signals():
        yield lambda: asked.append(None)

    monkeypatch.setattr(fit_module, "stop_signals", signals)
    fit(made, start(made), batches(2), steps=2)
    assert len(asked) == 3


def test_a_run_in_another_thread_sees_no_signal_and_ends():
    made, done = learner(), []

    def run():
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            done.append(int(fit(made, start(made), batches(2), steps=2).step))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [2]


def test_losses_and_target_norms_are_averaged_within_each_segment():
    loss = MultistepConsistencyLoss(DataTeacher(), Segments(4), lambda step: 16)
    made, (batch,), seen = learner(loss), batches(1), []
    fit(
        made,
        start(made),
        [batch],
        steps=1,
        callbacks=[lambda step, state, metrics: seen.append(metrics)],
    )
    by_hand: dict[int, list] = {}
    state = start(made)
    keys = jax.random.split(jax.random.fold_in(state.key, 0), 8)
    one = eqx.filter_jit(lambda x, key: loss(state.model, Example(x), step=0, key=key))
    draw = jax.jit(lambda key: loss.segments.draw(16, key=jax.random.split(key, 4)[0]))
    for x, key in zip(batch.x, keys, strict=True):
        value, _ = one(jnp.asarray(x), key)
        times = draw(key)
        by_hand.setdefault(1 + int(float(times.r) * 4), []).append(float(value))
    (metrics,) = seen
    found = {k: v for k, v in metrics.items() if k.startswith("segment_loss")}
    expected = {f"segment_loss_{i}": np.mean(v) for i, v in by_hand.items()}
    assert len(expected) > 1
    assert found == pytest.approx(expected, rel=1e-4)
    norms = [v for k, v in metrics.items() if k.startswith("segment_target_norm")]
    assert len(norms) == len(expected)
    # With the data for a teacher and one step a segment the target is the data.
    exact = MultistepConsistencyLoss(DataTeacher(), Segments(4), lambda step: 4)
    one = eqx.filter_jit(lambda x: exact(state.model, Example(x), step=0, key=KEY))
    _, told = one(jnp.asarray(batch.x[0]))
    ratio = told["segment_target_norm"]
    assert float(jnp.nansum(ratio.over())) == pytest.approx(
        float(np.sqrt(np.mean(batch.x[0] ** 2))), rel=1e-4
    )


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_accumulated_parts_give_the_step_of_the_whole_batch(parts):
    whole, split = learner(), learner(accumulate=parts)
    first, second = start(whole), start(split)
    for batch in batches(4):
        first, expected = whole.step(first, batch)
        second, metrics = split.step(second, batch)
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4)
    for a, b in zip(arrays(first), arrays(second), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (Example(np.zeros((8, 2), "u1")), "float32, got uint8: .* 127"),
        (Example(np.zeros((8, 2), "f2")), "float32, got float16"),
    ],
)
def test_what_is_no_batch_is_refused(batch, words):
    made = learner()
    with pytest.raises(ValueError, match=words):
        fit(made, start(made), [batch], steps=1)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_second_signal_does_what_it_did_before():
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_what_ignores_ctrl_c_still_does():
    # As what a shell starts in the background.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_batches_that_do_not_split_are_named():
    made = learner(accumulate=3)
    with pytest.raises(ValueError, match=r"batch_size 8 .* 4 devices in 3"):
        fit(made, start(made), batches(1), steps=1)
    with pytest.raises(ValueError, match="8 rows do not split into accumulate=3"):
        made.step(start(made), batches(1)[0])
    with pytest.raises(ValueError, match="accumulate is 1 or more, got 0"):
        learner(accumulate=0)


@pytest.mark.parametrize("steps", [fixed_steps(1), adaptive_steps(1e-2)], ids=repr)
def test_a_solve_that_fails_is_a_step_that_is_skipped(steps):
    network = MLPConfig(2, width=8, depth=1, embedding=8).build(key=KEY)
    teacher = ODETeacher(Denoiser(network, Cosine()), diffrax.Heun(), steps)
    made = learner(MultistepConsistencyLoss(teacher, Segments(2)))
    data = batches(3)
    data[1].x[3] = np.nan
    end = fit(made, start(made), data, steps=3)
    assert (int(end.step), int(end.skipped)) == (3, 1)
    assert all(np.all(np.isfinite(a)) for a in arrays(end))


def test_an_array_that_is_filled_again_does_not_change_a_batch_that_is_there():
    x = np.zeros(8 * 2 + 16, np.float32)
    # Where XLA's CPU would take it as it is: at a multiple of 64 bytes.
    first = -x.ctypes.data % 64 // 4
    x = x[first : first + 16].reshape(8, 2)
    placed = split_batch(Example(x), make_mesh(1))
    x += 1.0
    np.testing.assert_array_equal(placed.x, 0.0)


class Labels:
    """As of a JAX array: its least is a program on the device."""

    def __array__(self, dtype=None, copy=None):
        return np.arange(4, dtype=np.int32)

    def min(self, *_, **__):
        pytest.fail("asked the device")


def test_labels_on_a_device_are_looked_at_without_a_program_there():
    check_classes(Labels(), (0, 3))
    with pytest.raises(ValueError, match=r"labels go from 0 to 3, .* from 0 to 2,"):
        check_classes(Labels(), (0, 2))


class Own(AbstractNetwork):
    """A network of one's own, which has an `embed` that is not the library's."""

    embed: eqx.nn.Linear

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        return self.embed(z)


def test_a_network_of_ones_own_may_call_its_fields_as_it_likes():
    network, made = Own(eqx.nn.Linear(2, 2, key=KEY)), learner()
    state = made.init(Denoiser(network, Cosine()), key=KEY)
    (batch,) = batches(1)
    batch = batch._replace(label=np.full(8, 99, np.int32))
    state = fit(made, state, [batch], steps=1)
    x = generate(state.ema, DDIM(), uniform_grid(2), batch.x, batch.label, key=KEY)
    assert x.shape == (8, 2)


def test_the_next_batch_is_put_on_the_devices_before_a_step_is_asked_for(monkeypatch):
    order, made = [], learner()
    real = Learner.step

    def step(self, state, batch):
        order.append("step")
        return real(self, state, batch)

    def stream():
        for batch in batches(4):
            order.append("batch")
            yield batch

    monkeypatch.setattr(Learner, "step", step)
    fit(made, start(made), stream(), steps=4)
    assert order == ["batch", "batch", *["step", "batch"] * 2, "step", "step"]


@pytest.mark.slow
def test_one_device_does_what_four_do():
    made, data = learner(), batches(3)
    four = fit(made, start(made), data, steps=3)
    one = fit(made, start(made), data, steps=3, mesh=make_mesh(1))
    assert len(one.step.sharding.device_set) == 1
    for a, b in zip(arrays(four), arrays(one), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_fit_takes_the_batches_of_its_steps_and_no_other():
    made, stream = learner(), iter(batches(6))
    fit(made, start(made), stream, steps=4)
    np.testing.assert_array_equal(next(stream).x, batches(6)[4].x)


def test_every_batch_is_looked_at():
    config = MLPConfig(2, width=8, depth=1, embedding=8, classes=3)
    made = learner()
    state = made.init(Denoiser(config.build(key=KEY), Cosine()), key=KEY)
    first, second = (b._replace(label=np.zeros(8, np.int32)) for b in batches(2))
    wrong = second._replace(label=np.full(8, 3, np.int32))
    with pytest.raises(ValueError, match="labels go from 3 to 3"):
        fit(made, state, [first, wrong], steps=2)


def test_every_batch_must_split():
    made = learner()
    first, second = batches(2)
    short = Example(second.x[:6])
    with pytest.raises(ValueError, match=r"batch_size 6 .* 4 devices"):
        fit(made, start(made), [first, short], steps=2)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("placed", [False, True])
def test_fit_leaves_the_state_that_it_is_given(data, fsdp, placed):
    made, mesh = learner(), make_mesh(data, fsdp)
    given = place(start(made), mesh) if placed else start(made)
    # An average that is the model itself is no buffer to give away twice.
    given = eqx.tree_at(lambda s: s.ema, given, given.model)
    ends = [fit(made, given, batches(2), steps=2, mesh=mesh) for _ in range(2)]
    assert int(given.step) == 0
    for a, b in zip(arrays(ends[0]), arrays(ends[1]), strict=True):
        np.testing.assert_array_equal(a, b)
