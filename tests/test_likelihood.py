import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import MixtureFlow, alpha_sigma, gaussian_denoiser, mixture_denoiser, scale
from scipy.stats import multivariate_normal

from mcmeqx import (
    Cosine,
    Shifted,
    adaptive_steps,
    bits_per_dim,
    dequantise,
    log_likelihood,
)

EXACT = adaptive_steps(1e-8)
# The prior at t = 1 is that of the diffused data to alpha_1 = 4e-6.
LONG = Cosine(-25.0, 25.0)
MEANS = np.array([[-0.8, 0.1, 0.4], [0.9, 0.3, -0.2]])
KEY = jax.random.key(3)
COV = jnp.asarray([[1.0, 0.6], [0.6, 1.0]])


def correlated(z, t):
    """The denoiser of two elements of a normal law."""
    alpha, sigma = LONG.alpha(t), LONG.sigma(t)
    inside = alpha**2 * COV + sigma**2 * jnp.eye(2)
    return alpha * COV @ jnp.linalg.solve(inside, z)


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Cosine(), marks=pytest.mark.slow),
        LONG,
        # With noise at t = 0, where alpha is far from 1.
        Cosine(-15.0, 2.0),
        pytest.param(Shifted(64, 32, 64), marks=pytest.mark.slow),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "var",
    [pytest.param([0.5] * 3, marks=pytest.mark.slow), [0.01, 1.0, 4.0]],
    ids=repr,
)
def test_the_likelihood_of_gaussian_data_is_the_closed_form(schedule, var):
    var, x = np.array(var), np.array([0.1, -0.7, 1.5])
    found = log_likelihood(
        gaussian_denoiser(schedule, jnp.asarray(var)),
        schedule,
        jnp.asarray(x),
        stepsize_controller=EXACT,
    )
    alpha, _ = alpha_sigma(schedule, 0.0)
    std = scale(schedule, var, 0.0) / scale(schedule, var, 1.0) / alpha
    expected = multivariate_normal.logpdf(x, cov=np.diag(std**2))
    assert float(found.nats) == pytest.approx(expected, abs=2e-6)
    assert float(found.standard_error) == 0.0


@pytest.mark.parametrize("x", [[0.0, 0.0, 0.0], [0.9, 0.4, -0.1], [-1.5, 1.0, 0.4]])
def test_the_likelihood_of_a_mixture_is_its_density(x):
    found = log_likelihood(
        mixture_denoiser(LONG, MEANS, 0.4),
        LONG,
        jnp.asarray(x),
        stepsize_controller=EXACT,
    )
    expected = MixtureFlow(LONG, MEANS, 0.4).log_density(np.array(x), 0.0)
    assert float(found.nats) == pytest.approx(expected, abs=2e-5)


@pytest.mark.slow
def test_float32_has_the_likelihood_of_float64():
    x = jnp.asarray([0.9, 0.4, -0.1])

    def nats(dtype):
        denoise = mixture_denoiser(Cosine(), MEANS.astype(dtype), 0.4)
        return log_likelihood(denoise, Cosine(), x.astype(dtype)).nats

    assert nats(jnp.float32).dtype == jnp.float32
    gap = float(nats(jnp.float32)) - float(nats(jnp.float64))
    assert abs(gap) < 1e-3


@pytest.mark.slow
def test_probes_estimate_the_trace_without_bias_and_know_their_error():
    x, probes, runs = jnp.asarray([0.1, -0.2, 0.3]), 4, 200
    denoise = mixture_denoiser(LONG, MEANS, 0.4)
    exact = float(log_likelihood(denoise, LONG, x).nats)

    def estimate(key):
        return log_likelihood(denoise, LONG, x, probes=probes, key=key)

    found = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, runs))
    nats = np.asarray(found.nats)
    spread = nats.std()
    assert abs(nats.mean() - exact) < 4 * spread / np.sqrt(runs)
    stated = np.sqrt(np.mean(np.asarray(found.standard_error) ** 2))
    assert stated == pytest.approx(spread, rel=0.2)
    assert spread > 1e-3


def test_probes_know_nothing_of_the_noise_that_dequantise_draws_from_their_key():
    pixels = jnp.asarray([0.1, -0.2])

    def both(key):
        x = dequantise(pixels, key=key)
        return x - pixels, log_likelihood(correlated, LONG, x, probes=1, key=key).nats

    noise, nats = map(np.asarray, jax.vmap(both)(jax.random.split(KEY, 64)))
    # Of two signs e the estimate is the trace and 2 e_1 e_2 of what stands off it.
    x = np.asarray(pixels) + noise
    exact = multivariate_normal.logpdf(x, cov=np.asarray(COV))
    alike = np.sign(nats - exact) == np.sign(noise[:, 0] * noise[:, 1])
    assert np.abs(nats - exact).min() > 0.05
    # Four standard deviations of 64 fair coins.
    assert 16 <= alike.sum() <= 48


@pytest.mark.parametrize("options", [{"probes": 0, "key": KEY}, {"probes": 4}])
def test_probes_without_a_key_or_a_number_are_refused(options):
    with pytest.raises(ValueError, match="probes >= 1 and a key"):
        log_likelihood(gaussian_denoiser(LONG, 1.0), LONG, jnp.ones(2), **options)


def test_pixels_spread_evenly_over_their_bins_need_eight_bits():
    # 256 bins of 2/255 tile the cube of side 512/255: a uniform density has 8 bits.
    d = 12
    nats = -d * np.log(512 / 255)
    assert float(bits_per_dim(jnp.asarray(nats), d)) == pytest.approx(8.0)
    pixels = jnp.asarray(np.repeat([-1.0, 1 / 255, 1.0], 5000))
    spread = dequantise(pixels, key=KEY) - pixels
    assert np.abs(spread).max() <= 1 / 255
    assert float(spread.std()) == pytest.approx(2 / 255 / np.sqrt(12), rel=0.03)
    assert abs(float(spread.mean())) < 5 * 2 / 255 / np.sqrt(12 * 15000)


def test_signs_have_the_trace_of_a_multiple_of_the_identity_exactly():
    x, denoise = jnp.asarray([0.1, -0.2, 0.3]), gaussian_denoiser(Cosine(), 0.5)
    exact = log_likelihood(denoise, Cosine(), x).nats
    for probes in (1, 3):
        found = log_likelihood(denoise, Cosine(), x, probes=probes, key=KEY)
        # e . (c I) e = c d for every vector of signs.
        np.testing.assert_allclose(found.nats, exact, rtol=1e-4)
    np.testing.assert_allclose(found.standard_error, 0.0, atol=1e-9)


@pytest.mark.slow
def test_the_standard_error_is_that_of_a_mean_of_probes():
    x = jnp.asarray([0.1, -0.2])
    exact = log_likelihood(correlated, LONG, x).nats
    one = log_likelihood(correlated, LONG, x, probes=1, key=KEY)
    assert np.isnan(one.standard_error)
    # Of two signs an estimate is off by c or by -c.
    c, probes = abs(float(one.nats - exact)), 8
    found = log_likelihood(correlated, LONG, x, probes=probes, key=KEY)
    u = float(found.nats - exact) / c
    expected = c * np.sqrt((1 - u**2) / (probes - 1))
    assert expected > 0
    assert float(found.standard_error) == pytest.approx(expected, rel=1e-3)
