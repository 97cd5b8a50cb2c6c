"""The programs that measure speed: what their rows say, and what makes a row void."""

import dataclasses
import importlib.util
import io
import json
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_velocity import target, turn

import mcmeqx as mc
from mcmeqx.nets import Stage, UViTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _device
import _peer_mcmeqx
import _plain_jax
import _roofline
import _work
import _worker
import memory
import overhead
import throughput
import versus
from _rounds import median_and_spread
from _tables import appended, read_rows

pytestmark = pytest.mark.usefixtures("as_users_run")
TINY = UViTConfig(8, (Stage("resnet", 4, 1),), classes=3, embedding=8, head_width=4)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(_work._NETWORKS, "tiny", TINY)


def test_a_processor_is_named_by_its_model_and_any_other_device_by_its_kind(
    tmp_path, monkeypatch
):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: 2 GHz\nflags\t: fpu\n")
    monkeypatch.setattr(_device, "_CPU_INFO", info)
    assert _device.named("cpu") == "Some CPU: 2 GHz"
    assert _device.named("NVIDIA H100 80GB HBM3") == "NVIDIA H100 80GB HBM3"
    info.write_text("processor\t: 0\n")
    assert _device.named("cpu") == "cpu"
    monkeypatch.setattr(_device, "_CPU_INFO", tmp_path / "none")
    assert _device.named("cpu") == "cpu"


@pytest.mark.slow
def test_a_row_of_throughput_fits_together(tiny, tmp_path):
    out = tmp_path / "t.csv"
    jobs = ("ct", "sample1", "sample4")
    throughput.main(
        throughput.Config(("tiny",), jobs, batch_sizes=(4,), rounds=3, out=out)
    )
    found = read_rows(out, throughput.COLUMNS)
    rows = {row["job"]: {k: _number(v) for k, v in row.items()} for row in found}
    assert tuple(rows) == jobs
    for row in rows.values():
        seconds = row["milliseconds"] / 1e3
        done = 4 * row["flops_an_image"] / seconds
        assert row["images_a_second"] == pytest.approx(4 / seconds, rel=1e-2)
        assert row["utilisation"] == pytest.approx(done / row["peak_flops"], rel=1e-2)
        assert 0.0 < row["utilisation"] < 1.0
        longer = row["arithmetic_ms"] > row["traffic_ms"]
        assert row["binds"] == ("arithmetic" if longer else "traffic")
        assert row["peak_memory_bytes"] > 0
        assert row["compile_seconds"] > 0.0
    one, four = rows["sample1"], rows["sample4"]
    assert four["flops_an_image"] == pytest.approx(4 * one["flops_an_image"], rel=0.02)
    # Target, and student forward and backward, which is twice as much.
    ratio = rows["ct"]["flops_an_image"] / one["flops_an_image"]
    assert 3.5 < ratio < 4.2


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def test_a_table_of_throughput_grows_and_compiling_alone_times_nothing(tiny, tmp_path):
    config = throughput.Config(
        ("tiny",), ("sample1",), (2,), compile_only=True, out=tmp_path / "t.csv"
    )
    throughput.main(config)
    throughput.main(config)
    first, second = read_rows(config.out, throughput.COLUMNS)
    assert first["images_a_second"] == second["images_a_second"] == ""
    assert float(second["compile_seconds"]) > 0.0
    assert first["flops_an_image"] == second["flops_an_image"] != ""


