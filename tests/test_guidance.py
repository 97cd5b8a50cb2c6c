"""Guidance of a labelled mixture of Gaussians, each class one of its own mean."""

import math
from dataclasses import replace
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    alpha_sigma,
    cosine_line,
    gaussian_denoiser,
    mixture_denoiser,
    theta,
)
from scipy.integrate import solve_ivp

from mcmeqx import (
    DDIM,
    AbstractTeacher,
    Cosine,
    DataTeacher,
    Denoiser,
    DiffusionLoss,
    DistillationTeacher,
    Example,
    Guidance,
    Guided,
    MidpointTeacher,
    MultistepConsistencyLoss,
    ODETeacher,
    Segments,
    adaptive_steps,
    addim_x,
    fixed_steps,
    generate,
    guide,
    measure_x_var,
    uniform_grid,
    with_guidance_input,
    with_null_class,
)
from mcmeqx._guidance import guided_pair
from mcmeqx.nets import AbstractNetwork, MLPConfig, Stage, UViTConfig

SCHEDULE = Cosine()
KEY = jax.random.key(0)
MLP = MLPConfig(3, width=8, depth=1, classes=4, null_class=True, embedding=8)
UVIT = UViTConfig(8, (Stage("resnet", 4, 1),), classes=4, null_class=True, embedding=8)


class TwoGaussians(eqx.Module):
    """Classes 0 and 1 at -1 and 1 with variance 0.2; label -1 or None is their mix."""

    schedule: Cosine = SCHEDULE

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        label = jnp.asarray(-1 if label is None else label)
        mean = jnp.where(label < 0, 0, 2 * label - 1).astype(z.dtype)
        narrow = gaussian_denoiser(self.schedule, 0.2)
        centred = mean + narrow(z - self.schedule.alpha(t).astype(z.dtype) * mean, t)
        ends = jnp.stack([-jnp.ones_like(z), jnp.ones_like(z)])
        both = mixture_denoiser(self.schedule, ends, math.sqrt(0.2))
        return jnp.where(label < 0, both(z, t).astype(z.dtype), centred)


def estimates(z, t, label):
    """The conditional and the unconditional E[x|z], in NumPy.

    Of two equal classes at -1 and 1 the mean class is a hyperbolic tangent.
    """
    alpha, sigma = alpha_sigma(SCHEDULE, t)
    u = alpha**2 * 0.2 + sigma**2
    means = 2 * label - 1, np.tanh(alpha * np.sum(z) / u)
    return tuple(mean + alpha * 0.2 / u * (z - alpha * mean) for mean in means)


