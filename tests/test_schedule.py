import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SCHEDULES, alpha_sigma, theta

from mcmeqx import AbstractNoiseSchedule, Cosine, Denoiser, Shifted
from mcmeqx.nets import MLPConfig

schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
TIMES = np.arange(1281) / 1280


@schedules
def test_alpha_and_sigma_lie_on_the_unit_circle_at_the_angle(schedule):
    alpha, sigma = jax.vmap(schedule.alpha)(TIMES), jax.vmap(schedule.sigma)(TIMES)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-12)
    expected = alpha_sigma(schedule, TIMES)
    np.testing.assert_allclose(alpha, expected[0], atol=1e-10)
    np.testing.assert_allclose(sigma, expected[1], atol=1e-10)


@pytest.mark.parametrize("bounds", [(-15.0, 15.0), (-20.0, 20.0), (-6.0, 13.0)])
def test_cosine_runs_from_one_bound_to_the_other(bounds):
    schedule = Cosine(*bounds)
    assert float(schedule.logsnr(0.0)) == pytest.approx(bounds[1], abs=1e-9)
    assert float(schedule.logsnr(1.0)) == pytest.approx(bounds[0], abs=1e-9)


@pytest.mark.parametrize(("bound", "error"), [(15.0, 1e-3), (20.0, 1e-2), (30.0, 1.0)])
def test_in_float32_cosine_meets_its_ends_nearly(bound, error):
    schedule = Cosine(-bound, bound)
    ends = jax.vmap(schedule.logsnr)(np.float32([0.0, 1.0]))
    assert ends.dtype == jnp.float32
    np.testing.assert_allclose(ends, [bound, -bound], atol=error)


def test_shifted_moves_each_end_by_its_own_resolution():
    schedule = Shifted(512, 32, 256)
    assert float(schedule.logsnr(0.0)) == pytest.approx(15 - 2 * np.log(16), abs=1e-9)
    assert float(schedule.logsnr(1.0)) == pytest.approx(-15 - 2 * np.log(2), abs=1e-9)


@pytest.mark.parametrize("schedule", [*SCHEDULES, Cosine(-30.0, 30.0)], ids=repr)
def test_logsnr_is_finite_and_falls_in_float32(schedule):
    logsnr = jax.vmap(schedule.logsnr)(TIMES.astype(np.float32))
    assert logsnr.dtype == jnp.float32
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.diff(logsnr) < 0)


@schedules
@pytest.mark.parametrize("dt", [0.5, 0.125, 1 / 64])
def test_sin_gap_is_the_sine_of_the_angle_between(schedule, dt):
    t = TIMES[dt <= TIMES]
    gap = jax.vmap(lambda t: schedule.sin_gap(t, dt))(t)
    expected = np.sin(theta(schedule, t) - theta(schedule, t - dt))
    np.testing.assert_allclose(gap, expected, rtol=1e-11)


@schedules
def test_sin_gap_keeps_its_digits_in_float32_at_a_teacher_step(schedule):
    t, s = TIMES[1:], TIMES[:-1]
    dt = np.full_like(t, 1 / 1280, np.float32)
    gap = jax.vmap(schedule.sin_gap)(t.astype(np.float32), dt)
    assert gap.dtype == jnp.float32
    expected = np.sin(theta(schedule, t) - theta(schedule, s))
    np.testing.assert_allclose(gap, expected, rtol=1e-5)


@schedules
def test_kappa_is_sin_gap_over_sigma(schedule):
    t, s = TIMES[1:], TIMES[:-1] * 0.9
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (jax.vmap(schedule.alpha)(u), jax.vmap(schedule.sigma)(u)) for u in (t, s)
    )
    kappa = jax.vmap(schedule.sin_gap)(t, t - s) / sigma_t
    np.testing.assert_allclose(kappa, alpha_s - alpha_t * sigma_s / sigma_t, atol=1e-11)


def test_interpolation_of_32_to_64_has_the_stated_middle_and_distance():
    schedule, plain = Shifted(64, 32, 64), Cosine()
    assert float(schedule.logsnr(0.5)) == pytest.approx(-np.log(2), abs=1e-10)
    for side, middle in ((128, -1.39), (512, -2.77)):
        logsnr = float(Shifted(side, 32, side).logsnr(0.5))
        assert logsnr == pytest.approx(middle, abs=5e-3)
    difference = jax.vmap(plain.alpha)(TIMES) - jax.vmap(schedule.alpha)(TIMES)
    assert float(np.max(np.abs(difference))) == pytest.approx(0.137, abs=5e-4)


