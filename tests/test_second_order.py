"""Targets of consistency training from one and from two steps back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, gaussian_teacher
from test_loss import (
    NORM,
    SCHEDULE,
    Spy,
    affine,
    example,
    loss_of,
    steps_from_step,
    textbook_target,
)

from mcmeqx import (
    DataTeacher,
    DistillationTeacher,
    Example,
    MidpointTeacher,
    MultistepConsistencyLoss,
    Segments,
)


def steps_back(t: float, student_steps: int, total: int) -> tuple[float, ...]:
    """One step back, two (none past the segment's end), and that end."""
    k = round(t * total)
    n_seg = total // student_steps
    r = (k - 1) // n_seg * n_seg
    return (k - 1) / total, max(k - 2, r) / total, r / total


def target_of(model, x, z, t, student_steps: int, total: int) -> np.ndarray:
    """4/3 of Algorithm 1's target one step back less 1/3 of that two steps back."""
    near, far, r = steps_back(t, student_steps, total)
    alpha, sigma = alpha_sigma(SCHEDULE, t)

    def textbook(s):
        alpha_s, sigma_s = alpha_sigma(SCHEDULE, s)
        z_s = alpha_s * x + sigma_s * (z - alpha * x) / sigma
        x_ref = np.asarray(model(jnp.asarray(z_s, jnp.float32), s), np.float64)
        return textbook_target(SCHEDULE, x_ref, z, z_s, t, s, r)

    if near == r:
        return textbook(near)
    return 4 / 3 * textbook(near) - 1 / 3 * textbook(far)


@pytest.mark.parametrize(("student_steps", "total"), [(1, 12), (2, 16), (4, 8)])
def test_the_target_is_extrapolated_and_the_gradient_passes_at_t_alone(
    student_steps, total
):
    loss = loss_of(DataTeacher(), student_steps, order=2)
    seen = set()
    for seed in range(9):
        data, key = example(seed), jax.random.key(seed)
        spy = Spy(affine())
        _, metrics = loss(spy, data, step=total, key=key)
        z, t = spy.at(max)
        near, far, r = steps_back(t, student_steps, total)
        asked = sorted(float(call[1]) for call in spy.calls)
        assert asked == pytest.approx([far, near, t], abs=1e-6)
        seen.add((near > r) + (far > r))
        x = np.asarray(data.x, np.float64)
        error = 0.3 * z + 0.2 * np.sin(3 * t)
        error = error - target_of(affine(), x, z, t, student_steps, total)
        root = np.sqrt(np.mean(error**2) + 1e-8)
        assert float(metrics["x_distance"]) == pytest.approx(root - 1e-4, rel=3e-4)
        gradient = eqx.filter_grad(
            lambda m: loss(m, data, step=total, key=key)[0]  # noqa: B023
        )(affine())
        sigma = alpha_sigma(SCHEDULE, t)[1]
        expected = np.mean(error * z) / root / sigma**2
        assert float(gradient.network.a) == pytest.approx(expected, rel=2e-3)
    assert {1, 2} & seen == ({1} if total == 2 * student_steps else {1, 2})


def test_one_teacher_step_a_segment_leaves_nothing_to_extrapolate():
    for seed in range(4):
        values = [
            loss_of(DataTeacher(), 4, order=order)(
                affine(), example(seed), step=4, key=jax.random.key(seed)
            )[0]
            for order in (1, 2)
        ]
        assert float(values[0]) == float(values[1])


def flow_error(order: int, total: int) -> float:
    """Relative error of one step of the best linear student of Gaussian data.

    Its slope at each time is read off the loss: by the law of cosines the distances of
    the target from 0 and from z give its component along z. Data and noise are
    orthogonal and of their exact lengths, so that one example is the whole population.
    """
    var, slopes = 0.25, {0: 0.0}
    loss = loss_of(DataTeacher(), 1, order=order, distance=NORM)

    class Linear:
        schedule = SCHEDULE

        def __init__(self, slope):
            self.slope = slope

        def __call__(self, z, t, label=None, *, guidance=None, key=None):
            n = round(float(t) * total)
            self.n, self.z = max(n, getattr(self, "n", 0)), z
            return jnp.asarray(slopes.get(n, self.slope), z.dtype) * z

    seeds = {}
    for seed in range(12 * total):
        times = Segments(1).draw(
            total, key=jax.random.split(jax.random.key(seed), 4)[0]
        )
        seeds.setdefault(round(float(times.t) * total), seed)
    rng = np.random.default_rng(0)
    for n in range(1, total + 1):
        key = jax.random.key(seeds[n])
        eps = jax.random.normal(jax.random.split(key, 4)[1], (64,), jnp.float32)
        eps = np.asarray(eps, np.float64)
        x = rng.normal(size=64)
        x -= eps * (x @ eps) / (eps @ eps)
        x *= np.sqrt(var * (eps @ eps) / (x @ x))
        squares = []
        for slope in (0.0, 1.0):
            model = Linear(slope)
            data = Example(jnp.asarray(x, jnp.float32), None)
            distance = loss(model, data, step=total, key=key)[1]["x_distance"]
            assert model.n == n
            squares.append(float(distance) ** 2)
        square = float(jnp.mean(model.z**2))
        slopes[n] = (squares[0] + square - squares[1]) / (2 * square)
    (alpha, sigma), (alpha_0, sigma_0) = (alpha_sigma(SCHEDULE, t) for t in (1, 0))
    landed = alpha_0 * slopes[total] + sigma_0 / sigma * (1 - alpha * slopes[total])
    exact = np.hypot(alpha_0 * np.sqrt(var), sigma_0)
    exact /= np.hypot(alpha * np.sqrt(var), sigma)
    return landed / exact - 1


def test_two_steps_back_are_of_the_second_order():
    first = [abs(flow_error(1, n)) for n in (8, 16)]
    second = [abs(flow_error(2, n)) for n in (8, 16)]
    assert 1.8 < first[0] / first[1] < 2.2
    assert 3.6 < second[0] / second[1] < 4.4
    assert second[1] < 0.15 * first[1]


@pytest.mark.parametrize("total", [8, 16])
def test_from_data_the_best_student_is_that_of_distilling_ddim(total):
    """The mean of targets one step back is DDIM's, so both take all of its steps."""
    gain = 1.0
    for n in range(total, 0, -1):
        (alpha, sigma), (alpha_s, sigma_s) = (
            alpha_sigma(SCHEDULE, k / total) for k in (n, n - 1)
        )
        gain *= alpha_s * alpha * 0.25 + sigma_s * sigma
        gain /= alpha**2 * 0.25 + sigma**2
    (alpha, sigma), (alpha_0, sigma_0) = (alpha_sigma(SCHEDULE, t) for t in (1, 0))
    exact = np.hypot(alpha_0 * 0.5, sigma_0) / np.hypot(alpha * 0.5, sigma)
    assert flow_error(1, total) == pytest.approx(gain / exact - 1, abs=2e-6)


def test_all_calls_of_the_student_see_one_dropout_key():
    spy = Spy(affine())
    loss_of(DataTeacher(), 1, order=2)(spy, example(), step=16, key=jax.random.key(0))
    keys = {tuple(np.asarray(jax.random.key_data(key))) for *_, key in spy.calls}
    assert len(spy.calls) == 3
    assert len(keys) == 1


def test_other_orders_and_teachers_are_refused():
    with pytest.raises(ValueError, match="order is 1 or 2, got 3"):
        loss_of(DataTeacher(), 2, order=3)
    model = gaussian_teacher(SCHEDULE, 0.25)
    for teacher in (DistillationTeacher(model), MidpointTeacher(model)):
        with pytest.raises(ValueError, match=type(teacher).__name__):
            MultistepConsistencyLoss(teacher, Segments(2), steps_from_step, order=2)
