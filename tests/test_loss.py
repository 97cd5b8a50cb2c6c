import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    SCHEDULES,
    GaussianModel,
    alpha_sigma,
    cosine_line,
    gaussian_student,
    gaussian_teacher,
    time_of,
)

from mcmeqx import (
    AbstractNoiseSchedule,
    AbstractTeacher,
    Cosine,
    DataTeacher,
    Denoiser,
    DiffusionLoss,
    DistillationTeacher,
    Example,
    MultistepConsistencyLoss,
    PseudoHuber,
    Segments,
    annealed_steps,
    merge_steps,
    snr_plus_one,
    sqrt_snr_plus_one,
    x_prediction,
)
from mcmeqx.nets import AbstractNetwork

SCHEDULE = Cosine()
VAR = 0.25
TEACHERS = (
    DataTeacher(),
    DistillationTeacher(gaussian_teacher(SCHEDULE, VAR)),
    DistillationTeacher(gaussian_teacher(SCHEDULE, VAR), x_var_fraction=0.0),
    DistillationTeacher(gaussian_teacher(SCHEDULE, VAR), balanced=True),
)
NORM = PseudoHuber(eps=1e-8)
teachers = pytest.mark.parametrize("teacher", TEACHERS, ids=range(len(TEACHERS)))


class Affine(AbstractNetwork):
    """An estimate of x with two parameters, which depends on z and on t."""

    a: jax.Array
    b: jax.Array
    schedule: Cosine

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        t = time_of(logsnr, self.schedule).astype(z.dtype)
        return self.a.astype(z.dtype) * z + self.b.astype(z.dtype) * jnp.sin(3 * t)


class Answer(eqx.Module):
    """A model that always estimates the same x."""

    x: jax.Array
    schedule: AbstractNoiseSchedule

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        return self.x


class Spy:
    """A model with a record of its calls."""

    def __init__(self, model):
        self.model, self.schedule, self.calls = model, model.schedule, []

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        self.calls.append((z, t, label, key))
        return self.model(z, t, label, guidance=guidance, key=key)

    def at(self, extreme):
        """z and t of the recorded call with the later (max) or earlier (min) time."""
        z, t, *_ = extreme(self.calls, key=lambda call: float(call[1]))
        return np.asarray(z, np.float64), float(t)


def affine(a=0.3, b=0.2, schedule=SCHEDULE) -> Denoiser:
    network = Affine(jnp.float32(a), jnp.float32(b), schedule)
    return Denoiser(network, schedule, x_prediction)


def example(seed: int = 0, size: int = 24, var: float = VAR) -> Example:
    x = np.random.default_rng(seed).normal(size=size) * np.sqrt(var)
    return Example(jnp.asarray(x, jnp.float32), None)


def steps_from_step(step):
    return step


def loss_of(teacher, student_steps: int, **options):
    """A loss whose training step is its number of teacher steps."""
    return MultistepConsistencyLoss(
        teacher, Segments(student_steps), steps_from_step, **options
    )


def teacher_z(schedule, teacher, x, x_hat, z, t, s) -> np.ndarray:
    """z_s by the letter of Algorithms 1 and 3, of DDIM at s = 0; rows are examples."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(schedule, u) for u in (t, s))
    if isinstance(teacher, DataTeacher):
        return alpha_s * x + sigma_s * (z - alpha_t * x) / sigma_t
    eps = (z - alpha_t * x_hat) / sigma_t
    x_var = teacher.x_var_fraction * np.mean((x_hat - x) ** 2, -1, keepdims=True)
    x_var = np.where(np.asarray(s) > 0, x_var, 0.0)
    z_var = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * x_var
    q = 1 / np.mean(eps**2, -1, keepdims=True)
    b = alpha_s * alpha_t / sigma_t * x_var * q if teacher.balanced else 0.0
    return alpha_s * x_hat + (np.sqrt((sigma_s + b) ** 2 + q * z_var) - b) * eps


def textbook_target(schedule, x_ref, z, z_s, t, s, r) -> np.ndarray:
    """The target of x by Algorithm 1's invDDIM(DDIM(...))."""
    (alpha_t, sigma_t), (alpha_s, sigma_s), (alpha_r, sigma_r) = (
        alpha_sigma(schedule, u) for u in (t, s, r)
    )
    z_ref = alpha_r * x_ref + sigma_r * (z_s - alpha_s * x_ref) / sigma_s
    ratio = sigma_r / sigma_t
    return (z_ref - ratio * z) / (alpha_r - alpha_t * ratio)