def test_a_network_that_there_is_not_is_refused_before_another_is_timed(tmp_path):
    config = throughput.Config(("demo64", "typo"), out=tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"networks are .*demo64.*trunk64.*got typo"):
        throughput.main(config)
    for changes in ({"rounds": 0}, {"batch_sizes": (8, 0)}):
        with pytest.raises(ValueError, match="is 1 or more, got 0"):
            throughput.main(throughput.Config(out=config.out, **changes))
    with pytest.raises(ValueError, match="steps is 2 or more, got 1"):
        overhead.main(overhead.Config(steps=1, out=config.out))
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depths"), [("teacher", (1, 5)), ("sample2", (3, 4))])
def test_blocks_under_a_scan_move_what_unrolled_ones_do(name, depths, monkeypatch):
    stages = tuple(Stage("transformer", 8, depth) for depth in depths)
    config = UViTConfig(16, stages, classes=3, embedding=8, head_width=8)
    job = _work.build(config, name, 2, "float32", real=False)
    counted = job.program.cost_analysis()["bytes accessed"]
    steps = 2 if name == "sample2" else 1
    arguments = job, config, name, 2, "float32"
    assert _roofline.traffic_bytes(*arguments) == steps * counted
    # As if what is deeper than two were scanned: of two and three blocks of each.
    monkeypatch.setattr(_roofline, "UNROLLED", 2)
    found = _roofline.traffic_bytes(*arguments)
    assert found == pytest.approx(steps * counted, rel=0.01)
    remat = dataclasses.replace(config, remat=True)
    assert _roofline.traffic_bytes(job, remat, *arguments[2:]) is None


def test_a_precision_that_would_be_another_is_refused(tmp_path, monkeypatch, capsys):
    out = tmp_path / "t.csv"
    for wrong in ("float64", "bf16"):
        with pytest.raises(ValueError, match=f"bfloat16, float16, got {wrong}"):
            throughput.main(throughput.Config(precisions=("float32", wrong), out=out))
        monkeypatch.setattr(sys, "argv", ["memory.py", "--precision", wrong])
        with pytest.raises(SystemExit):
            memory.parse()
        assert f"invalid choice: '{wrong}'" in capsys.readouterr().err
    assert not out.exists()


def test_a_table_that_was_cut_gets_its_next_row_on_a_line_of_its_own(tmp_path):
    table, columns = tmp_path / "t.csv", ("a", "b")
    table.touch()
    for i in range(3):
        with appended(table, columns) as rows:
            rows.writerow({"a": i, "b": "x"})
        table.write_bytes(table.read_bytes().rstrip())
    assert [r["a"] for r in read_rows(table, columns)] == ["0", "1", "2"]


def test_rows_are_there_at_once_and_never_under_other_columns(tmp_path):
    table = tmp_path / "new" / "t.csv"
    for i in range(2):
        with appended(table, ("a", "b")) as rows:
            rows.writerow({"a": i, "b": "x, y"})
            assert len(read_rows(table, ("a", "b"))) == i + 1
    assert [r["a"] for r in read_rows(table, ("a", "b"))] == ["0", "1"]
    for main, config in (
        (throughput.main, throughput.Config(out=table)),
        (versus.main, versus.Config(out=table)),
    ):
        with pytest.raises(ValueError, match="other columns: write to another"):
            main(config)  # type: ignore[arg-type]
    assert len(table.read_text().splitlines()) == 3


class Answering:
    """A contestant whose answers are known."""

    version = "1"
    device = "cpu"
    parameters = 100

    def __init__(self, name: str, jobs: tuple[str, ...], answers: Sequence[float]):
        self.name, self.jobs, self._answers = name, jobs, iter(answers)

    def ask(self, job: str) -> dict[str, float]:
        seconds = next(self._answers)
        return {"cpu": seconds, "wall": 10 * seconds}


