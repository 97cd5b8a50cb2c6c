"""What a person sees of a run beside the bar and the JSON lines."""

import struct
import sys

import jax
import jax.numpy as jnp
import pytest

from mcmeqx import (
    Cosine,
    Denoiser,
    JsonLines,
    Speed,
    TensorBoard,
    TrainState,
    read_metrics,
)
from mcmeqx import _callbacks as module
from mcmeqx.nets import MLPConfig

MODEL = Denoiser(MLPConfig(2, 4, 1, embedding=4).build(key=jax.random.key(0)), Cosine())
ZERO = jnp.zeros((), jnp.int32)
STATE = TrainState(ZERO, MODEL, MODEL, None, jax.random.key(0), ZERO)


def test_speed_is_over_the_last_fifty_steps_and_a_share_of_the_peak(monkeypatch):
    clock = iter([*range(10), *(10 + 0.5 * i for i in range(100))])
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    speed, seen = Speed(batch_size=16, flops=3e9, peak=12e9), []
    for step in range(1, 111):
        metrics = {"loss": 1.0}
        speed(step, STATE, metrics)
        seen.append(metrics)
    assert "images_per_second" not in seen[0]
    assert seen[5]["images_per_second"] == pytest.approx(16.0)
    assert seen[5]["flops_utilisation"] == pytest.approx(0.25)
    assert seen[-1]["images_per_second"] == pytest.approx(32.0)
    bare = {}
    plain = Speed(batch_size=1)
    monkeypatch.setattr(module.time, "perf_counter", iter([0.0, 1.0]).__next__)
    plain(1, STATE, bare)
    plain(2, STATE, bare)
    assert set(bare) == {"images_per_second"}


def test_what_is_not_finite_is_null_in_the_lines(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl", every=1, steps=2)
    lines(1, STATE, {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 1.0})
    text = (tmp_path / "m.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (record,) = read_metrics(tmp_path / "m.jsonl")
    assert (record["loss"], record["grad_norm"], record["skipped"]) == (None, None, 1)


def events(folder) -> list:
    """What the event files hold, read without the writer's code."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            # A record is its length, a checksum, the event and a checksum.
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(folder) -> list[tuple[int, str, float]]:
    """(step, name, value) of the event files."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def test_tensorboard_gets_every_scalar_of_every_so_many_steps(tmp_path):
    board = TensorBoard(tmp_path, every=2)
    for step in range(1, 6):
        board(step, STATE, {"loss": 0.5 * step, "grad_norm": float(jnp.float32(step))})
    board.close()
    assert scalars(tmp_path) == [
        (2, "loss", 1.0),
        (2, "grad_norm", 2.0),
        (4, "loss", 2.0),
        (4, "grad_norm", 4.0),
    ]


def test_tensorboard_hides_what_was_written_beyond_the_start(tmp_path):
    TensorBoard(tmp_path, every=1, start=7).close()
    # TensorBoard drops what is of the step of a session's start, and of later ones.
    starts = [e for e in events(tmp_path) if e.HasField("session_log")]
    assert [(e.step, e.session_log.status) for e in starts] == [(8, 1)]


def test_without_a_writer_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"mcmeqx\[tensorboard\]"):
        TensorBoard(tmp_path, every=1)


def test_lines_may_go_to_a_folder_that_is_not_there_yet(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    lines = JsonLines(path, every=1, steps=1)
    lines(1, STATE, {"loss": 0.5})
    assert [r["loss"] for r in read_metrics(path)] == [0.5]


@pytest.mark.parametrize("kind", [JsonLines, TensorBoard])
def test_metrics_are_written_every_step_or_fewer(tmp_path, kind):
    options = {"steps": 9} if kind is JsonLines else {}
    with pytest.raises(ValueError, match="1 or more, got 0"):
        kind(tmp_path / "metrics", every=0, **options)
    assert not list(tmp_path.iterdir())


def test_lines_go_on_with_the_time_that_training_took(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 4, "seconds": 100.0}\n{"step": 6, "seconds": 150.0}\n')
    JsonLines(path, every=1, steps=9, start=4)(5, STATE, {"loss": 1.0})
    records = read_metrics(path)
    assert [r["step"] for r in records] == [4, 5]
    assert 100 <= records[-1]["seconds"] < 110


@pytest.mark.parametrize("line", ['{"a": 1}', '{"step": 1}', "3", "no JSON"])
def test_a_file_of_other_lines_is_named_and_kept(tmp_path, line):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl holds no JsonLines"):
        JsonLines(path, every=1, steps=1)
    assert path.read_text() == f"{line}\n"