def algorithm_1(teacher, model, x, z, t, student_steps, total):
    """Target of x and s, in float64."""
    step = round(t * total)
    segment = (step - 1) // (total // student_steps)
    t, s, r = step / total, (step - 1) / total, segment / student_steps
    alpha, sigma = alpha_sigma(SCHEDULE, t)
    x_hat = alpha * VAR / (alpha**2 * VAR + sigma**2) * z
    z_s = teacher_z(SCHEDULE, teacher, x, x_hat, z, t, s)
    x_ref = np.asarray(model(jnp.asarray(z_s, jnp.float32), s), np.float64)
    return textbook_target(SCHEDULE, x_ref, z, z_s, t, s, r), s


@teachers
@pytest.mark.parametrize(("student_steps", "teacher_steps"), [(1, 12), (2, 16), (4, 4)])
def test_the_loss_is_the_literal_algorithm_1(teacher, student_steps, teacher_steps):
    loss = loss_of(teacher, student_steps)
    for seed in range(6):
        data = example(seed)
        spy = Spy(affine())
        value, metrics = loss(
            spy, data, step=jnp.float32(teacher_steps), key=jax.random.key(seed)
        )
        z, t = spy.at(max)
        x = np.asarray(data.x, np.float64)
        target, s = algorithm_1(
            teacher, affine(), x, z, t, student_steps, teacher_steps
        )
        assert spy.at(min)[1] == pytest.approx(s, abs=1e-6)
        estimate = np.asarray(affine()(jnp.asarray(z, jnp.float32), t))
        distance = np.sqrt(np.mean((target - estimate) ** 2) + 1e-8) - 1e-4
        assert float(metrics["x_distance"]) == pytest.approx(distance, rel=2e-4)
        sigma = alpha_sigma(SCHEDULE, t)[1]
        assert float(value) == pytest.approx(distance / sigma**2, rel=3e-4)
        assert value.dtype == jnp.float32
        assert float(metrics["teacher_steps"]) == teacher_steps