def test_equal_resolutions_without_a_shift_are_the_plain_schedule():
    same = jax.vmap(Shifted(64, 64, 64).logsnr)(TIMES)
    np.testing.assert_allclose(same, jax.vmap(Cosine().logsnr)(TIMES), atol=1e-12)


@schedules
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_noise_and_velocity_come_back_from_the_mixture(schedule, t):
    x, eps = np.random.default_rng(0).normal(size=(2, 5))
    x, eps = jnp.asarray(x), jnp.asarray(eps)
    alpha, sigma = alpha_sigma(schedule, t)
    z = schedule.diffuse(x, eps, t)
    np.testing.assert_allclose(z, alpha * x + sigma * eps, atol=1e-10)
    np.testing.assert_allclose(schedule.eps(z, x, t), eps, atol=1e-9)
    velocity = schedule.velocity(z, x, t)
    np.testing.assert_allclose(velocity, alpha * eps - sigma * x, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine(5.0, -5.0), "5.0, -5.0"),
        (lambda: Cosine(-15.0, 31.0), "31.0"),
        (lambda: Cosine(-40.0, 15.0), "-40.0"),
        (lambda: Shifted(0, 32, 64), "image_resolution"),
        (lambda: Shifted(64, 0, 64), "low"),
        (lambda: Shifted(64, 32, -1), "high"),
        (lambda: Shifted(64, 1, 1024), "low=1, high=1024"),
    ],
)
def test_a_schedule_that_cannot_be_names_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@schedules
def test_the_rate_of_the_angle_is_its_derivative(schedule):
    h, ts = 1e-6, np.array([0.001, 0.3, 0.5, 0.8, 0.999])
    expected = (theta(schedule, ts + h) - theta(schedule, ts - h)) / (2 * h)
    rate = jax.jit(jax.vmap(schedule.angle_rate))
    np.testing.assert_allclose(rate(ts), expected, rtol=1e-6)
    assert float(schedule.angle_rate(1)) == float(schedule.angle_rate(1.0))
    np.testing.assert_allclose(rate(ts.astype(np.float32)), expected, rtol=1e-5)


class Ends(AbstractNoiseSchedule):
    """A schedule of which the two ends are known."""

    ends: tuple[float, float] = eqx.field(static=True)

    def logsnr(self, t):
        return jnp.where(t < 0.5, *self.ends)

    def sin_gap(self, t, dt):
        raise NotImplementedError


@pytest.mark.parametrize(
    "ends", [(np.inf, -5.0), (5.0, -np.inf), (-5.0, 5.0), (1.0, 1.0), (np.nan, -5.0)]
)
def test_a_denoiser_has_a_schedule_that_falls_and_is_finite(ends):
    network = MLPConfig(2, 8, 1, embedding=8).build(key=jax.random.key(0))
    Denoiser(network, Ends((5.0, -5.0)))
    words = rf"Ends\.logsnr goes from {ends[0]} at t = 0 to .* finite at both"
    with pytest.raises(ValueError, match=words):
        Denoiser(network, Ends(ends))


def test_numbers_of_a_schedule_are_no_arrays_that_training_would_change():
    class Learned(AbstractNoiseSchedule):
        slope: jax.Array

        def logsnr(self, t):
            return -self.slope * t

        def sin_gap(self, t, dt):
            return self.slope * dt

    network = MLPConfig(2, 8, 1, embedding=8).build(key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"Learned holds arrays, .* static fields"):
        Denoiser(network, Learned(jnp.float32(1.0)))


def test_a_shift_that_would_make_logsnr_rise_is_refused_just_where_it_would():
    # The cosine logsnr falls by 4 a = 6.279 a unit of time in the middle:
    # 2 log 23 = 6.271, 2 log 24 = 6.356.
    ts = np.linspace(0.49, 0.51, 201)
    assert np.all(np.diff(jax.vmap(Shifted(64, 1, 23).logsnr)(ts)) < 0)
    with pytest.raises(ValueError, match="low=1, high=24"):
        Shifted(64, 1, 24)


def test_a_shift_moves_the_schedule_it_is_given():
    base, t, dt = Cosine(-20.0, 6.0), np.array([0.2, 0.6, 1.0]), 0.2
    schedule = Shifted(64, 32, 64, base)
    expected = alpha_sigma(schedule, t)
    np.testing.assert_allclose(jax.vmap(schedule.alpha)(t), expected[0], atol=1e-10)
    gap = jax.vmap(lambda t: schedule.sin_gap(t, dt))(t)
    expected = np.sin(theta(schedule, t) - theta(schedule, t - dt))
    np.testing.assert_allclose(gap, expected, rtol=1e-11)
