"""The table of samplers' errors: what it holds, and that it is of one teacher."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import solver_error
from _problems import Problem
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