@pytest.mark.parametrize(("accelerator", "unit"), [(False, 1.0), (True, 10.0)])
def test_contestants_are_asked_in_turn_and_the_first_rounds_left_out(
    accelerator, unit, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "--some")
    ours = Answering("mcmeqx", ("cd", "teacher"), [9, 9, 1, 2, 3, 2, 2] + [1] * 7)
    other = Answering("flax", ("cd",), [9, 9, 4, 4, 4, 4, 4])
    config = versus.Config(
        jobs=("cd", "teacher"),
        rounds=5,
        out=tmp_path / "v.csv",
        accelerator=accelerator,
    )
    taken = versus.measure(config, [ours, other])  # type: ignore[list-item]
    assert taken["cd", "mcmeqx"] == [unit * s for s in (1, 2, 3, 2, 2)]
    assert taken["cd", "flax"] == [unit * 4] * 5
    assert ("teacher", "flax") not in taken
    rows = read_rows(config.out, versus.COLUMNS)
    assert [r["contestant"] for r in rows] == ["mcmeqx", "flax"] * 5 + ["mcmeqx"] * 5
    assert [r["round"] for r in rows[:4]] == ["1", "1", "2", "2"]
    assert {r["xla_flags"] for r in rows} == {"--some"}
    assert {(r["device"], r["batch_size"]) for r in rows} == {("cpu", "8")}
    said = capsys.readouterr().out.splitlines()
    # (3 - 1) / 2 = 100% of our median: void for all. 2 of 4 seconds.
    assert "void" in said[0]
    assert "mcmeqx takes 0.50 of it  void" in said[1]
    # 1 of 1 second, no spread.
    assert "void" not in said[2]


@pytest.mark.parametrize(
    ("ours", "theirs", "void"),
    [((9, 11), (18, 22), False), ((9, 13), (18, 22), True), ((9, 11), (18, 26), True)],
)
def test_a_wide_spread_of_either_makes_a_comparison_void(ours, theirs, void):
    taken = {("cd", "mcmeqx"): [10, *ours], ("cd", "flax"): [20, *theirs]}
    assert ("void" in versus.line("cd", "flax", taken)) == void


def test_a_comparison_that_cannot_be_one_is_refused():
    with pytest.raises(ValueError, match="rounds is 5 or more, got 4"):
        versus.Config(rounds=4)
    with pytest.raises(ValueError, match="batch_size is 1 or more, got 0"):
        versus.Config(batch_size=0)
    with pytest.raises(ValueError, match="got mcmeqx, keras"):
        versus.Config(contestants=("mcmeqx", "keras"))
    with pytest.raises(ValueError, match="got flax"):
        versus.Config(contestants=("flax",))


def test_a_contestant_that_is_not_installed_is_named_and_left_out(capsys, monkeypatch):
    started = []
    monkeypatch.setattr(versus, "Resident", lambda name, config: started.append(name))
    monkeypatch.setitem(versus.NEEDS, "flax", ("no_such_package",))
    versus.residents(versus.Config(contestants=("mcmeqx", "flax")))
    assert started == ["mcmeqx"]
    said = capsys.readouterr().out
    assert "flax is left out: no_such_package not installed" in said
    assert 'pip install "mcmeqx[versus]"' in said


def test_another_size_or_device_voids_a_comparison(monkeypatch, tmp_path):
    sizes = {"mcmeqx": 100, "equinox": 102}
    devices = {"mcmeqx": "cpu", "equinox": "cpu"}

    def resident(name, config):
        found = Answering(name, ("cd",), [1.0] * 99)
        found.parameters, found.device = sizes[name], devices[name]
        found.meet = lambda: None  # type: ignore[attr-defined]
        found.end = lambda: ended.append(name)  # type: ignore[attr-defined]
        return found

    ended: list[str] = []
    monkeypatch.setattr(versus, "Resident", resident)
    kept: list[int] = []
    monkeypatch.setattr(
        versus.os, "sched_setaffinity", lambda _, cores: kept.append(len(cores))
    )
    pair, out = ("mcmeqx", "equinox"), tmp_path / "v.csv"
    with pytest.raises(SystemExit, match="void: equinox differs by more than 1%"):
        versus.main(versus.Config(contestants=pair, jobs=("cd",), out=out))
    with pytest.raises(ValueError, match=r"jobs are cd, got \['cdd'\]"):
        versus.main(versus.Config(contestants=pair, jobs=("cd", "cdd"), out=out))
    assert ended == 2 * ["mcmeqx", "equinox"]
    # The contestants, started after it, have as many cores as the row says.
    assert kept == 2 * [versus.Config().cores]
    with pytest.raises(ValueError, match="at most here, got 4096"):
        versus.main(versus.Config(contestants=pair, cores=4096, out=out))
    # As where pip installs PyTorch for GPUs and JAX for the CPU.
    sizes["equinox"], devices["equinox"] = 100, "a GPU"
    with pytest.raises(SystemExit, match="void: equinox runs on a GPU, mcmeqx on cpu"):
        versus.main(versus.Config(contestants=pair, jobs=("cd",), out=out))
    assert not out.exists()


