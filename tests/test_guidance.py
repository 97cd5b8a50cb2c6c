"""Guidance of Gaussian data, each class a Gaussian of its own mean."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, gaussian_denoiser

from mcmeqx import (
    DDIM,
    Cosine,
    DataTeacher,
    Denoiser,
    DiffusionLoss,
    DistillationTeacher,
    Example,
    Guidance,
    Guided,
    MultistepConsistencyLoss,
    ODETeacher,
    Segments,
    addim_x,
    fixed_steps,
    generate,
    guide,
    uniform_grid,
    with_guidance_input,
    with_null_class,
)
from mcmeqx.nets import AbstractNetwork, MLPConfig, Stage, UViTConfig

SCHEDULE = Cosine()
KEY = jax.random.key(0)
MLP = MLPConfig(3, width=8, depth=1, classes=4, null_class=True, embedding=8)
UVIT = UViTConfig(8, (Stage("resnet", 4, 1),), classes=4, null_class=True, embedding=8)


class TwoGaussians(eqx.Module):
    """Classes 0 and 1 at -1 and 1 with variance 0.2; label -1 or None is all data.

    Without its class the estimate is that of one Gaussian of the data's own variance.
    """

    schedule: Cosine = SCHEDULE

    def __call__(self, z, t, label=None, *, guidance=None, key=None):
        label = jnp.asarray(-1 if label is None else label)
        mean = jnp.where(label < 0, 0, 2 * label - 1).astype(z.dtype)
        narrow = gaussian_denoiser(self.schedule, 0.2)
        centred = mean + narrow(z - self.schedule.alpha(t).astype(z.dtype) * mean, t)
        return jnp.where(
            label < 0, gaussian_denoiser(self.schedule, 1.2)(z, t), centred
        )


def estimates(z, t, label):
    """The conditional and the unconditional E[x|z], in NumPy."""
    alpha, sigma = alpha_sigma(SCHEDULE, t)
    mean = 2 * label - 1
    gains = [alpha * var / (alpha**2 * var + sigma**2) for var in (0.2, 1.2)]
    return mean + gains[0] * (z - alpha * mean), gains[1] * z


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
    rng = np.random.default_rng(0)
    x = jnp.asarray(1 + rng.normal(size=64) * 0.4)
    t, s = 0.5, 0.45
    z = SCHEDULE.diffuse(x, jnp.asarray(rng.normal(size=64)), t)
    teacher = DistillationTeacher(TwoGaussians(), guidance=Guidance(3.0))
    found = teacher.step(SCHEDULE, Example(x, jnp.int32(1)), z, t, s)
    conditional, plain = estimates(np.asarray(z), t, 1)
    guided = jnp.asarray(4 * conditional - 3 * plain)
    x_var = 0.75 * np.mean((conditional - np.asarray(x)) ** 2)
    expected = addim_x(SCHEDULE, z, guided, t, s, x_var=x_var)
    np.testing.assert_allclose(found.x, expected, rtol=1e-6)
    assert found.evaluations == 2


def test_a_guided_ode_teacher_follows_the_guided_model():
    z, t, s = jnp.asarray([0.3, -0.8]), 0.6, 0.5
    options = (diffrax.Heun(), fixed_steps(2))
    example, guidance = Example(z, jnp.int32(0)), Guidance(0.7)
    found = ODETeacher(TwoGaussians(), *options, guidance=guidance)
    whole = Guided(TwoGaussians(), guidance)
    expected = ODETeacher(whole, *options)
    a = found.step(SCHEDULE, example, z, t, s)
    b = expected.step(SCHEDULE, example, z, t, s)
    np.testing.assert_allclose(a.x, b.x, rtol=1e-9)
    assert (int(a.evaluations), int(b.evaluations)) == (8, 4)


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

    class Teacher(DataTeacher):
        def step(self, schedule, example, z, t, s):
            jax.debug.callback(lambda g: seen.append(float(g)), example.guidance)
            return DataTeacher.step(self, schedule, example, z, t, s)

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


def test_a_null_class_is_added_to_what_a_model_has():
    plain = Denoiser(replace(MLP, null_class=False).build(key=KEY), SCHEDULE)
    given = with_null_class(plain)
    assert jax.tree.structure(given) == jax.tree.structure(
        Denoiser(MLP.build(key=KEY), SCHEDULE)
    )
    z = jax.random.normal(KEY, (3,), jnp.float32)
    for label in range(4):
        np.testing.assert_array_equal(given(z, 0.4, label), plain(z, 0.4, label))
    table = plain.network.embed.classes
    mean = eqx.tree_at(
        lambda m: m.network.embed.classes, plain, table.mean(0, keepdims=True)
    )
    np.testing.assert_array_equal(given(z, 0.4), mean(z, 0.4, 0))
    with pytest.raises(ValueError, match="null_class=True"):
        with_null_class(given)
    with pytest.raises(ValueError, match="classes=False"):
        with_null_class(Denoiser(MLPConfig(3, width=8).build(key=KEY), SCHEDULE))


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
    with pytest.raises(ValueError, match="0 <= low < high"):
        MultistepConsistencyLoss(DataTeacher(), Segments(1), guidance_range=(2.0, 1.0))
    with pytest.raises(ValueError, match="null_class needs classes"):
        MLPConfig(3, null_class=True)
    teacher, example = DistillationTeacher(plain), Example(z, 1, jnp.float32(1.0))
    with pytest.raises(ValueError, match="teacher without guidance"):
        teacher.step(SCHEDULE, example, z, 0.5, 0.4)
