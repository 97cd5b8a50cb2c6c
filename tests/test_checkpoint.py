import functools
import json
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from mcmeqx import (
    DDIM,
    Checkpoints,
    Cosine,
    Denoiser,
    DiffusionLoss,
    Example,
    JsonLines,
    Learner,
    ProgressBar,
    Speed,
    emoji_student,
    emoji_teacher,
    eps_prediction,
    fit,
    generate,
    load_model,
    make_mesh,
    read_metrics,
    save_model,
    uniform_grid,
)
from mcmeqx._structure import structure
from mcmeqx.nets import AbstractNetwork, MLPConfig

pytestmark = pytest.mark.usefixtures("as_users_run")


def model(seed: int = 0, width: int = 8, **options) -> Denoiser:
    network = MLPConfig(2, width, 1, embedding=8).build(key=jax.random.key(seed))
    return Denoiser(network, **{"schedule": Cosine()} | options)


def batches(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(rng.normal(size=(8, 2)).astype("f4")) for _ in range(count)]


def learner(loss=None) -> Learner:
    return Learner(loss or DiffusionLoss(), optax.adam(1e-2), 0.9)


def start(made: Learner, seed: int = 0, **options):
    return made.init(model(seed, **options), key=jax.random.key(seed))


def leaves(tree) -> list[np.ndarray]:
    """Every array of a tree, integers and keys too."""
    flat = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [
        jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        for a in flat
    ]


def assert_same_bits(first, second):
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_cut_off_at_any_step_ends_with_the_same_bits(tmp_path):
    made, data = learner(), batches(6)
    whole = fit(made, start(made), data, steps=6)
    for cut in (1, 4, 6):
        folder = tmp_path / str(cut)
        saving = Checkpoints(folder)
        options = {"save": saving.save, "save_every": 1}
        fit(made, start(made), data[:cut], steps=cut, **options)
        saving.wait()
        state = Checkpoints(folder).restore(start(made, seed=9))
        assert int(state.step) == cut
        assert_same_bits(fit(made, state, data[cut:], steps=6), whole)


def test_the_last_two_checkpoints_stay_and_another_network_is_refused(tmp_path):
    made, saving = learner(), Checkpoints(tmp_path)
    fresh = start(made)
    assert saving.restore(fresh) is fresh
    fit(made, fresh, batches(7), steps=7, save=saving.save, save_every=2)
    saving.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [4, 6]
    with pytest.raises(
        ValueError, match=r"does not fit .*network\.config\.width is 8 there and 16"
    ):
        Checkpoints(tmp_path).restore(start(made, width=16))


class Own(AbstractNetwork):
    """A network that sets no `config`, which Equinox then marks on its instances."""

    layer: eqx.nn.Linear
    negate: bool = eqx.field(static=True)
    act: Callable = eqx.field(static=True)

    def __init__(self, *, negate: bool):
        self.layer, self.negate = eqx.nn.Linear(2, 2, key=jax.random.key(0)), negate
        self.act = functools.partial(jax.nn.gelu, approximate=False)

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        return self.layer(self.act(-z if self.negate else z))


def test_a_network_of_ones_own_comes_back_and_its_every_field_counts(tmp_path):
    made, saving = learner(), Checkpoints(tmp_path)
    states = [
        made.init(Denoiser(Own(negate=n), Cosine()), key=jax.random.key(0))
        for n in (False, True)
    ]
    saving.save(fit(made, states[0], batches(1), steps=1))
    saving.wait()
    assert int(Checkpoints(tmp_path).restore(states[0]).step) == 1
    with pytest.raises(ValueError, match=r"network\.negate is False there and True"):
        Checkpoints(tmp_path).restore(states[1])
    parts = structure(states[0].model.network)
    assert parts["layer.weight"] == "float32[2,2]"
    # Another process has it elsewhere in memory.
    assert parts["act"] == "functools.partial(<function gelu>, approximate=False)"


class Plain(eqx.Module):
    """A network that is no `AbstractNetwork`."""