@teachers
def test_one_teacher_step_a_segment_leaves_the_student_no_say(teacher):
    loss = loss_of(teacher, 4, distance=NORM)
    for model in (affine(), affine(-2.0, 5.0)):
        spy = Spy(model)
        data, key = example(3), jax.random.key(3)
        _, metrics = loss(spy, data, step=4, key=key)
        (z_t, t), (_, s) = spy.at(max), spy.at(min)
        arguments = (SCHEDULE, data, jnp.asarray(z_t, jnp.float32))
        x = teacher.step(*arguments, jnp.float32(t), jnp.float32(s)).x
        estimate = np.asarray(model(jnp.asarray(z_t, jnp.float32), jnp.float32(t)))
        rms = np.sqrt(np.mean((np.asarray(x) - estimate) ** 2))
        assert float(metrics["x_distance"]) == pytest.approx(rms, rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("balanced", [False, True])
def test_the_target_of_addim_keeps_its_digits_in_float32_at_1280_steps(
    schedule, balanced
):
    total, segments, n_seg = 1280, Segments(2), 640
    i = np.arange(1, total + 1)[:, None]
    k = (i - 1) // n_seg * n_seg
    t, s, r = i / total, (i - 1) / total, k / total
    x, eps, x_ref = np.random.default_rng(0).normal(size=(3, total, 64)).astype("f4")
    x *= np.float32(0.5)
    alpha, sigma = alpha_sigma(schedule, t)
    z = (alpha * x + sigma * eps).astype("f4")
    x_hat = (alpha * VAR / (alpha**2 * VAR + sigma**2) * z).astype("f4")

    @jax.jit
    @jax.vmap
    def target(x, x_hat, x_ref, z, segment, n):
        times = segments.times(jnp.int32(n_seg), segment, n)
        teacher = DistillationTeacher(Answer(x_hat, schedule), balanced=balanced)
        first = teacher.step(schedule, Example(x), z, times.t, times.s).x
        return merge_steps(schedule, first, x_ref, times)

    segment, n = (a[:, 0].astype("i4") for a in (k // n_seg, i - k))
    found = target(x, x_hat, x_ref, z, segment, n)
    assert found.dtype == jnp.float32
    x, x_hat, x_ref, z = (a.astype("f8") for a in (x, x_hat, x_ref, z))
    teacher = DistillationTeacher(None, balanced=balanced)
    z_s = teacher_z(schedule, teacher, x, x_hat, z, t, s)
    expected = textbook_target(schedule, x_ref, z, z_s, t, s, r)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_training_with_as_many_segments_as_steps_is_diffusion():
    for seed in range(4):
        spy, data = Spy(affine()), example(seed)
        loss = loss_of(DataTeacher(), 16)
        value, _ = loss(spy, data, step=16, key=jax.random.key(seed))
        z, t = spy.at(max)
        estimate = affine()(jnp.asarray(z, jnp.float32), jnp.float32(t))
        rms = np.sqrt(np.mean((np.asarray(data.x) - np.asarray(estimate)) ** 2) + 1e-8)
        sigma = alpha_sigma(SCHEDULE, t)[1]
        assert float(value) == pytest.approx((rms - 1e-4) / sigma**2, rel=1e-4)


def test_one_segment_is_the_consistency_model_loss():
    schedule = Cosine(-15.0, 30.0)
    model = affine(schedule=schedule)
    loss = loss_of(DataTeacher(), 1, distance=NORM)
    seen = 0
    for seed in range(8):
        spy = Spy(model)
        value, _ = loss(spy, example(seed), step=16, key=jax.random.key(seed))
        (z_t, t), (z_s, s) = spy.at(max), spy.at(min)
        if s == 0.0:
            continue
        seen += 1
        gap = model(jnp.asarray(z_t), t) - model(jnp.asarray(z_s), s)
        sigma = alpha_sigma(schedule, t)[1]
        rms = float(np.sqrt(np.mean(np.asarray(gap) ** 2)))
        assert float(value) == pytest.approx(rms / sigma**2, rel=1e-4)
    assert seen > 3


@teachers
@pytest.mark.parametrize("student_steps", [1, 2])
def test_the_gradient_passes_through_the_estimate_at_t_alone(teacher, student_steps):
    loss, data, key = loss_of(teacher, student_steps), example(1), jax.random.key(5)
    gradient = eqx.filter_grad(lambda m: loss(m, data, step=16, key=key)[0])(affine())
    spy = Spy(affine())
    loss(spy, data, step=16, key=key)
    z, t = spy.at(max)
    x = np.asarray(data.x, np.float64)
    target, _ = algorithm_1(teacher, affine(), x, z, t, student_steps, 16)
    sigma = alpha_sigma(SCHEDULE, t)[1]

    estimate = 0.3 * z + 0.2 * np.sin(3 * t)
    error = estimate - target
    root = np.sqrt(np.mean(error**2) + 1e-8)
    expected_a = np.mean(error * z) / root / sigma**2
    expected_b = np.mean(error) * np.sin(3 * t) / root / sigma**2
    assert float(gradient.network.a) == pytest.approx(expected_a, rel=2e-3)
    assert float(gradient.network.b) == pytest.approx(expected_b, rel=2e-3)


def test_the_teacher_gets_no_gradient():
    class Scale(AbstractNetwork):
        a: jax.Array

        def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
            return self.a * z

    teacher = DistillationTeacher(Denoiser(Scale(jnp.float32(0.1)), SCHEDULE))
    gradient = eqx.filter_grad(
        lambda loss: loss(affine(), example(), step=8, key=jax.random.key(0))[0]
    )(loss_of(teacher, 1))
    assert float(gradient.teacher.denoiser.network.a) == 0.0


def test_the_student_sees_one_dropout_key_the_teacher_none_and_both_the_label():
    student, teacher = Spy(affine()), Spy(gaussian_teacher(SCHEDULE, VAR))
    loss = loss_of(DistillationTeacher(teacher), 2)
    data = example()._replace(label=jnp.int32(7))
    loss(student, data, step=16, key=jax.random.key(0))
    (*_, label_s, key_s), (*_, label_t, key_t) = student.calls
    ((*_, label, key),) = teacher.calls
    assert int(label_s) == int(label_t) == int(label) == 7
    assert key_s is not None
    assert bool(jnp.all(jax.random.key_data(key_s) == jax.random.key_data(key_t)))
    assert key is None


def test_the_diffusion_loss_hands_on_the_label_and_a_key():
    spy, data = Spy(affine()), example()._replace(label=jnp.int32(7))
    for seed in (0, 1):
        DiffusionLoss()(spy, data, step=0, key=jax.random.key(seed))
    (*_, label, key), (*_, other) = spy.calls
    assert int(label) == 7
    assert bool(jnp.any(jax.random.key_data(key) != jax.random.key_data(other)))


def test_a_teacher_of_another_schedule_is_refused():
    loss = loss_of(DistillationTeacher(gaussian_teacher(Cosine(), VAR)), 2)
    call = {"example": example(), "step": 16, "key": jax.random.key(0)}
    assert np.isfinite(loss(affine(schedule=Cosine()), **call)[0])
    with pytest.raises(ValueError, match=r"schedule is .*-20.*, its teacher's"):
        loss(affine(schedule=Cosine(-20.0, 20.0)), **call)


@eqx.filter_jit
def distances(model, loss, batch, keys, steps):
    def one(data, key):
        return loss(model, data, step=steps, key=key)[1]["x_distance"]

    return jax.vmap(one)(batch, keys)


def mean_distance(loss, model, var, teacher_steps, draws=64, size=256) -> float:
    """Root mean square over draws of the metric x_distance."""
    x = np.random.default_rng(0).normal(size=(draws, size)) * np.sqrt(var)
    batch = Example(jnp.asarray(x, jnp.float32), None)
    keys = jax.random.split(jax.random.key(1), draws)
    found = distances(model, loss, batch, keys, jnp.float32(teacher_steps))
    return float(jnp.sqrt(jnp.mean(found**2)))


def test_the_exact_student_of_unit_gaussians_has_the_closed_form_error():
    teacher = DistillationTeacher(gaussian_teacher(SCHEDULE, 1.0), x_var_fraction=0.0)
    student = gaussian_student(SCHEDULE, 1.0, 1)
    slope = cosine_line(SCHEDULE)[1]
    for teacher_steps in (8, 64, 512):
        loss = loss_of(teacher, 1, distance=NORM)
        got = mean_distance(loss, student, 1.0, teacher_steps)
        # Both sides differ by z_t (1 - cos h), and invDDIM to t = 0 changes nothing.
        assert got == pytest.approx(1 - np.cos(slope / teacher_steps), rel=0.05)


@pytest.mark.parametrize(("var", "student_steps"), [(0.25, 1), (1.0, 2), (4.0, 4)])
def test_the_exact_student_is_a_zero_of_the_loss_as_the_teacher_refines(
    var, student_steps
):
    teacher = DistillationTeacher(gaussian_teacher(SCHEDULE, var), x_var_fraction=0.0)
    student = gaussian_student(SCHEDULE, var, student_steps)
    loss = loss_of(teacher, student_steps, distance=NORM)
    errors = [mean_distance(loss, student, var, n) for n in (8, 64, 512)]
    assert errors[1] < errors[0] / 7
    assert errors[2] < errors[1] / 7
    assert errors[2] < 2e-3
    wrong = gaussian_student(SCHEDULE, var, 2 * student_steps)
    assert mean_distance(loss, wrong, var, 512) > 10 * errors[2]


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_composition_of_a_phase_of_tract_is_exact_for_the_next(steps):
    # The S = steps student's DDIM steps follow the flow from border to border, so the
    # S = 1 student, which is their composition, agrees with it at every step.
    teacher = DistillationTeacher(
        gaussian_student(SCHEDULE, VAR, steps), x_var_fraction=0.0
    )
    loss = loss_of(teacher, 1, distance=NORM)
    student = gaussian_student(SCHEDULE, VAR, 1)
    assert mean_distance(loss, student, VAR, steps) < 2e-5


@pytest.mark.parametrize(
    ("student_steps", "n_seg"),
    [(1, 8), (2, 16), (4, 20), (4, 320), (8, 160), (1, 1280)],
)
def test_distilling_ddim_has_the_fixed_point_of_unit_gaussians(student_steps, n_seg):
    slope = cosine_line(SCHEDULE)[1]
    total = student_steps * n_seg

    class FixedPoint(AbstractNetwork):
        def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
            step = jnp.rint(time_of(logsnr, SCHEDULE) * total)
            n = jnp.mod(step - 1, n_seg) + 1
            h = slope / total
            v = (jnp.cos(n * h) - jnp.cos(h) ** n) / jnp.sin(n * h)
            return v.astype(z.dtype) * z

    teacher = DistillationTeacher(gaussian_teacher(SCHEDULE, 1.0), x_var_fraction=0.0)
    loss = loss_of(teacher, student_steps, distance=NORM)
    assert mean_distance(loss, Denoiser(FixedPoint(), SCHEDULE), 1.0, total) < 2e-6


def test_x_var_is_each_examples_own():
    loss = loss_of(TEACHERS[1], 2)
    keys = jax.random.split(jax.random.key(0), 3)

    def losses(x):
        return jax.vmap(
            lambda x, key: loss(affine(), Example(x, None), step=8, key=key)[0]
        )(x, keys)

    x = jnp.stack([example(i).x for i in range(3)])
    batch, louder = losses(x), losses(x.at[1:].multiply(50.0))
    np.testing.assert_allclose(louder[0], batch[0], rtol=1e-6)
    for i in range(3):
        alone = loss(affine(), Example(x[i], None), step=8, key=keys[i])[0]
        np.testing.assert_allclose(batch[i], alone, rtol=1e-4)


def test_the_diffusion_loss_is_the_squared_error_of_v():
    for seed in range(4):
        spy, data = Spy(affine()), example(seed)
        value, metrics = DiffusionLoss()(spy, data, step=0, key=jax.random.key(seed))
        z, t = spy.at(max)
        x, (alpha, sigma) = np.asarray(data.x, np.float64), alpha_sigma(SCHEDULE, t)
        x_hat = 0.3 * z + 0.2 * np.sin(3 * t)
        v, v_hat = ((alpha * z - guess) / sigma for guess in (x, x_hat))
        assert float(value) == pytest.approx(np.mean((v - v_hat) ** 2), rel=1e-4)
        assert float(metrics["x_mse"]) == pytest.approx(
            np.mean((x - x_hat) ** 2), rel=1e-4
        )


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_diffusion_loss_of_the_exact_denoiser_is_its_closed_form(std):
    # The weighted posterior variance, std^2 / q_t^2, has over uniform t the mean
    # [std arctan(tan(theta) / std)] / slope: nearly std.
    draws, (start, slope) = 20_000, cosine_line(SCHEDULE)
    x = std * np.random.default_rng(0).normal(size=(draws, 16))

    @jax.jit
    @jax.vmap
    def losses(x, key):
        model = GaussianModel(SCHEDULE, std**2)
        return DiffusionLoss()(model, Example(x), step=0, key=key)[0]

    keys = jax.random.split(jax.random.key(0), draws)
    found = np.asarray(losses(x.astype("f4"), keys), np.float64)
    low, high = std * np.arctan(np.tan([start, start + slope]) / std)
    error = found.std() / np.sqrt(draws)
    assert abs(found.mean() - (high - low) / slope) < 5 * error


@pytest.mark.parametrize("eps", [1e-4, 1.0])
def test_pseudo_huber_is_its_formula_in_each_reduction(eps):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    squares = {"rms": np.mean(x**2), "sum": np.sum(x**2), "elementwise": x**2}
    for reduction, square in squares.items():
        expected = np.mean(np.sqrt(square + eps**2) - eps)
        got = PseudoHuber(eps, reduction)(jnp.asarray(x))
        assert float(got) == pytest.approx(expected, rel=1e-11)


def test_pseudo_huber_is_zero_and_smooth_at_zero():
    for reduction in ("rms", "sum", "elementwise"):
        distance = PseudoHuber(1e-4, reduction)
        value, gradient = jax.value_and_grad(distance)(jnp.zeros(5, jnp.float32))
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_weights_are_powers_of_sigma(t):
    sigma, logsnr = alpha_sigma(SCHEDULE, t)[1], SCHEDULE.logsnr(t)
    assert float(snr_plus_one(logsnr)) == pytest.approx(sigma**-2, rel=1e-9)
    assert float(sqrt_snr_plus_one(logsnr)) == pytest.approx(1 / sigma, rel=1e-9)


@pytest.mark.parametrize(
    ("weighting", "power"), [(snr_plus_one, -2), (sqrt_snr_plus_one, -1)]
)
def test_a_loss_uses_the_weighting_it_is_given(weighting, power):
    consistency = loss_of(DataTeacher(), 2, weighting=weighting)
    for loss, distance in (
        (consistency, "x_distance"),
        (DiffusionLoss(weighting), "x_mse"),
    ):
        spy = Spy(affine())
        value, metrics = loss(spy, example(), step=16, key=jax.random.key(0))
        sigma = alpha_sigma(SCHEDULE, spy.at(max)[1])[1]
        expected = float(metrics[distance]) * sigma**power
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_annealing_is_exponential_and_then_constant():
    teacher_steps = annealed_steps(10.0, 1000.0, 200)
    for step, expected in ((0, 10.0), (50, 31.6228), (100, 100.0), (400, 1000.0)):
        assert float(teacher_steps(step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PseudoHuber(0.0), "0.0"),
        (lambda: PseudoHuber(-1.0), "-1.0"),
        (lambda: annealed_steps(0.5, 10.0), r"start=0\.5"),
        (lambda: annealed_steps(64.0, np.inf), "stop=inf"),
        (lambda: DiffusionLoss(label_dropout=-0.1), r"-0\.1"),
        (lambda: annealed_steps(10.0, 5.0), "stop=5"),
        (lambda: annealed_steps(over=0), "at least one training step"),
        (
            lambda: DistillationTeacher(
                gaussian_teacher(SCHEDULE, 1.0), x_var_fraction=1.5
            ),
            "1.5",
        ),
        (
            lambda: DistillationTeacher(
                gaussian_teacher(SCHEDULE, 1.0), x_var_fraction=-0.1
            ),
            r"-0\.1",
        ),
    ],
)
def test_settings_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_scale_of_guidance_knows_nothing_of_the_noise():
    drawn = []

    class Teacher(AbstractTeacher):
        def step(self, schedule, example, z, t, s):
            # The data are 0: z is sigma_t times the noise.
            drawn.append((float(example.guidance), float(z[0] / schedule.sigma(t))))
            return DataTeacher().step(schedule, example, z, t, s)

    class Zero(AbstractNetwork):
        def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
            return 0.0 * z

    loss = MultistepConsistencyLoss(
        Teacher(), Segments(1), lambda i: 8, guidance_range=(0.0, 1.0)
    )
    data = Example(jnp.zeros(3, jnp.float32))
    for i in range(64):
        loss(Denoiser(Zero(), SCHEDULE), data, step=0, key=jax.random.key(i))
    # Four standard deviations of 64 pairs that are independent.
    assert abs(np.corrcoef(np.array(drawn).T)[0, 1]) < 0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 15, 16, 17])
