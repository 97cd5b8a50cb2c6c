import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SCHEDULES, alpha_sigma, gaussian_denoiser, scale

from mcmeqx import DDIM, Cosine, DPMSolver, sample, uniform_grid

VAR = np.array([0.25, 1.0, 2.25])
KEY = jax.random.key(0)


def run(sampler, schedule, ts, z=None):
    z = jnp.ones(3) if z is None else z
    denoise = gaussian_denoiser(schedule, jnp.asarray(VAR, z.dtype))
    return np.asarray(sample(denoise, sampler, schedule, z, ts, key=KEY))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 7, 640])
def test_it_is_the_literal_algorithm_2_of_lu_et_al(schedule, steps):
    ts = uniform_grid(steps)
    alpha, sigma = alpha_sigma(schedule, ts)
    lam = np.log(alpha / sigma)
    z, x_before = np.ones(3), None
    for i in range(1, steps + 1):
        h = lam[i] - lam[i - 1]
        a, s = alpha[i - 1], sigma[i - 1]
        x = a * VAR / (a**2 * VAR + s**2) * z
        data = x
        if 1 < i < steps:
            r = (lam[i - 1] - lam[i - 2]) / h
            data = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * x_before
        z = sigma[i] / s * z - alpha[i] * np.expm1(-h) * data
        x_before = x
    np.testing.assert_allclose(run(DPMSolver(), schedule, ts), z, rtol=1e-9)
    single = run(DPMSolver(), schedule, ts.astype("f4"), jnp.ones(3, jnp.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, z, atol=3e-5)


def test_its_order_is_two_between_finite_noise_levels():
    steps = [32, 64, 128, 256]
    exact = scale(Cosine(), VAR, 0.1) / scale(Cosine(), VAR, 0.9)
    grids = [np.linspace(0.9, 0.1, n + 1) for n in steps]
    errors = [np.abs(run(DPMSolver(), Cosine(), ts) - exact).max() for ts in grids]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.1)


def test_it_is_nearer_to_the_exact_flow_than_ddim_at_equal_evaluations():
    exact = scale(Cosine(), VAR, 0.0) / scale(Cosine(), VAR, 1.0)
    for steps in (8, 64):
        error, plain = (
            np.abs(run(s, Cosine(), uniform_grid(steps)) - exact).max()
            for s in (DPMSolver(), DDIM())
        )
        assert error < 0.5 * plain
