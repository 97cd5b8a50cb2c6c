"""PyTorch's contestant samples and distils by the formulas that the others have.

    pip install "mcmeqx[test,oracle]"
    pytest -m oracle -n 0

A network that is linear stands in for that of Diffusers.
"""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from linear_velocity import target, turn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]


@pytest.fixture
def linear():
    """A network v = c z, which notes when it and its copies are asked, and which."""
    import torch

    class Linear(torch.nn.Module):
        def __init__(self, c):
            super().__init__()
            self.c = torch.nn.Parameter(torch.tensor(c))
            self.times, self.asked, self.copies = [], [], []

        def __deepcopy__(self, memo):
            other = Linear(self.c.item())
            other.times, other.asked = self.times, self.asked
            self.copies.append(other)
            return other

        def forward(self, z, time):
            self.times.append(time.max().item())
            self.asked.append(self.c.item())
            return types.SimpleNamespace(sample=self.c * z)

    return Linear


@pytest.fixture
def peer(linear, monkeypatch):
    """The contestant's module, which finds no GPU."""
    stand_in = types.SimpleNamespace(__version__="0")
    monkeypatch.setitem(sys.modules, "diffusers", stand_in)
    import _peer_torch

    monkeypatch.setattr(_peer_torch, "GPU", False)
    monkeypatch.setattr(_peer_torch.torch, "set_num_threads", lambda count: None)
    return _peer_torch


@pytest.mark.parametrize("steps", [1, 4])
def test_sampling_turns_noise_by_equal_angles(peer, linear, steps, monkeypatch):
    network, path, jump = linear(0.3), [], peer.jump

    def noted(z, *arguments):
        path.append((z, jump(z, *arguments)))
        return path[-1][1]

    monkeypatch.setattr(peer, "network", lambda: network)
    monkeypatch.setattr(peer, "jump", noted)
    peer.contestant().jobs[f"sample{steps}"]()
    noise, end = path[0][0].numpy(), path[-1][1].numpy()
    assert (noise.shape, noise.std()) == ((8, 3, 32, 32), pytest.approx(1.0, abs=0.05))
    expected = turn(0.3, 1.0, 1.0 - 1.0 / steps) ** steps * noise
    np.testing.assert_allclose(end, expected, atol=1e-5)
    assert network.times == [1000.0 * k / steps for k in range(steps, 0, -1)]


def test_a_target_is_what_teacher_and_student_end_at(peer, linear):
    torch, c, taught = peer.torch, 0.3, 0.8
    n = np.array([1, 2, 32, 33, 100, 255, 256])
    z = torch.randn(len(n), 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = peer.target_of(linear(c), linear(taught), z, torch.tensor(n)).detach()
    angle = 0.5 * np.pi * n / 256
    x = np.cos(angle) - np.sin(angle) * target(c, taught, n)
    expected = x[:, None, None, None] * z.numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_a_step_is_adams_and_the_average_follows(peer, linear, monkeypatch):
    network, drawn, randint = linear(0.3), [], peer.torch.randint

    def noted(*arguments):
        drawn.append(arguments)
        return randint(*arguments)

    monkeypatch.setattr(peer, "network", lambda: network)
    monkeypatch.setattr(peer.torch, "randint", noted)
    job = peer.contestant().jobs["cd"]
    teacher, average = network.copies
    # Far from the student, which then has to follow.
    teacher.c.data.fill_(0.9)
    job()
    assert drawn == [(1, 257, (8,))]
    # The teacher, the student for the target and for its gradient.
    assert network.asked == pytest.approx([0.9, 0.3, 0.3])
    moved = network.c.item() - 0.3
    assert moved == pytest.approx(1e-4, rel=1e-2)
    assert average.c.item() - 0.3 == pytest.approx(1e-3 * moved, abs=3e-8)
    assert teacher.c.item() == pytest.approx(0.9)