def test_a_network_that_no_checkpoint_could_hold_is_refused_before_a_run():
    # As outside the tests, where nothing checks types.
    own = eqx.tree_at(lambda m: m.network, model(), Plain(), is_leaf=_is_network)
    with pytest.raises(ValueError, match=r"Plain is no .*nets\.AbstractNetwork"):
        own.__check_init__()


def _is_network(node) -> bool:
    return isinstance(node, AbstractNetwork)


def test_a_state_older_than_the_folders_is_refused(tmp_path):
    made, saving = learner(), Checkpoints(tmp_path)
    state = fit(made, start(made), batches(4), steps=4, save=saving.save, save_every=2)
    saving.save(state)
    saving.wait()
    for steps in (3, 4):
        other = fit(made, start(made, seed=9), batches(steps), steps=steps)
        with pytest.raises(ValueError, match=rf"step 4 already, .* at step {steps}"):
            Checkpoints(tmp_path).save(other)
    again = Checkpoints(tmp_path)
    again.save(again.restore(start(made, seed=9)))
    assert_same_bits(Checkpoints(tmp_path).restore(start(made, seed=9)), state)


def test_a_checkpoint_and_what_callbacks_wrote_are_of_one_step():
    made, told, saved = learner(), [], []
    fit(
        made,
        start(made),
        batches(9),
        steps=9,
        callbacks=[lambda step, state, metrics: told.append(step)],
        save=lambda state: saved.append((int(state.step), told[-1])),
        save_every=4,
    )
    assert saved == [(4, 4), (8, 8)]
    assert told == list(range(1, 10))
    for name in ("save_every", "patience"):
        with pytest.raises(
            ValueError, match=f"{name} is a number of steps, 1 or more, got 0"
        ):
            fit(made, start(made), [], steps=1, **{name: 0})


def test_who_reads_a_folder_sees_what_is_saved_later(tmp_path):
    made, saving = learner(), Checkpoints(tmp_path, keep=1)
    states = [fit(made, start(made), batches(n), steps=n) for n in (1, 2)]
    reading = Checkpoints(tmp_path)
    for state in states:
        saving.save(state)
        saving.wait()
        assert_same_bits(reading.restore(start(made)), state)


def test_saving_does_not_ask_whether_processes_are_to_stop(tmp_path, monkeypatch):
    asked = []
    service = multihost_utils, "reached_preemption_sync_point"
    monkeypatch.setattr(*service, lambda step: asked.append(step))
    made, saving = learner(), Checkpoints(tmp_path)
    for n in (1, 2):
        saving.save(fit(made, start(made), batches(n), steps=n))
    saving.wait()
    assert asked == []


def test_who_reads_a_folder_takes_nothing_from_who_writes_there(tmp_path):
    made, saving = learner(), Checkpoints(tmp_path)
    states = [fit(made, start(made), batches(n), steps=n) for n in (1, 2)]
    unfinished = tmp_path / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    for state in states:
        saving.save(state)
        assert not unfinished.exists()
        # While the disk is written.
        Checkpoints(tmp_path).restore(start(made))
        (tmp_path / "other.orbax-checkpoint-tmp").mkdir(exist_ok=True)
        Checkpoints(tmp_path).restore(start(made))
        assert (tmp_path / "other.orbax-checkpoint-tmp").exists()
    saving.wait()
    assert_same_bits(Checkpoints(tmp_path).restore(start(made)), states[1])


def test_a_step_that_another_program_has_gone_past_is_refused(tmp_path):
    made = learner()
    states = [fit(made, start(made), batches(n), steps=n) for n in (2, 3)]
    late = Checkpoints(tmp_path)
    other = Checkpoints(tmp_path)
    other.save(states[1])
    other.wait()
    with pytest.raises(
        ValueError, match="holds step 3 already, this state is at step 2"
    ):
        late.save(states[0])


def test_a_config_that_is_no_json_is_refused_before_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"config is no JSON: .*PosixPath"):
        Checkpoints(tmp_path, config={"out": tmp_path})