@pytest.mark.slow
def test_processes_of_two_libraries_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(versus.os, "sched_setaffinity", lambda *_: None)
    names = ["mcmeqx", "equinox"]
    if importlib.util.find_spec("flax") is not None:
        names.append("flax")
    config = versus.Config(tuple(names), ("sample1",), 5, out=tmp_path / "v.csv")
    versus.main(config)
    rows = read_rows(config.out, versus.COLUMNS)
    assert [r["contestant"] for r in rows] == names * 5
    assert all(float(r["wall_seconds"]) > 0.0 for r in rows)
    assert {r["parameters"] for r in rows} == {
        str(mc.nets.count_parameters(mc.nets.unet32))
    }


@pytest.mark.slow
def test_a_run_is_timed_beside_its_steps(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 64, 64, 3), "u1")
    labels = rng.integers(0, 9, 40).astype("i4")
    names = tuple("abcdefghi")
    monkeypatch.setattr(
        mc.data, "openmoji", lambda: mc.data.Images(pixels, labels, names, "noise")
    )
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    config = overhead.Config(rounds=1, steps=4, out=tmp_path / "o.csv")
    with appended(config.out, overhead.COLUMNS) as table:
        table.writerow({"kind": "former"})
    shares = overhead.main(config)
    former, *rows = read_rows(config.out, overhead.COLUMNS)
    assert former["kind"] == "former"
    assert [r["kind"] for r in rows] == ["steps", "run", "saved"]
    seconds = {r["kind"]: float(r["seconds"]) for r in rows}
    share = seconds["saved"] / seconds["steps"] - 1.0
    assert shares["saved"] == pytest.approx(share, abs=1e-2)
    assert all(float(r["first_step_seconds"]) > 0.0 for r in rows)


def test_what_a_run_costs_beside_its_steps_is_a_ratio_of_medians(
    tmp_path, monkeypatch, capsys
):
    took = {
        "steps": iter([70.0, 2.0, 90.0, 4.0]),
        "run": iter([80.0, 1.0, 5.0, 50.0]),
        "saved": iter([90.0, 6.0, 1.0, 7.0]),
    }

    class Trainee:
        """Takes a first step of 9 seconds, and for the others what stands above."""

        def __init__(self, teacher_steps, mesh):
            pass

        def bare(self, batch, steps):
            return 9.0, next(took["steps"])

        def whole(self, images, steps, folder, *, saved):
            return 9.0, next(took["saved" if saved else "run"])

    monkeypatch.setattr(overhead, "Trainee", Trainee)
    monkeypatch.setattr(overhead, "start", lambda *_, **__: None)
    monkeypatch.setattr(overhead, "split_batch", lambda batch, mesh: batch)
    images = types.SimpleNamespace(take=lambda rows: None)
    monkeypatch.setattr(mc.data, "openmoji", lambda: images)
    out = tmp_path / "o.csv"
    shares = overhead.main(overhead.Config(rounds=3, steps=2, out=out))
    assert shares == {"run": 0.25, "saved": 0.5}
    said = capsys.readouterr().out
    assert "run: 25.0% of" in said
    assert "saved: 50.0% of" in said
    rows = read_rows(out, overhead.COLUMNS)
    assert [float(r["seconds"]) for r in rows] == [2, 1, 6, 90, 5, 1, 4, 50, 7]
    assert {r["first_step_seconds"] for r in rows} == {"9.000"}