class GuidedStudent(eqx.Module):
    """The exact student of the guided flow, class 1, solved by SciPy to ten digits."""

    g: float
    segments: int
    schedule: Cosine = SCHEDULE

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        return jax.pure_callback(self.x, z, z, t, vmap_method="sequential")

    def x(self, z, t):
        z, t = np.asarray(z, np.float64), float(t)
        r = max(np.ceil(self.segments * t - 2e-4) - 1, 0) / self.segments
        start, slope = cosine_line(SCHEDULE)

        def v(angle, z):
            x, negative = estimates(z, (angle - start) / slope, 1)
            guided = (1 + self.g) * x - self.g * negative
            return (np.cos(angle) * z - guided) / np.sin(angle)

        angles = theta(SCHEDULE, t), theta(SCHEDULE, r)
        if t <= r:
            return z.astype(np.float32)
        end = solve_ivp(v, angles, z, method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
        gap = angles[0] - angles[1]
        step = (np.cos(gap) * z - end) / np.sin(gap)
        return (np.cos(angles[0]) * z - np.sin(angles[0]) * step).astype(np.float32)


def test_guide_is_the_papers_extrapolation_for_numbers_and_functions_of_t():
    one, two = (lambda z, t: z + t), (lambda z, t: 3.0 * z)
    z = jnp.asarray([1.0, 2.0])
    expected = 2.5 * (z + 0.5) - 1.5 * 3 * z
    np.testing.assert_allclose(guide(one, two, 1.5)(z, 0.5), expected, rtol=1e-12)
    by_time = guide(one, two, lambda t: 3 * t)
    np.testing.assert_allclose(by_time(z, 0.5), expected, rtol=1e-12)
    np.testing.assert_array_equal(guide(one, two, 0.0)(z, 0.5), one(z, 0.5))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_guided_model_is_the_closed_form_in_one_batch(t):
    calls = []

    class Spy(TwoGaussians):
        def __call__(self, z, t, label=None, *, guidance=None, key=None):
            calls.append(label)
            return TwoGaussians.__call__(self, z, t, label)

    z = np.array([0.3, -0.8])
    found = Guided(Spy(), Guidance(1.5))(jnp.asarray(z), t, 1)
    conditional, plain = estimates(z, t, 1)
    np.testing.assert_allclose(found, 2.5 * conditional - 1.5 * plain, rtol=1e-7)
    # One trace of the check that there is a null class, and one of both forwards.
    assert [label is None for label in calls] == [True, False]


def test_guidance_stays_within_its_interval_of_noise_levels():
    guidance = Guidance(2.0, (-1.0, 3.0))
    for t in np.linspace(0, 1, 41):
        logsnr = float(SCHEDULE.logsnr(t))
        expected = 2.0 if -1.0 <= logsnr <= 3.0 else 0.0
        assert float(guidance.at(SCHEDULE, t)) == expected
        assert float(guidance.at(SCHEDULE, t, 0.5)) == expected / 4


def test_autoguidance_moves_away_from_the_weaker_model():
    class Weak(eqx.Module):
        schedule: Cosine = SCHEDULE

        def __call__(self, z, t, label=None, *, guidance=None, key=None):
            return 0.1 * z + label

    z, t = jnp.asarray([0.3, -0.8]), 0.4
    found = Guided(TwoGaussians(), Guidance(0.5, negative=Weak()))(z, t, 1)
    expected = 1.5 * estimates(np.asarray(z), t, 1)[0] - 0.5 * (0.1 * z + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_a_guided_teacher_takes_x_var_from_the_unguided_prediction():
    # Between the classes, where the guided estimate lies far from the conditional one.
    x, z = jnp.asarray([0.9, 1.3]), jnp.asarray([0.3, -0.2])
    t, s = 0.5, 0.45
    teacher = DistillationTeacher(TwoGaussians(), guidance=Guidance(3.0))
    found = teacher.step(SCHEDULE, Example(x, jnp.int32(1)), z, t, s)
    conditional, plain = estimates(np.asarray(z), t, 1)
    guided = jnp.asarray(4 * conditional - 3 * plain)
    x_var = 0.75 * np.mean((conditional - np.asarray(x)) ** 2)
    expected = addim_x(SCHEDULE, z, guided, t, s, x_var=x_var)
    np.testing.assert_allclose(found.x, expected, rtol=1e-6)
    assert np.abs(guided - conditional).max() > 1
    assert found.evaluations == 2


@pytest.mark.slow
def test_the_exact_student_of_a_guided_teacher_has_no_loss():
    teacher = ODETeacher(
        TwoGaussians(), diffrax.Tsit5(), adaptive_steps(1e-6), Guidance(0.7)
    )
    loss = MultistepConsistencyLoss(teacher, Segments(2), lambda i: 8)
    x = 1 + np.sqrt(0.2) * np.random.default_rng(1).normal(size=(12, 3))
    examples = Example(jnp.asarray(x, jnp.float32), jnp.ones(12, jnp.int32))

    @eqx.filter_jit
    def distances(student):
        def one(example, key):
            return loss(student, example, step=0, key=key)[1]["x_distance"]

        return jax.vmap(one)(examples, jax.random.split(KEY, 12))

    assert np.max(distances(GuidedStudent(0.7, 2))) < 2e-5
    assert np.max(distances(GuidedStudent(0.5, 2))) > 1e-3
    assert np.max(distances(GuidedStudent(0.7, 4))) > 1e-3


TEACHERS = {
    "addim": lambda g: DistillationTeacher(TwoGaussians(), guidance=g),
    "midpoint": lambda g: MidpointTeacher(TwoGaussians(), guidance=g),
    "ode": lambda g: ODETeacher(
        TwoGaussians(), diffrax.Heun(), fixed_steps(2), guidance=g
    ),
}
teachers = pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)


def step_of(teacher, scale=None, t=0.6):
    z = jnp.asarray([0.3, -0.8])
    example = Example(jnp.asarray([1.2, 0.7]), jnp.int32(1), scale)
    return teacher.step(SCHEDULE, example, z, t, t - 0.1)


@teachers
def test_without_guidance_the_guided_teacher_is_the_unguided_one(teacher):
    none, plain = step_of(teacher(Guidance(0.0))), step_of(teacher(None))
    # Two programs may round differently; within one the two estimates are the same.
    np.testing.assert_allclose(none.x, plain.x, rtol=1e-13)
    assert int(none.evaluations) == 2 * int(plain.evaluations)
    z = jnp.asarray([0.3, -0.8], jnp.float32)
    pair = guided_pair(TwoGaussians(), Guidance(0.0), z, jnp.float32(0.4), 1)
    np.testing.assert_array_equal(*pair)


@teachers
def test_the_scale_of_an_example_replaces_the_teachers_own(teacher):
    own, asked = teacher(Guidance(0.3)), teacher(Guidance(1.2))
    given = step_of(own, jnp.float32(1.2)).x
    np.testing.assert_allclose(given, step_of(asked).x, rtol=1e-6)
    assert np.abs(given - step_of(own).x).max() > 1e-3


def test_outside_the_interval_a_teacher_is_not_guided():
    teacher = TEACHERS["addim"]
    # Between t = 0.5 and 0.6 the logsnr falls from 0 to -0.64.
    within, outside = (
        teacher(Guidance(0.9, (-2.0, 2.0))),
        teacher(Guidance(0.9, (1.0, 3.0))),
    )
    expected = step_of(teacher(None)).x, step_of(teacher(Guidance(0.9))).x
    np.testing.assert_allclose(step_of(outside).x, expected[0], rtol=1e-13)
    np.testing.assert_allclose(step_of(within).x, expected[1], rtol=1e-13)
    assert np.abs(step_of(within).x - step_of(outside).x).max() > 1e-3


def test_a_guided_model_heeds_its_interval_and_the_scale_it_is_called_with():
    z, t = np.array([0.3, -0.8]), 0.6
    conditional, plain = estimates(z, t, 1)
    model = Guided(TwoGaussians(), Guidance(0.5, (-2.0, 2.0)))
    found = model(jnp.asarray(z), t, 1, guidance=1.5)
    np.testing.assert_allclose(found, 2.5 * conditional - 1.5 * plain, rtol=1e-6)
    early = model(jnp.asarray(z), 0.95, 1, guidance=1.5)
    np.testing.assert_allclose(early, estimates(z, 0.95, 1)[0], rtol=1e-6)
    noise = np.random.default_rng(1).normal(size=(3, 2))
    labels = np.ones(3, np.int32)

    def draw(model, **options):
        return generate(
            model, DDIM(), uniform_grid(4), noise, labels, key=KEY, **options
        )

    once = draw(Guided(TwoGaussians(), Guidance(1.5, (-2.0, 2.0))))
    np.testing.assert_allclose(draw(model, guidance=1.5), once, rtol=1e-6)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        draw(model, guidance=-1.0)


def test_generate_samples_a_guided_model_like_any_other():
    noise = np.random.default_rng(1).normal(size=(4000, 1))
    labels = np.zeros(4000, np.int32)

    def draw(model):
        return generate(model, DDIM(), uniform_grid(64), noise, labels, key=KEY)

    plain, pushed = draw(TwoGaussians()), draw(Guided(TwoGaussians(), Guidance(1.0)))
    assert abs(plain.mean() + 1) < 0.05
    assert pushed.mean() < -1.1
    none = Guided(TwoGaussians(), Guidance(0.0))
    np.testing.assert_allclose(draw(none), plain, atol=1e-9)


@pytest.mark.parametrize(
    "config", [MLP, pytest.param(UVIT, marks=pytest.mark.slow)], ids=["mlp", "uvit"]
)
def test_the_null_class_is_the_last_row_reached_without_a_label(config):
    network = config.build(key=KEY)
    assert network.embed.classes.shape == (5, 8)
    rows = [network.embed(jnp.float32(0.3), label, None) for label in (None, -1, 4)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert np.abs(rows[0] - network.embed(jnp.float32(0.3), 3, None)).max() > 1e-3


def test_label_dropout_trains_the_null_class_on_its_share():
    class Recorder(eqx.Module):
        schedule: Cosine = SCHEDULE

        def __call__(self, z, t, label=None, *, guidance=None, key=None):
            return jnp.where(
                jnp.asarray(0 if label is None else label) < 0, 1.0, 0.0 * z
            )

    def dropped(share):
        loss = DiffusionLoss(lambda logsnr: 1.0 + 0 * logsnr, label_dropout=share)
        example = Example(jnp.zeros(2, jnp.float32), jnp.int32(1))
        keys = jax.random.split(KEY, 4000)
        values = jax.vmap(lambda k: loss(Recorder(), example, step=0, key=k)[0])(keys)
        return float(values.mean())

    assert dropped(0.0) == 0.0
    assert dropped(0.25) == pytest.approx(0.25, abs=5 * np.sqrt(0.19 / 4000))
    assert dropped(1.0) == 1.0


class ScaleNetwork(AbstractNetwork):
    """A network whose output is its guidance scale."""

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        return jnp.zeros_like(z) + guidance


def test_a_student_of_many_scales_shares_each_with_its_teacher():
    seen = []

    class Teacher(AbstractTeacher):
        def step(self, schedule, example, z, t, s):
            jax.debug.callback(lambda g: seen.append(float(g)), example.guidance)
            return DataTeacher().step(schedule, example, z, t, s)

    student = Denoiser(ScaleNetwork(), SCHEDULE, lambda schedule, z, out, t: out)
    loss = MultistepConsistencyLoss(
        Teacher(), Segments(1), lambda i: 1, guidance_range=(0.5, 2.0)
    )
    data = Example(jnp.zeros(2, jnp.float32), jnp.int32(0))
    distances = [
        float(loss(student, data, step=0, key=jax.random.key(i))[1]["x_distance"])
        for i in range(40)
    ]
    jax.effects_barrier()
    # One teacher step: the target is x = 0, so the distance is the student's scale.
    np.testing.assert_allclose(distances, seen, atol=2e-4)
    assert 0.5 <= min(seen) < 0.8
    assert 1.7 < max(seen) <= 2.0


@pytest.mark.parametrize(
    "config", [MLP, pytest.param(UVIT, marks=pytest.mark.slow)], ids=["mlp", "uvit"]
)
def test_a_network_given_a_guidance_input_starts_unchanged(config):
    plain = Denoiser(config.build(key=KEY), SCHEDULE)
    taking = with_guidance_input(plain)
    fresh = replace(config, guidance_input=True).build(key=KEY)
    assert jax.tree.structure(taking.network) == jax.tree.structure(fresh)
    shape = (3,) if config is MLP else (3, 8, 8)
    z = jax.random.normal(KEY, shape, jnp.float32)
    np.testing.assert_array_equal(
        plain.network.embed(jnp.float32(0.1), 1, None),
        taking.network.embed(jnp.float32(0.1), 1, 2.5),
    )
    with pytest.raises(ValueError, match="needs a guidance scale"):
        taking(z, 0.5, 1)
    with pytest.raises(ValueError, match="takes none: guidance=given"):
        plain(z, 0.5, 1, guidance=1.0)
    with pytest.raises(ValueError, match="takes no guidance scale"):
        with_guidance_input(taking)


def test_a_null_class_is_added_to_what_a_model_has():
    plain = Denoiser(replace(MLP, null_class=False).build(key=KEY), SCHEDULE)
    given = with_null_class(plain)
    assert jax.tree.structure(given) == jax.tree.structure(
        Denoiser(MLP.build(key=KEY), SCHEDULE)
    )
    # A fresh network's output is zero whatever the class: look at the embedding.
    old, new, logsnr = plain.network.embed, given.network.embed, jnp.float32(0.4)
    for label in range(4):
        np.testing.assert_array_equal(new(logsnr, label), old(logsnr, label))
    mean = eqx.tree_at(lambda e: e.classes, old, old.classes.mean(0, keepdims=True))
    np.testing.assert_allclose(new(logsnr, None), mean(logsnr, 0), atol=1e-6)
    assert np.abs(new(logsnr, None) - old(logsnr, 0)).max() > 1e-2
    with pytest.raises(ValueError, match="null_class=True"):
        with_null_class(given)
    with pytest.raises(ValueError, match="classes=False"):
        with_null_class(Denoiser(MLPConfig(3, width=8).build(key=KEY), SCHEDULE))


@pytest.mark.parametrize("change", [with_guidance_input, with_null_class])
def test_a_network_of_ones_own_is_changed_where_it_is_defined(change):
    own = Denoiser(ScaleNetwork(), SCHEDULE)
    with pytest.raises(ValueError, match="ScaleNetwork has no configuration"):
        change(own)


def test_generate_hands_the_scale_to_a_student_that_takes_one():
    student = Denoiser(ScaleNetwork(), SCHEDULE, lambda schedule, z, out, t: out)
    noise = np.ones((2, 3), np.float32)
    out = generate(student, DDIM(), uniform_grid(1), noise, guidance=1.5, key=KEY)
    # One DDIM step ends at alpha_0 x, next to no noise.
    np.testing.assert_allclose(out, 1.5, atol=2e-3)


def test_what_cannot_be_guided_is_refused():
    plain = Denoiser(MLPConfig(3, width=8, classes=4).build(key=KEY), SCHEDULE)
    z = jnp.ones(3, jnp.float32)
    with pytest.raises(ValueError, match="unless it has a null class"):
        Guided(plain, Guidance(1.0))(z, 0.5, 1)
    with pytest.raises(ValueError, match="needs labels, got None"):
        Guided(plain, Guidance(1.0))(z, 0.5)
    loss = DiffusionLoss(label_dropout=0.1)
    with pytest.raises(ValueError, match="unless it has a null class"):
        loss(plain, Example(z, jnp.int32(1)), step=0, key=KEY)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1\.5"):
        DiffusionLoss(label_dropout=1.5)
    with pytest.raises(ValueError, match="rises"):
        Guidance(1.0, (2.0, -2.0))
    for scale in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"above -1, got {scale}"):
            Guidance(scale)
    other = Denoiser(MLP.build(key=KEY), Cosine(-20.0, 20.0))
    with pytest.raises(ValueError, match="must be the same"):
        Guided(plain, Guidance(1.0, negative=other))(z, 0.5, 1)
    ode = partial(ODETeacher, solver=diffrax.Heun())
    for teacher in (DistillationTeacher, MidpointTeacher, ode):
        with pytest.raises(ValueError, match="give the model itself and guidance="):
            teacher(Guided(plain, Guidance(1.0)))
    with pytest.raises(ValueError, match="0 <= low < high"):
        MultistepConsistencyLoss(DataTeacher(), Segments(1), guidance_range=(2.0, 1.0))
    for teacher in (DataTeacher(), DistillationTeacher(plain)):
        name = type(teacher).__name__
        with pytest.raises(ValueError, match=f"{name} without guidance: give it"):
            MultistepConsistencyLoss(teacher, Segments(1), guidance_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="negative is Guided"):
        Guidance(negative=Guided(plain, Guidance(1.0)))
    guided = Guided(plain, Guidance(1.0))
    batch = Example(jnp.ones((1, 3)), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="without guidance: give the Guided"):
        measure_x_var(guided, batch, np.array([0.5]), key=KEY)
    with pytest.raises(ValueError, match="null_class needs classes"):
        MLPConfig(3, null_class=True)
    teacher, example = DistillationTeacher(plain), Example(z, 1, jnp.float32(1.0))
    with pytest.raises(ValueError, match="teacher without guidance"):
        teacher.step(SCHEDULE, example, z, 0.5, 0.4)
