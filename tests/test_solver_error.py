"""The table of samplers' errors: what it holds, and that it is of one teacher."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from named_samplers import samplers_of

import mcmeqx as mc

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _methods
import _problems
import solver_error
from _evaluation import tree_digest
from _problems import Mixture, Problem, exact_denoiser
from _tables import read_rows

pytestmark = pytest.mark.usefixtures("as_users_run")


@pytest.fixture
def asked(monkeypatch):
    """The methods that were run, on a problem whose ends are zeros."""
    made = []

    def problem(samples: int, seed: int) -> Problem:
        zeros = np.zeros((samples, 2))
        distances = lambda x: (float(x.max()), 2.0)  # noqa: E731
        return Problem(None, zeros, None, None, zeros, distances)  # type: ignore[arg-type]

    def runs(problem):
        for method, count in (("DDIM", 4), ("DDIM", 8), ("Tsit5, adaptive 0.1", 0)):

            def run(method=method, count=count):
                made.append(method)
                return count or 31.5, problem.exact + np.array([3.0, 4.0])

            yield method, count, run

    monkeypatch.setattr(solver_error, "runs", runs)
    for name in solver_error.PROBLEMS:
        monkeypatch.setitem(solver_error.PROBLEMS, name, problem)
    return made


def test_a_row_says_what_it_is_of_and_is_measured_once(asked, tmp_path):
    config = solver_error.Config(samples=3, seed=5, out=tmp_path)
    table = solver_error.main(config)
    rows = read_rows(table, solver_error.COLUMNS)
    assert [row["evaluations"] for row in rows] == ["4", "8", "31.5"]
    for row in rows:
        # Root mean square of 3 and 4.
        assert float(row["rms_error"]) == pytest.approx(12.5**0.5, rel=1e-5)
        assert (row["distance_to_data"], row["distance_to_flow"]) == ("4", "2")
        assert (row["samples"], row["seed"]) == ("3", "5")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    solver_error.main(config)
    assert asked == ["DDIM", "DDIM", *2 * ["Tsit5, adaptive 0.1"]]
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for other in (replace(config, samples=4), replace(config, seed=6)):
        with pytest.raises(ValueError, match="give another --out"):
            solver_error.main(other)


def test_rows_of_another_teacher_are_not_mixed_in(asked, tmp_path, monkeypatch):
    config = solver_error.Config("teacher", samples=3, out=tmp_path)
    before = solver_error.main(config).read_bytes()
    (tmp_path / "other.eqx").write_bytes(b"another")
    monkeypatch.setattr(solver_error.mc, "EMOJI_TEACHER", tmp_path / "other.eqx")
    with pytest.raises(ValueError, match="rows of teacher_sha256="):
        solver_error.main(config)
    assert (tmp_path / "solver_error_teacher.csv").read_bytes() == before
    assert len(asked) == 3


@pytest.mark.slow
def test_the_flow_of_one_gaussian_is_exact_and_integrators_end_there():
    rng = np.random.default_rng(0)
    mean, noise = rng.standard_normal((1, 3)), rng.standard_normal((2, 3))
    mean, noise = mean.astype(np.float32), noise.astype(np.float32)
    # Short in sigma / alpha, so that equal steps of it can follow.
    short = mc.Cosine(logsnr_min=-3.0, logsnr_max=3.0)
    model = exact_denoiser(Mixture(jnp.asarray(mean), 0.2), short)
    solved = [
        jax.vmap(build(short, model, 200))(noise)
        for build in (_methods.by_ratio, _methods.by_logsnr)
    ]
    ends = {mc.Cosine(): [_problems._exact_flow(mean, noise)], short: solved}
    for schedule, found in ends.items():
        (a, b), (s, r) = (
            [float(f(jnp.float32(t))) for t in (1.0, 0.0)]
            for f in (schedule.alpha, schedule.sigma)
        )
        # The flow of a Gaussian keeps (z - alpha mean) over its own deviation.
        ratio = np.hypot(0.2 * b, r) / np.hypot(0.2 * a, s)
        for end in found:
            np.testing.assert_allclose(
                end, b * mean + ratio * (noise - a * mean), atol=2e-5
            )


def test_samples_of_the_teacher_are_judged_by_other_images_and_by_its_flow(monkeypatch):
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones(
        (8, 8, 3), "u1"
    )
    labels, asked = np.arange(6, dtype=np.int32), {}
    images = mc.data.Images(pixels, labels, tuple("abcdef"), "few")

    def flow(model, solver, controller, noise, labels):
        asked.update(noise=noise, labels=labels)
        return SimpleNamespace(z=noise + 1.0)

    def moments(network, x):
        return "flow" if np.array_equal(x, asked["noise"] + 1.0) else "samples"

    def of_data(network, images, rows):
        asked.update(headroom=images.headroom, rows=rows)
        return "data"

    metrics = mc.metrics
    monkeypatch.setattr(mc.data, "openmoji", lambda: images)
    monkeypatch.setattr(metrics.EfficientNetLite0, "load", lambda: None)
    monkeypatch.setattr(metrics, "frechet_distance", lambda a, b: (a, b))
    monkeypatch.setattr(_problems, "data_moments", of_data)
    monkeypatch.setattr(_problems, "moments_of", moments)
    monkeypatch.setattr(_problems, "counted_flow", flow)
    problem = _problems.teacher(2, seed=0)
    assert problem.noise.shape == (2, 3, 8, 8)
    assert problem.noise.std() == pytest.approx(1.0, abs=0.2)
    np.testing.assert_array_equal(problem.exact, problem.noise + 1.0)
    assert problem.distances is not None
    found = problem.distances(problem.noise)
    assert found == (("samples", "data"), ("samples", "flow"))
    # As the teacher learned, and what is not held out.
    assert asked["headroom"] == 0.1
    held = np.asarray(problem.data.label)
    np.testing.assert_array_equal(problem.labels, held)
    np.testing.assert_array_equal(asked["labels"], held)
    assert sorted([*held, *labels[asked["rows"]]]) == [0, 1, 2, 3, 4, 5]
    assert tree_digest(problem.model) == tree_digest(mc.emoji_teacher())


def test_every_method_is_run_at_the_evaluations_that_it_says(monkeypatch):
    asked = []

    def generate(model, sampler, grid, *_, **__):
        asked.append((sampler, len(grid) - 1))

    monkeypatch.setattr(_methods.mc, "generate", generate)
    noise = np.ones((2, 2), np.float32)
    model = exact_denoiser(Mixture(jnp.ones((1, 2), jnp.float32), 1.0), mc.Cosine())
    rows = np.random.default_rng(0).standard_normal((8, 2))
    batch = mc.Example(jnp.asarray(rows, jnp.float32))
    # With labels there are no Runge-Kutta methods of other variables.
    problem = Problem(model, noise, np.zeros(2, np.int32), batch, noise, None)
    ts, key = np.linspace(0.0, 1.0, 33), jax.random.key(0)
    table = mc.measure_x_var(model, batch, ts, key=key)
    samplers = samplers_of(table)
    seen = set()
    for method, number, run in _methods.runs(problem):
        if "adaptive" in method:
            continue
        evaluations, _ = run()
        sampler, steps = asked.pop()
        assert evaluations == number
        if "fixed" in method:
            assert type(sampler.solver).__name__ == method.split(",")[0]
            # Dormand and Prince's and Tsitouras's pairs: six new stages a step.
            inner = len(sampler.stepsize_controller.ts) - 1
            assert (steps, number) == (1, 6 * inner + 1)
            continue
        seen.add(method)
        assert tree_digest(sampler) == tree_digest(samplers[method])
        # Karras et al. 2022: Heun's last step is Euler's.
        assert number == (2 * steps - 1 if method == "Heun" else steps)
    assert seen <= samplers.keys()
    assert {"DDIM", "Heun", "aDDIM, measured x_var"} <= seen
