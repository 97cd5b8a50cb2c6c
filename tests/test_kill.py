"""Processes killed at any moment go on bit for bit; asked to stop, they save first."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("program.py")
STEPS = 600
OPTIONS = ("--devices", "2", "--fsdp", "2", "--steps", str(STEPS))
SAVING = ("--save-every", "2", "--pause", "0.02")
pytestmark = pytest.mark.slow


def launch(out: Path, *options: str) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    (out / "ready").unlink(missing_ok=True)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "xla")}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(out), *OPTIONS, *options],
        env=os.environ | cache,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


def newest(out: Path) -> int:
    """The newest whole checkpoint's step."""
    steps = [int(p.name) for p in (out / "saved").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def result(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "result.npz") as stored:
        return {name: stored[name] for name in stored.files}


def assert_same_bits(found: Path, expected: Path) -> None:
    a, b = result(found), result(expected)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("kill") / "undisturbed"
    finish(launch(out))
    return out


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(undisturbed):
    out, kills, saved = undisturbed.parent / "killed", 0, []
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for attempt in range(40):
        process = launch(out, *SAVING)
        if attempt % 5:
            # The others are killed while they start.
            wait_for(out / "ready", process)
        if attempt % 2:
            before = newest(out)
            while newest(out) == before and process.poll() is None:
                time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 2.0))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        saved.append(newest(out))
        if kills == 12:
            finish(launch(out))
            break
    assert kills >= 10, f"only {kills} kills, seed {seed}"
    assert saved == sorted(saved)
    assert len(set(saved)) >= 6, saved
    assert_same_bits(out, undisturbed)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_asked_to_stop_hands_its_state_over_and_goes_on(undisturbed, number):
    out = undisturbed.parent / number.name
    process = launch(out, *SAVING)
    wait_for(out / "ready", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert f"by {number.name}" in errors
    finish(launch(out))
    assert_same_bits(out, undisturbed)
