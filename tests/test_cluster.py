"""When a process joins others, and with what it asks JAX to do so."""

import inspect
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import jax
import pytest

from mcmeqx import _sharding, _signals, connect

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import _machine
import _runs

LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": ("1", "4"),
    "OMPI_COMM_WORLD_SIZE": ("1", "2"),
    "MEGASCALE_NUM_SLICES": ("1", "2"),
    "TPU_WORKER_HOSTNAMES": ("one-host", "host-0,host-1"),
}
"""Variables of those who start processes, for one and for several."""
TPU = ("TPU_PROCESS_ADDRESSES", "TPU_ML_PLATFORM", "TPU_SKIP_MDS_QUERY")


@pytest.fixture
def joined(monkeypatch):
    """Calls of jax.distributed.initialize, on a machine without a launcher."""
    calls = []
    for name in (*LAUNCHERS, *TPU):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: calls.append(a))
    before = jax.config.jax_cpu_collectives_implementation
    yield calls
    jax.config.update("jax_cpu_collectives_implementation", before)


def test_a_process_on_its_own_joins_nobody(joined, monkeypatch):
    connect()
    for name, (value, _) in LAUNCHERS.items():
        monkeypatch.setenv(name, value)
    connect()
    assert joined == []


class Device:
    def __init__(self, name: str):
        self.name = name
        self.process_index, self.id = map(int, name.split("."))


def test_a_mesh_goes_process_by_process_and_leaves_none_out(monkeypatch):
    devices = [Device(name) for name in ("1.0", "0.1", "1.2", "0.3")]
    monkeypatch.setattr(_sharding, "Mesh", lambda grid, *_, **__: grid)
    # Without the check of types, which knows JAX's mesh alone.
    make = inspect.unwrap(_sharding.make_mesh)
    rows = [[device.name for device in row] for row in make(fsdp=2, devices=devices)]
    assert rows == [["0.1", "0.3"], ["1.0", "1.2"]]
    assert make(1, 2, devices).shape == (1, 2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="asks for 2 devices, there are 4; leave data"):
        make(1, 2, devices)


def test_a_process_that_has_joined_does_not_join_again(joined, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    connect("host:1", 2, 0)
    assert joined == []


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, value) in LAUNCHERS.items()]
)
def test_a_launcher_of_several_processes_is_left_to_jax(
    joined, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    connect()
    assert joined == [(None, None, None)]


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        # jax sets the first where it finds TPUs and libtpu, the second where it does
        # not; on a machine of neither name it asks Google's metadata for the hosts.
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True),
    ],
)
def test_on_tpu_machines_jax_is_asked_unless_they_name_their_hosts(
    joined, monkeypatch, environment, joins
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    connect()
    assert joined == ([(None, None, None)] if joins else [])


def test_processes_that_are_told_who_they_are_join(joined):
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"in \[0, 2\), got {index}"):
            connect("localhost:1234", 2, index)
    assert joined == []
    connect("localhost:1234", 2, 1)
    assert joined == [("localhost:1234", 2, 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", None, None), "together or none of them"),
        ((None, 2, 0), "together or none of them"),
        (("localhost:1", 2, 2), r"index is a process in \[0, 2\), got 2"),
    ],
)
def test_half_an_address_is_refused(joined, given, message):
    with pytest.raises(ValueError, match=message):
        connect(*given)
    assert joined == []


@pytest.mark.parametrize(
    ("batch_size", "flags", "cores", "devices"),
    [
        (16, "", 2, [2]),
        (16, "--xla_dump_to=x", 12, [4]),
        (15, "", 2, [1]),
        (16, "", None, [1]),
        (16, "--xla_force_host_platform_device_count=8", 2, []),
    ],
)
def test_a_cpu_is_one_device_for_each_core_that_gets_its_rows(
    joined, monkeypatch, batch_size, flags, cores, devices
):
    jax.devices()  # Those of the tests: made before the flags are gone.
    asked = []
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(_machine.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(jax.config, "update", lambda *named: asked.append(named))
    _machine.start(_machine.Mesh(), _machine.Hosts(), batch_size=batch_size)
    found = [value for name, value in asked if name == "jax_num_cpu_devices"]
    assert found == devices


def test_questions_of_several_processes_rise_from_stage_to_stage(monkeypatch):
    asked = []

    def reached(question):
        asked.append(question)
        return len(asked) == 4

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    service = _signals.multihost_utils
    monkeypatch.setattr(service, "reached_preemption_sync_point", reached)
    found = []
    for _ in range(2):
        with _signals.stop_signals() as stop:
            found += [stop(), stop()]
    assert found == [None, None, None, signal.SIGTERM]
    assert asked == list(range(asked[0], asked[0] + 4))


TWO = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import _machine, _runs
import mcmeqx as mc
from mcmeqx._signals import stop_signals

index = int(sys.argv[3])
mc.connect(f"localhost:{sys.argv[2]}", 2, index)
_machine.meet("up")
with stop_signals() as stop:
    former = any([stop() for _ in range(5)])
# Between two stages, where nobody asks.
if index == 1:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)
with stop_signals() as stop:
    print(former, [bool(stop()) for _ in range(3)])
try:
    with _runs.alone(Path(sys.argv[4])):
        print("alone")
except ValueError as error:
    print(error)
_machine.part()
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.slow
def test_two_processes_stop_together_and_end_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    recipes, lock = str(Path(_machine.__file__).parent), tmp_path / "lock"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with filelock.FileLock(lock):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", TWO, recipes, port, str(i), str(lock)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        said = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
        stops, refused = said
        assert stops == "False [True, False, False]"
        assert refused.startswith(f"another program trains in {tmp_path} now")
        # Of its own after they have parted, as ever.
        assert process.returncode == -signal.SIGTERM


def test_a_lock_that_cannot_be_had_ends_all_processes(tmp_path, monkeypatch):
    told = []

    def by_first(value):
        told.append(value)
        return value

    monkeypatch.setattr(_runs, "by_first", by_first)
    path = tmp_path / "lock"
    path.mkdir()
    with pytest.raises(OSError, match="lock"), _runs.alone(path):
        pytest.fail("held")
    assert told == [False]
    # What the others are told of it.
    monkeypatch.setattr(_runs, "first", lambda: False)
    monkeypatch.setattr(_runs, "by_first", lambda value: False)
    with pytest.raises(ValueError, match="another program trains"), _runs.alone(path):
        pytest.fail("held")


def test_recipes_keep_compiled_programs_unless_told_where(
    joined, monkeypatch, tmp_path
):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    try:
        _machine.start(_machine.Mesh(), _machine.Hosts())
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        mesh = _machine.start(_machine.Mesh(fsdp=2), _machine.Hosts())
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mcmeqx" / "xla")
        assert dict(mesh.shape) == {"data": 2, "fsdp": 2}
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