def test_each_loss_is_counted_in_its_own_segment(steps):
    loss = loss_of(DataTeacher(), steps)

    @jax.jit
    def ratios(n_seg, segment):
        # XLA may divide by multiplying with a reciprocal: then r S is no whole number.
        times = loss.segments.times(n_seg, segment, n_seg)
        return loss._by_segment(times.r, segment_loss=jnp.float32(2.0))

    for n_seg in (1, 3, 10, 41, 80, 105):
        for segment in range(steps):
            found = ratios(jnp.int32(n_seg), jnp.int32(segment))
            if not 1 < steps <= 16:
                assert found == {}
                continue
            ratio = np.asarray(found["segment_loss"].over())
            assert ratio.shape == (steps,)
            np.testing.assert_array_equal(np.flatnonzero(ratio == 2.0), [segment])


@pytest.mark.usefixtures("as_users_run")
def test_which_labels_fall_is_independent_of_the_noise():
    class Recorder(eqx.Module):
        schedule: Cosine = SCHEDULE

        def __call__(self, z, t, label=None, *, guidance=None, key=None):
            # Without an error where the label stays; else it shows the noise.
            dropped = jnp.asarray(0 if label is None else label) < 0
            return jnp.where(dropped, jnp.sign(z[0]) + 2.0, 0.0) + 0.0 * z

    loss = DiffusionLoss(lambda logsnr: 1.0 + 0 * logsnr, label_dropout=0.25)
    data = Example(jnp.zeros(2, jnp.float32), jnp.int32(1))
    keys = jax.random.split(jax.random.key(3), 4000)
    values = jax.vmap(lambda k: loss(Recorder(), data, step=0, key=k)[0])(keys)
    below, above = (int(jnp.sum(jnp.abs(values - v) < 0.5)) for v in (1.0, 9.0))
    assert below + above > 800
    assert abs(below - above) < 5 * np.sqrt(below + above)


def test_data_teach_without_a_call_of_a_network():
    _, metrics = loss_of(DataTeacher(), 2)(
        affine(), example(), step=8, key=jax.random.key(0)
    )
    assert float(metrics["teacher_evaluations"]) == 0.0


def test_pseudo_huber_keeps_its_digits_near_zero_in_float32():
    x = np.linspace(-1.0, 1.0, 64).astype("f4")
    for size in (1e-3, 1e-5, 1e-7):
        square = np.mean((size * x.astype("f8")) ** 2)
        expected = square / (np.sqrt(square + 1e-8) + 1e-4)
        found = PseudoHuber()(jnp.float32(size) * x)
        assert float(found) == pytest.approx(expected, rel=1e-5)