@pytest.mark.usefixtures("as_users_run")
def test_a_save_compiles_nothing(tmp_path, caplog):
    made, mesh = learner(), make_mesh(4, 1)
    saving, data = Checkpoints(tmp_path), batches(4)

    def wait(state):
        saving.save(state)
        saving.wait()

    state = fit(made, start(made), data, steps=1, mesh=mesh)
    jax.random.key_data(state.key)
    with jax.log_compiles():
        wait(state)
        compiled = [r.getMessage() for r in caplog.records if "XLA" in r.getMessage()]
    assert compiled == []


def test_a_block_of_checkpoints_waits_for_the_last(tmp_path):
    made = learner()
    with Checkpoints(tmp_path) as saving:
        saving.save(fit(made, start(made), batches(1), steps=1))
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_disk_that_takes_no_more_is_named(tmp_path, monkeypatch):
    made, saving = learner(), Checkpoints(tmp_path)
    state = fit(made, start(made), batches(1), steps=1)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    for part, call in (
        ("save", lambda: saving.save(state)),
        ("wait_until_finished", saving.wait),
    ):
        monkeypatch.setattr(ocp.CheckpointManager, part, full)
        words = rf"written to {tmp_path}, .* Make room .*No space left on device"
        with pytest.raises(OSError, match=words):
            call()
        monkeypatch.undo()


def test_milestones_stay_beside_the_newest(tmp_path):
    made, saving = learner(), Checkpoints(tmp_path, keep=1, milestone=4)
    fit(made, start(made), batches(7), steps=7, save=saving.save, save_every=1)
    saving.wait()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [4, 7]
    with pytest.raises(ValueError, match="milestone is a number, 1 or more, got 0"):
        Checkpoints(tmp_path, milestone=0)


def test_a_model_file_gives_its_model_back(tmp_path):
    path, given = tmp_path / "model", model(1)
    save_model(path, given)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert_same_bits(load_model(path, model(2)), given)
    assert_same_bits(load_model(path, eqx.filter_eval_shape(model)), given)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"width": 16}, r"array 0 is \[8, 8\], not"),
        ({"schedule": Cosine(-20.0, 20.0)}, "its schedule is Cosine"),
        ({"to_x": eps_prediction}, "its prediction is v_prediction"),
    ],
)
def test_a_model_file_of_another_model_is_refused(tmp_path, like, message):
    path = tmp_path / "model.eqx"
    save_model(path, model())
    if "width" in like:
        message = r"array \d is \[.*\], not \[.*16.*\]"
    with pytest.raises(ValueError, match=message):
        load_model(path, model(**like))


def test_a_damaged_model_file_is_refused(tmp_path):
    path = tmp_path / "model.eqx"
    save_model(path, model())
    content = path.read_bytes()
    for damaged in (content[:-9], content[:5], content + b"x", b"\x93NUMPY", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.eqx does not hold a model"):
            load_model(path, model())
    with pytest.raises(FileNotFoundError, match="absent"):
        load_model(tmp_path / "absent.eqx", model())


def test_a_model_file_of_half_precision_is_half_as_large(tmp_path):
    path, given = tmp_path / "model.eqx", model(1, width=256)
    save_model(path, given)
    size = path.stat().st_size
    save_model(path, given, stored="float16")
    assert path.stat().st_size < 0.51 * size
    for a, b in zip(leaves(load_model(path, given)), leaves(given), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2.0**-11, atol=2.0**-25)
    before = path.read_bytes()
    large = jax.tree.map(lambda a: a * jnp.float32(1e6), given.network)
    with pytest.raises(ValueError, match="float16 holds 65504"):
        save_model(path, Denoiser(large, Cosine()), stored="float16")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]
    path.write_bytes(before.replace(b'"float16"', b'"float80"', 1))
    with pytest.raises(ValueError, match="stored as float80"):
        load_model(path, given)


