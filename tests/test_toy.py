import csv
import sys
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import mcmeqx as mc
from mcmeqx import Cosine, Denoiser, x_prediction

sys.path.append(str(Path(__file__).parents[1] / "recipes"))

import toy
from _toy_data import pair, ring
from toy import Config, main


def tiny(folder: Path) -> Config:
    return Config(
        out=folder,
        iterations=2,
        batch_size=16,
        width=8,
        depth=1,
        samples=64,
        students=(1, 2),
    )


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("z", [-2.0, -0.1, 0.4, 1.3])
def test_exact_denoiser_is_the_posterior_mean(t, z):
    schedule, std = Cosine(), 0.2
    model = Denoiser(pair(std), schedule, x_prediction)
    logsnr = float(schedule.logsnr(jnp.asarray(t, jnp.float32)))
    alpha, variance = np.sqrt(1 / (1 + np.exp(-logsnr))), 1 / (1 + np.exp(logsnr))

    def joint(x):
        prior = np.exp(-((x - 1) ** 2) / (2 * std**2))
        prior += np.exp(-((x + 1) ** 2) / (2 * std**2))
        return prior * np.exp(-((z - alpha * x) ** 2) / (2 * variance))

    bends = sorted({-1.0, 1.0, float(np.clip(z / alpha, -3, 3))})
    options = {"points": bends, "limit": 500, "epsabs": 1e-13, "epsrel": 1e-9}
    mean = integrate.quad(lambda x: x * joint(x), -4, 4, **options)[0]
    mean /= integrate.quad(joint, -4, 4, **options)[0]
    x = model(jnp.asarray([z], jnp.float32), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(x[0], mean, rtol=1e-5, atol=1e-5)


def test_draws_have_the_moments_of_the_mixture():
    n, std = 20_000, 0.1
    x = ring(std).draw(n, np.random.default_rng(0)).astype(np.float64)
    error = 5 / np.sqrt(n)
    np.testing.assert_allclose(x.mean(0), 0, atol=error)
    np.testing.assert_allclose(np.cov(x.T), (0.5 + std**2) * np.eye(2), atol=error)


@pytest.mark.slow
def test_recipe_runs_prints_again_and_refuses_another_config(
    tmp_path, capsys, as_users_run
):
    config = tiny(tmp_path / "run")
    main(config)
    first = capsys.readouterr().out
    with open(config.out / "ring.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["steps"])) for row in rows] == [
        ("data", 0),
        *(("teacher, DDIM", k) for k in (1, 2, 128)),
        *(("student", k) for k in (1, 2)),
    ]
    assert all(float(row["distance"]) > 0 for row in rows)
    for picture in ("trajectories.png", "ring.png"):
        assert (config.out / picture).read_bytes().startswith(b"\x89PNG")

    written = {p: p.stat().st_mtime_ns for p in config.out.glob("*.eqx")}
    main(config)
    assert capsys.readouterr().out == first
    assert written == {p: p.stat().st_mtime_ns for p in written}

    with pytest.raises(ValueError, match="holds a run with seed=0, and seed=3"):
        main(replace(config, seed=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width"),
        ({"students": (1, 0)}, "student_steps"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"huber_eps": 0.0}, "eps must be positive"),
        ({"teacher_steps": (8.0, 4.0)}, "start=8"),
        ({"std": 0.0}, "std is a positive"),
        ({"learning_rate": -1.0}, "learning_rate is a positive"),
        ({"batch_size": 0}, "batch_size is 1 or more"),
    ],
    ids=str,
)
def test_recipe_refuses_bad_options_before_it_claims_a_folder(
    tmp_path, change, message
):
    with pytest.raises(ValueError, match=message):
        main(replace(tiny(tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


def test_recipe_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no config\.json"):
        main(tiny(tmp_path))


def test_what_is_kept_is_the_average(tmp_path, monkeypatch, as_users_run):
    config, mixture = tiny(tmp_path), pair(0.1)
    path = tmp_path / "pair-1.eqx"
    kept = jax.tree.map(lambda a: a + 1, toy.build(config, mixture, 1)[0].network)

    def fit(learner, state, batches, *, steps, callbacks):
        callbacks[-1](steps, state, {})
        average = eqx.tree_at(lambda m: m.network, state.ema, kept)
        return replace(state, ema=average)

    monkeypatch.setattr(mc, "fit", fit)
    model, _ = toy.train(config, mixture, 1, path)
    assert eqx.tree_equal(model.network, kept)
