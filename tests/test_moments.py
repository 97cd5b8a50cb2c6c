"""Second moments that steps and samples leave, against closed forms.

Data of independent signs +-1, whose best estimate is `tanh(alpha z / sigma^2)`, and
Gaussian data. One long example is the population: its noise stands at the quantiles.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    SCHEDULES,
    alpha_sigma,
    gaussian_x_var,
    image_spectrum,
    mean_field,
    scale,
    trace_and_w2,
)
from scipy.integrate import quad
from scipy.stats import norm
from test_sampler import final_moment

from mcmeqx import (
    ADDIM,
    DDIM,
    Cosine,
    Heun,
    addim,
    ddim,
    inverse_ddim,
)

UNCLIPPED = Cosine(-30.0, 30.0)
# Times, and what DDIM then lacks: kappa^2 times the posterior variance.
STEPS = ((0.9, 0.8, 0.0245), (0.75, 0.625, 0.0380), (0.5, 0.375, 0.0342))
STEPS += ((0.3, 0.2, 0.0089),)
dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
steps_of_signs = pytest.mark.parametrize(("t", "s", "lacking"), STEPS)


def signs(t, dtype):
    """z_t, the best estimate of x, and the mean variance left in x."""
    alpha, sigma = alpha_sigma(UNCLIPPED, t)
    eps = norm.ppf((np.arange(2**15) + 0.5) / 2**15)
    eps /= np.sqrt(np.mean(eps**2))
    z = np.concatenate([sigma * eps + alpha, sigma * eps - alpha])
    x_hat = np.tanh(alpha * z / sigma**2)

    def variance(e):
        return norm.pdf(e) / np.cosh(alpha * (alpha + sigma * e) / sigma**2) ** 2

    return jnp.asarray(z, dtype), jnp.asarray(x_hat, dtype), quad(variance, -9, 9)[0]


@dtypes
@steps_of_signs
def test_what_the_best_estimate_leaves_of_the_noise(t, s, lacking, dtype):
    (alpha, sigma), (z, x_hat, left) = alpha_sigma(UNCLIPPED, t), signs(t, dtype)
    eps_hat = UNCLIPPED.eps(z, x_hat, jnp.asarray(t, dtype))
    snr = (alpha / sigma) ** 2
    assert float(jnp.mean(eps_hat**2)) == pytest.approx(1 - snr * left, abs=3e-4)
    product = float(jnp.mean(x_hat * eps_hat))
    assert product == pytest.approx(alpha / sigma * left, abs=3e-4)


@dtypes
@steps_of_signs
def test_one_step_from_the_true_law_changes_the_norm_as_eqs_12_to_14_say(
    t, s, lacking, dtype
):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(UNCLIPPED, u) for u in (t, s))
    z, x_hat, left = signs(t, dtype)
    kappa = alpha_s - alpha_t * sigma_s / sigma_t
    assert kappa**2 * left == pytest.approx(lacking, abs=6e-5)
    arguments = (UNCLIPPED, z, x_hat, jnp.asarray(t, dtype), jnp.asarray(s, dtype))

    def gained(z_s):
        assert z_s.dtype == dtype
        return float(jnp.mean(z_s**2)) - 1

    assert gained(ddim(*arguments)) == pytest.approx(-lacking, abs=4e-4)
    x_var = jnp.asarray(left, dtype)
    balanced = addim(*arguments, x_var=x_var, balanced=True)
    assert gained(balanced) == pytest.approx(0, abs=4e-4)
    noise = 1 - (alpha_t / sigma_t) ** 2 * left
    factor = np.sqrt(sigma_s**2 + kappa**2 * left / noise)
    product = alpha_t / sigma_t * left
    expected = alpha_s**2 * (1 - left) + factor**2 * noise
    expected += 2 * alpha_s * factor * product - 1
    assert gained(addim(*arguments, x_var=x_var)) == pytest.approx(expected, abs=4e-4)


@pytest.mark.parametrize(
    ("eta", "errors"),
    [
        (1.0, {8: 0.899, 64: 0.371}),
        (0.75, {8: 0.653, 64: 0.288}),
        (0.25, {8: 0.120, 64: 0.102}),
        (0.1, {8: -0.070, 64: 0.032}),
    ],
)
def test_a_share_of_the_exact_variance_errs_on_round_gaussians_as_computed_by_hand(
    eta, errors
):
    def x_var(schedule, t):
        return eta * gaussian_x_var(1.0)(schedule, t)

    for steps, error in errors.items():
        moment = final_moment(ADDIM(x_var, literal=True), UNCLIPPED, np.ones(1), steps)
        assert moment[0] - 1 == pytest.approx(error, abs=1.5e-3)
        hand = mean_field(
            UNCLIPPED, np.ones(1), steps, x_var=lambda snr: eta / (1 + snr)
        )
        assert moment[0] == pytest.approx(hand[0], rel=1e-9)


@pytest.mark.parametrize(
    ("eta", "balanced", "rows"),
    [
        (0.0, False, {8: (-0.432, 0.0736), 32: (-0.133, 0.0056)}),
        (0.75, False, {8: (-0.063, 0.0843), 32: (0.064, 0.0233)}),
        (0.25, False, {8: (-0.262, 0.0532), 32: (-0.045, 0.0064)}),
        (1.0, True, {32: (-0.085, 0.0038), 64: (-0.044, 0.0010)}),
    ],
)
def test_samples_of_a_falling_spectrum_have_the_trace_and_distance_computed_by_hand(
    eta, balanced, rows
):
    var = image_spectrum(64)

    def x_var(schedule, t):
        return eta * gaussian_x_var(jnp.asarray(var))(schedule, t)

    def left(snr):
        return eta * np.mean(var / (snr * var + 1))

    for steps, known in rows.items():
        sampler = ADDIM(x_var, balanced, literal=True)
        moment = final_moment(sampler, UNCLIPPED, var, steps)
        assert trace_and_w2(moment, var) == pytest.approx(known, abs=6e-4)
        hand = mean_field(UNCLIPPED, var, steps, x_var=left, balanced=balanced)
        np.testing.assert_allclose(moment, hand, rtol=1e-9)


VAR = np.array([0.01, 0.25, 1.0, 4.0])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [8, 1280])
def test_float32_keeps_its_digits_along_a_whole_grid(schedule, steps):
    def analytic(snr):
        return 0.1 / (2 + snr)

    for sampler, x_var in (
        (DDIM(), lambda snr: 0.0),
        (ADDIM(literal=True), analytic),
    ):
        hand = mean_field(schedule, VAR, steps, x_var=x_var)
        moment = final_moment(sampler, schedule, VAR, steps, dtype=jnp.float32)
        np.testing.assert_allclose(np.sqrt(moment), np.sqrt(hand), atol=3e-5)


# The last schedule is so steep at its ends that Heun's own error is ten times larger.
@pytest.mark.parametrize("schedule", SCHEDULES[:-1], ids=repr)
def test_float32_follows_the_flow_in_many_steps_of_heun(schedule):
    exact = scale(schedule, VAR, 0.0) / scale(schedule, VAR, 1.0)
    moment = final_moment(Heun(), schedule, VAR, 1280, dtype=jnp.float32)
    np.testing.assert_allclose(np.sqrt(moment), exact, atol=2e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("t", "s"), [(0.9, 0.1), (0.5, 0.49), (1 / 1280, 0.0), (1.0, 1 - 1 / 1280)]
)
def test_float32_inverts_a_step_as_far_as_its_rounding_allows(schedule, t, s):
    z, x = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    times = jnp.asarray(t, jnp.float32), jnp.asarray(s, jnp.float32)
    z_s = ddim(schedule, jnp.asarray(z), jnp.asarray(x), *times)
    back = inverse_ddim(schedule, jnp.asarray(z), z_s, *times)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(schedule, u) for u in (t, s))
    kappa = alpha_s - alpha_t * sigma_s / sigma_t
    # z_s is known to half a last digit; x is a difference of z_s and z, over kappa.
    digit = np.finfo(np.float32).eps
    allowed = digit * (np.abs(x) * 8 + (np.abs(z) + np.abs(z_s)) * 2 / kappa)
    assert (np.abs(np.asarray(back) - x) < allowed).all()