def test_a_rounds_time_is_of_calls_that_were_waited_for_after_a_warm_up(monkeypatch):
    now, pending, asked = [0.0], [], []
    costs = iter([9.0, 0.125])

    def run():
        asked.append(True)
        pending.append(next(costs, 0.25))

    def wait(_):
        now[0] += sum(pending)
        pending.clear()

    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(throughput.jax, "block_until_ready", wait)
    assert throughput.seconds(types.SimpleNamespace(run=run), 3) == [0.25] * 3
    # One that compiles, one that tells how many are half a second, three such rounds.
    assert len(asked) == 1 + 1 + 3 * 4


def test_the_median_and_what_lies_about_it():
    assert median_and_spread([6.0, 1.0, 2.0]) == (2.0, 2.5)


def test_limits_are_ratios_of_what_is_known(monkeypatch):
    job = types.SimpleNamespace(flops=50)
    assert _roofline.Limits(flops=100.0, bandwidth=10.0).of(job, 20.0, 2.0) == {
        "peak_flops": 100.0,
        "utilisation": 0.25,
        "arithmetic_ms": 500.0,
        "traffic_ms": 2000.0,
        "binds": "traffic",
    }
    ticks = iter(range(99))
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(_roofline, "time", clock)
    # An update a second: four bytes read and four written of each number.
    assert _roofline.bandwidth() == 8 * 2**26


def test_a_row_is_built_in_its_precision_and_compared_with_that_ones_peak(monkeypatch):
    asked = []
    job = types.SimpleNamespace(flops=8, memory=lambda: 1, compile_seconds=1.0)

    def build(config, name, batch_size, dtype, *, real):
        asked.append(dtype)
        return job

    def peak(dtype):
        asked.append(str(dtype))
        return 1.0

    monkeypatch.setattr(throughput, "build", build)
    monkeypatch.setattr(throughput.mc, "matmul_peak", peak)
    monkeypatch.setattr(throughput, "bandwidth", lambda: 1.0)
    monkeypatch.setattr(throughput, "traffic_bytes", lambda *_: 1.0)
    monkeypatch.setattr(throughput, "seconds", lambda job, rounds: [1.0, 2.0, 6.0])
    row = throughput.row("demo64", "cd", 4, "bfloat16", throughput.Config())
    assert asked == ["bfloat16", "bfloat16"]
    assert (row["images_a_second"], row["milliseconds"]) == (2.0, 2000.0)
    assert row["spread"] == 2.5


@pytest.mark.slow
def test_a_job_costs_its_passes_and_holds_its_state_once():
    names = ("teacher", "cd", "ct", "sample1")
    jobs = {name: _work.build(TINY, name, 4, "float32", real=False) for name in names}
    # Forward and backward are three passes; a target is one more, of a teacher two.
    passes = {name: job.flops / jobs["sample1"].flops for name, job in jobs.items()}
    wanted = {"teacher": 3, "ct": 4, "cd": 5, "sample1": 1}
    assert passes == pytest.approx(wanted, abs=0.25)
    # Student, average, two moments and teacher; four images and their labels.
    kept = 5 * 4 * mc.nets.count_parameters(TINY) + 4 * (3 * 8 * 8 + 1) * 4
    temporary = jobs["cd"].program.memory_analysis().temp_size_in_bytes
    assert jobs["cd"].memory() - temporary == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_plain_peers_sample_and_distil_as_the_formulas_say(steps, monkeypatch):
    c, calls, ends = 0.3, [], []

    def apply(params, z, t):
        """v = c z."""
        calls.append(True)
        return params * z

    made = _plain_jax.contestant(apply, jnp.float32(c), "1", "NCHW")
    monkeypatch.setattr(_plain_jax.jax, "block_until_ready", ends.append)
    made.jobs[f"sample{steps}"]()
    noise = np.random.default_rng(0).normal(size=(8, 3, 32, 32))
    expected = turn(c, 1.0, 1.0 - 1.0 / steps) ** steps * noise
    np.testing.assert_allclose(ends[-1], expected, atol=1e-4)
    assert len(calls) == steps
    calls.clear()
    made.jobs["cd"]()
    # Student, target and teacher.
    assert len(calls) == 3
    (_, average, _), loss = ends[-1]
    assert loss.shape == ()
    # Adam's first step is 1e-4, and the average takes a thousandth of it.
    assert abs(float(average) - c) < 2e-7


