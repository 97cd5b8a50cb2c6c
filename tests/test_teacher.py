"""Teachers that follow the flow, on Gaussian data, where it is known (`oracles`)."""

import itertools
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    GaussianModel,
    alpha_sigma,
    gaussian_student,
    gaussian_teacher,
    scale,
)

from mcmeqx import (
    Cosine,
    DistillationTeacher,
    Example,
    MidpointTeacher,
    MultistepConsistencyLoss,
    ODETeacher,
    Segments,
    Shifted,
    adaptive_steps,
    ddim,
    fixed_steps,
)
from mcmeqx._flow import flow_x

VAR = 0.25
HEUN = diffrax.Heun()


def exact_x(schedule, z, t, s):
    """The x whose DDIM step from z ends where the exact flow ends, in float64."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(schedule, u) for u in (t, s))
    z_s = scale(schedule, VAR, s) / scale(schedule, VAR, t) * z
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z) / (alpha_s - alpha_t * ratio)


schedules = pytest.mark.parametrize(
    "schedule", [Cosine(), Shifted(64, 32, 64)], ids=repr
)


@pytest.mark.parametrize(
    "schedule",
    [pytest.param(Cosine(), marks=pytest.mark.slow), Shifted(64, 32, 64)],
    ids=repr,
)
def test_the_step_is_the_exact_flow_and_keeps_its_digits_at_1280_steps(schedule):
    model = GaussianModel(schedule, VAR)
    teacher = ODETeacher(model, diffrax.Tsit5())
    z = np.random.default_rng(0).normal(size=8)
    total = 1280
    n = np.array([1, 2, 64, 640, 1279, 1280])

    @jax.jit
    @jax.vmap
    def step(t, s):
        z32 = jnp.asarray(z, jnp.float32)
        wide = teacher.step(schedule, Example(jnp.asarray(z)), jnp.asarray(z), t, s)
        narrow = teacher.step(
            schedule,
            Example(z32),
            z32,
            t.astype(jnp.float32),
            s.astype(jnp.float32),
        )
        return wide.x, narrow.x

    wide, narrow = step(n / total, (n - 1) / total)
    expected = [exact_x(schedule, z, k / total, (k - 1) / total) for k in n]
    np.testing.assert_allclose(wide, expected, atol=1e-8)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, atol=5e-6)


@pytest.mark.slow
def test_the_step_tends_to_the_exact_flow_as_the_substeps_grow():
    schedule, t, s = Cosine(), 0.8, 0.3
    z = jnp.asarray([0.5, -2.0])
    exact = scale(schedule, VAR, s) / scale(schedule, VAR, t) * z
    counts, errors = (4, 8, 16), []
    for n in counts:
        teacher = ODETeacher(gaussian_teacher(schedule, VAR), HEUN, fixed_steps(n))
        x, evaluations = teacher.step(schedule, Example(z), z, t, s)
        assert int(evaluations) == 2 * n
        errors.append(np.abs(ddim(schedule, z, x, t, s) - exact).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.2)


@schedules
def test_the_midpoint_teacher_is_of_the_second_order(schedule):
    teacher = MidpointTeacher(GaussianModel(schedule, VAR))
    t, s = 0.9, 0.2
    z = jnp.asarray([0.5, -2.0])
    exact = scale(schedule, VAR, s) / scale(schedule, VAR, t) * z

    def error(n, teacher):
        ts, end = np.linspace(t, s, n + 1), z
        for a, b in itertools.pairwise(ts):
            step = teacher.step(schedule, Example(end), end, a, b)
            end = ddim(schedule, end, step.x, a, b)
        return np.abs(end - exact).max(), step.evaluations

    counts = (8, 16, 32)
    errors = [error(n, teacher)[0] for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] > 1.9
    # At as many calls of the network it is far ahead of DDIM's steps.
    first = DistillationTeacher(teacher.denoiser, x_var_fraction=0.0)
    (fine, calls), (plain, _) = error(16, teacher), error(32, first)
    assert calls == 2
    assert fine < 0.1 * plain


@schedules
def test_the_midpoint_teacher_keeps_its_digits_at_1280_steps(schedule):
    teacher = MidpointTeacher(GaussianModel(schedule, VAR))
    z = np.random.default_rng(0).normal(size=8)
    n = np.array([2, 64, 640, 1279, 1280])

    @jax.vmap
    def step(t, s):
        z32, t, s = (jnp.asarray(a, jnp.float32) for a in (z, t, s))
        return teacher.step(schedule, Example(z32), z32, t, s).x

    found = step(n / 1280, (n - 1) / 1280)
    expected = [exact_x(schedule, z, k / 1280, (k - 1) / 1280) for k in n]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


class OneImage(eqx.Module):
    """A denoiser that knows the image, and keeps the times that it is asked for."""

    schedule: Cosine | Shifted
    asked: list = eqx.field(static=True)

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        self.asked.append(float(t))
        return jnp.linspace(-1.0, 1.0, 8).astype(z.dtype)


@schedules
def test_the_midpoint_teacher_is_exact_where_x_does_not_change(schedule):
    model = OneImage(schedule, [])
    teacher, x = MidpointTeacher(model), np.linspace(-1.0, 1.0, 8)
    for dtype, tolerance in ((jnp.float64, 1e-12), (jnp.float32, 2e-6)):
        z = jnp.asarray(np.random.default_rng(0).normal(size=8), dtype)
        for t, s in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.0)):
            t, s = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
            found = teacher.step(schedule, Example(z), z, t, s).x
            np.testing.assert_allclose(found, x, atol=tolerance)
            assert model.asked[-2:] == [float(t), float((t + s) / 2)]


def test_the_last_step_of_the_midpoint_teacher_is_ddim():
    model = GaussianModel(Cosine(), VAR)
    z = jnp.asarray([0.5, -2.0])
    for s, last in ((0.0, True), (0.01, False)):
        x = MidpointTeacher(model).step(Cosine(), Example(z), z, 0.1, s).x
        assert np.array_equal(x, model(z, 0.1)) == last


@pytest.mark.parametrize(
    ("student_steps", "steps"), [(4, 8), pytest.param(1, 64, marks=pytest.mark.slow)]
)
def test_the_exact_student_of_an_exact_teacher_has_no_loss(student_steps, steps):
    schedule = Cosine()
    teacher = ODETeacher(
        gaussian_teacher(schedule, VAR), diffrax.Tsit5(), adaptive_steps(1e-6)
    )
    loss = MultistepConsistencyLoss(teacher, Segments(student_steps), lambda i: steps)
    x = np.random.default_rng(1).normal(size=(16, 24)) * np.sqrt(VAR)
    keys = jax.random.split(jax.random.key(0), 16)

    @jax.jit
    @jax.vmap
    def distance(x, key):
        def of(segments):
            student = gaussian_student(schedule, VAR, segments)
            return loss(student, Example(x), step=0, key=key)[1]["x_distance"]

        return of(student_steps), of(2 * student_steps)

    exact, other = distance(jnp.asarray(x, jnp.float32), keys)
    assert np.max(exact) < 1e-5
    assert np.max(other) > 1e-3


teachers = pytest.mark.parametrize(
    "teacher", [MidpointTeacher, partial(ODETeacher, solver=HEUN)], ids=["mid", "ode"]
)


@teachers
def test_a_teacher_of_another_schedule_is_refused(teacher):
    teacher = teacher(gaussian_teacher(Cosine(), VAR))
    z = jnp.ones(2)
    with pytest.raises(ValueError, match="must be the same"):
        teacher.step(Cosine(-20.0, 20.0), Example(z), z, 0.5, 0.4)


@pytest.mark.parametrize(
    "teacher",
    [DistillationTeacher, MidpointTeacher, partial(ODETeacher, solver=HEUN)],
    ids=["addim", "mid", "ode"],
)
def test_the_teachers_estimate_carries_no_gradient(teacher):
    teacher = teacher(gaussian_teacher(Cosine(), VAR))
    z = jnp.ones(2)

    def total(z):
        return jnp.sum(teacher.step(Cosine(), Example(z), z, 0.5, 0.4).x)

    assert not np.any(jax.grad(total)(z))


def test_flow_x_lands_where_the_flow_does_in_one_float32_step_over_all_times():
    z, change = jnp.float32([0.5, -2.0]), jnp.float32([0.3, 0.1])
    one, zero = jnp.float32(1.0), jnp.float32(0.0)
    # Of nearly a right angle; of the last, the sine rounds to one and a bit.
    for schedule in (
        Cosine(-20.0, 20.0),
        Shifted(64, 32, 64),
        Shifted(256, 32, 256, Cosine(-15.0, 20.0)),
    ):
        x = flow_x(schedule, z, one, zero, change=change)
        landed = ddim(schedule, z, x, one, zero)
        np.testing.assert_allclose(landed, z + change, atol=5e-6)