def test_the_embedded_teacher_sees_through_noise():
    teacher = emoji_teacher()
    assert sum(a.size for a in leaves(teacher)) < 3e6
    noise = jax.random.normal(jax.random.key(0), (3, 64, 64))
    z = teacher.schedule.diffuse(jnp.ones_like(noise), noise, 0.5)
    x = eqx.filter_jit(teacher)(z, jnp.float32(0.5), jnp.int32(0))
    # A white picture in as much noise: the margin of an emoji stays nearly white.
    assert float(jnp.mean((x - 1) ** 2)) < 0.1


@pytest.mark.slow
def test_the_embedded_student_ends_where_its_teacher_does():
    noise = np.random.default_rng(0).standard_normal((6, 3, 64, 64), np.float32)
    labels, key = np.arange(6), jax.random.key(0)

    def sampled(model, steps):
        return generate(model, DDIM(), uniform_grid(steps), noise, labels, key=key)

    teacher = emoji_teacher()
    far = sampled(teacher, 256)
    few, student = (
        np.sqrt(np.mean((sampled(m, 8) - far) ** 2)) for m in (teacher, emoji_student())
    )
    # 0.31 for the teacher's 8 steps, a half of the pictures' own deviation.
    assert student < 0.5 * few


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_json_lines_and_a_resumed_run_takes_back_what_it_repeats(tmp_path):
    path, state = tmp_path / "m.jsonl", start(learner())
    for first, last in ((0, 7), (5, 9)):
        lines = JsonLines(path, every=2, steps=9, start=first)
        for step in range(first + 1, last + 1):
            lines(step, state, {"loss": 1.0 / step})
    found = rows(path)
    assert [(r["step"], r["loss"]) for r in found] == [
        (s, 1.0 / s) for s in (2, 4, 6, 8, 9)
    ]
    seconds = [r["seconds"] for r in found]
    assert seconds == sorted(seconds)
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
    with pytest.raises(ValueError, match="got 0"):
        JsonLines(path, every=0, steps=9)


def test_a_metrics_line_that_was_cut_while_written_is_left_out(tmp_path):
    path, state = tmp_path / "m.jsonl", start(learner())
    assert read_metrics(path) == []
    lines = JsonLines(path, every=1, steps=9)
    for step in (1, 2):
        lines(step, state, {"loss": 0.5})
    whole = path.read_text()
    path.write_text(whole[:-9])
    assert [r["step"] for r in read_metrics(path)] == [1]
    JsonLines(path, every=1, steps=9, start=1)(2, state, {"loss": 0.25})
    assert [(r["step"], r["loss"]) for r in rows(path)] == [(1, 0.5), (2, 0.25)]


def test_the_bar_shows_loss_speed_and_progress(capsys):
    callbacks = (Speed(batch_size=8), ProgressBar("teacher", steps=8, start=4))
    state = start(learner())
    for step in range(5, 9):
        metrics = {"loss": 1.0 / step, "skipped": float(step > 6)}
        for callback in callbacks:
            callback(step, state, metrics)
    shown = capsys.readouterr().err
    words = ("teacher", "loss 0.1250", "images/s", "1 steps skipped", "8/8")
    assert all(word in shown for word in words)


def test_the_config_lies_beside_the_state(tmp_path):
    made = learner()
    saving = Checkpoints(tmp_path, config={"seed": 3})
    saving.save(fit(made, start(made), batches(1), steps=1))
    saving.wait()
    about = json.loads((tmp_path / "1" / "about" / "metadata").read_text())
    assert about["config"] == {"seed": 3}


def test_a_checkpoint_that_holds_more_than_is_asked_is_refused(tmp_path):
    sgd = optax.sgd(1e-2)
    more = Learner(DiffusionLoss(), optax.chain(sgd, optax.trace(0.5)))
    less = Learner(DiffusionLoss(), optax.chain(sgd))
    saving = Checkpoints(tmp_path)
    saving.save(fit(more, start(more), batches(1), steps=1))
    saving.wait()
    with pytest.raises(ValueError, match=r"does not fit .*opt_state\.1"):
        Checkpoints(tmp_path).restore(start(less))