def test_the_plain_peers_have_the_loss_of_a_network_that_is_linear():
    c, taught, key = 0.3, 0.8, jax.random.key(1)
    x = jnp.ones((64, 3, 2, 2))
    found = _plain_jax._loss(lambda params, z, t: params * z, c, taught, x, key)
    time_key, noise_key = jax.random.split(key)
    n = np.asarray(jax.random.randint(time_key, (64,), 1, 257), float)
    angle = 0.5 * np.pi * n / 256
    alpha, sigma, error = (
        a[:, None, None, None]
        for a in (np.cos(angle), np.sin(angle), c - target(c, taught, n))
    )
    z = alpha + sigma * np.asarray(jax.random.normal(noise_key, x.shape))
    # Of x, weighted by the signal-to-noise ratio plus one: that of v.
    expected = np.mean((error * z * sigma / np.maximum(sigma, 1e-2)) ** 2)
    assert float(found) == pytest.approx(expected, rel=1e-2)


def test_a_worker_tells_the_processors_time_from_the_clocks(monkeypatch, capsys):
    monkeypatch.setattr(_worker.sys, "stdin", io.StringIO("nap\n"))
    nap = {"nap": lambda: time.sleep(0.2)}
    _worker.serve(_worker.Contestant(1, "1", "cpu", nap))
    said = json.loads(capsys.readouterr().out.splitlines()[1])
    assert said["wall"] >= 0.2 > 0.1 > said["cpu"] >= 0.0


def test_this_librarys_jobs_are_waited_for(monkeypatch):
    waited, job = [], types.SimpleNamespace(run=lambda: "end")
    monkeypatch.setattr(_peer_mcmeqx, "build", lambda *_, **__: job)
    monkeypatch.setattr(_peer_mcmeqx.jax, "block_until_ready", waited.append)
    _peer_mcmeqx.contestant().jobs["cd"]()
    assert waited == ["end"]


def test_contestants_are_told_of_cores_and_batch():
    found = versus.environment(versus.Config(cores=3, batch_size=5))
    assert (found["OMP_NUM_THREADS"], found["VERSUS_BATCH_SIZE"]) == ("3", "5")
    assert found["JAX_PLATFORMS"] == "cpu"


def test_bare_steps_are_counted_and_waited_for(monkeypatch):
    did: list[str] = []
    trainee = object.__new__(overhead.Trainee)
    trainee._step = lambda _: did.append("step")
    monkeypatch.setattr(overhead.jax, "block_until_ready", lambda _: did.append("wait"))
    trainee.bare(None, 3)
    assert did == ["step", "wait", *["step"] * 3, "wait"]


def test_a_runs_steps_are_as_many_and_saved_once_halfway(tmp_path, monkeypatch):
    asked = {}

    def fit(learner, state, batches, *, callbacks, **options):
        asked.update(options)
        # The first callback begins the clock.
        callbacks[0]()
        return state

    monkeypatch.setattr(overhead.mc, "fit", fit)
    trainee = object.__new__(overhead.Trainee)
    trainee.state, trainee.learner = types.SimpleNamespace(step=61), None
    trainee.mesh = None
    pixels, labels = np.zeros((40, 8, 8, 3), np.uint8), np.zeros(40, np.int32)
    images = mc.data.Images(pixels, labels, ("a",), "n")
    trainee.whole(images, 60, tmp_path, saved=True)
    assert asked["steps"] == 61 + 1 + 60
    saved = [step for step in range(62, 123) if step % asked["save_every"] == 0]
    assert saved == [61 + 30]
    assert asked["save"] is not None
    trainee.whole(images, 60, tmp_path, saved=False)
    assert asked["save"] is None
