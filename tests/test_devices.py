"""One run on many meshes, in two processes, and on other devices than it began on."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mcmeqx as mc

PROGRAM = Path(__file__).with_name("program.py")
pytestmark = pytest.mark.slow


def launch(out: Path, *options: object) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    command = [sys.executable, str(PROGRAM), str(out), *map(str, options)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "xla")}
    return subprocess.Popen(
        command, env=os.environ | cache, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def result(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "result.npz") as stored:
        return {name: stored[name] for name in stored.files}


def assert_close(found, expected, atol):
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-4)
    for name in expected:
        if name.startswith("a"):
            np.testing.assert_allclose(found[name], expected[name], atol=atol)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "alone"
    finish(launch(out, "--devices", 1))
    return out


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_every_mesh_gives_the_run_of_one_device(alone, data, fsdp):
    out = alone.parent / f"{data}x{fsdp}"
    finish(launch(out, "--data", data, "--fsdp", fsdp))
    found, expected = result(out), result(alone)
    assert_close(found, expected, atol=2e-4)
    # Sharded in truth: a device holds its share and what is too short to share.
    assert expected["here"] == pytest.approx(expected["total"], rel=1e-3)
    share = float(found["here"] / found["total"])
    assert 1 / fsdp <= share < 1 / fsdp + 0.15


def test_two_processes_do_what_one_does(alone):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = alone.parent / "two"
    options = ("--devices", 2, "--data", 2, "--fsdp", 2)
    hosts = ("--coordinator", f"localhost:{port}", "--count", 2, "--index")
    finish(*(launch(out, *options, *hosts, index) for index in range(2)))
    assert_close(result(out), result(alone), atol=2e-4)


def test_a_run_goes_on_on_other_devices(alone):
    out = alone.parent / "moved"
    for devices, fsdp, steps in ((8, 4, 2), (1, 1, 3), (4, 2, 5)):
        finish(launch(out, "--devices", devices, "--fsdp", fsdp, "--steps", steps))
    assert_close(result(out), result(alone), atol=2e-4)


def test_arrays_are_split_by_the_rule_and_short_ones_are_whole():
    assert jax.device_count() == 4
    mesh = mc.make_mesh(2, 2)
    tree = {
        "wide": np.zeros((4, 48, 64), "f4"),
        "odd": np.zeros((6, 65, 67), "f4"),
        "short": np.zeros(64, "f4"),
    }
    placed = mc.place({k: jax.numpy.asarray(v) for k, v in tree.items()}, mesh)
    shapes = {k: a.addressable_shards[0].data.shape for k, a in placed.items()}
    assert shapes == {"wide": (4, 48, 32), "odd": (3, 65, 67), "short": (64,)}


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (3, 2, "asks for 6 devices, there are 4"),
        (None, 3, "fsdp divides 4"),
        (0, 1, "data=0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(data, fsdp, message):
    with pytest.raises(ValueError, match=message):
        mc.make_mesh(data, fsdp)


def test_a_step_of_the_small_preset_compiles_ahead_and_each_device_has_its_share(
    tmp_path,
):
    script = PROGRAM.parents[1] / "benchmarks" / "memory.py"
    table = tmp_path / "memory.csv"
    command = [sys.executable, str(script), "--network", "imagenet64_small"]
    subprocess.run([*command, "--out", str(table)], check=True, timeout=400)
    (row,) = csv.DictReader(table.read_text().splitlines())
    # Student, average, two moments and teacher, four bytes a parameter.
    total = 5 * 4 * int(row["parameters"])
    assert int(row["state_and_teacher_bytes"]) == pytest.approx(total, rel=1e-6)
    assert int(row["arguments_bytes_a_device"]) == pytest.approx(total / 8, rel=0.01)
    assert int(row["temporary_bytes_a_device"]) < 16e9
    # Weights are gathered for student, target and teacher, whose bytes are bfloat16's.
    assert int(row["collected_bytes_a_device"]) > 3 * 2 * int(row["parameters"])
