import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SCHEDULES, theta

from mcmeqx import (
    Segments,
    Times,
    annealed_steps,
    ddim,
    inverse_ddim,
    merge_steps,
)

STUDENT_STEPS = [1, 2, 3, 4, 8, 16]


def all_times(student_steps: int, n_seg: int) -> tuple[Times, np.ndarray, np.ndarray]:
    """Every (segment, n), segments outermost, with float32 times."""
    segment = np.repeat(np.arange(student_steps, dtype=np.int32), n_seg)
    n = np.tile(np.arange(1, n_seg + 1, dtype=np.int32), student_steps)
    segments = Segments(student_steps)
    times = jax.jit(jax.vmap(segments.times, (None, 0, 0)))(
        jnp.int32(n_seg), segment, n
    )
    return times, segment, n


@pytest.mark.parametrize("student_steps", STUDENT_STEPS)
@pytest.mark.parametrize("n_seg", [1, 3, 11, 80, 303])
def test_times_tile_the_segments_and_meet_bit_for_bit(student_steps, n_seg):
    times, segment, n = all_times(student_steps, n_seg)
    assert all(a.dtype == jnp.float32 for a in times)
    t, s, r, t_to_s, s_to_r = (np.asarray(a) for a in times)
    ends = np.asarray(Segments(student_steps).grid()[::-1], np.float32)
    np.testing.assert_array_equal(s[n == 1], r[n == 1])
    np.testing.assert_array_equal(s_to_r[n == 1], 0.0)
    np.testing.assert_array_equal(t[n == n_seg], ends[1:])
    np.testing.assert_array_equal(r, ends[segment])
    np.testing.assert_array_equal(t[:-1], s[1:])
    total = student_steps * n_seg
    # XLA may divide by multiplying with a reciprocal: two units in the last place.
    ulps = {"rtol": 2.4e-7}
    np.testing.assert_allclose(t, np.arange(1, total + 1) / total, **ulps)
    np.testing.assert_allclose(t_to_s, 1 / total, **ulps)
    np.testing.assert_allclose(s_to_r, (n - 1) / total, **ulps)


@pytest.mark.parametrize("student_steps", STUDENT_STEPS)
def test_segment_ends_are_those_of_the_grid_to_rounding(student_steps):
    times, segment, n = all_times(student_steps, 41)
    ends = Segments(student_steps).grid()[::-1]
    np.testing.assert_allclose(times.t[n == 41], ends[1:], rtol=2.4e-7)
    np.testing.assert_allclose(times.r, ends[segment], rtol=2.4e-7)
    np.testing.assert_array_equal(times.t[:-1], times.s[1:])
    np.testing.assert_array_equal(times.s[n == 1], times.r[n == 1])


def test_two_steps_back_end_at_the_segments_end():
    segment, n = np.int32([0, 2, 2, 2]), np.int32([5, 1, 2, 3])
    times = jax.vmap(Segments(3).times, (None, 0, 0, None))(jnp.int32(5), segment, n, 2)
    for found, fifteenths in zip(
        times,
        ([5, 11, 12, 13], [3, 10, 10, 11], [0, 10, 10, 10], [2, 1, 2, 2], [3, 0, 0, 1]),
        strict=True,
    ):
        np.testing.assert_allclose(found, np.array(fifteenths) / 15, rtol=2.4e-7)
    np.testing.assert_array_equal(times.s[1:3], times.r[1:3])


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, {1: 64, 2: 32, 4: 16, 8: 8, 16: 4}),
        (10_000, {1: 86, 2: 43, 4: 22, 8: 11, 16: 5}),
        (25_000, {1: 135, 2: 68, 4: 34, 8: 17, 16: 8}),
        (50_000, {1: 286, 2: 143, 4: 72, 8: 36, 16: 18}),
        (75_000, {1: 605, 2: 303, 4: 151, 8: 76, 16: 38}),
        (100_000, {1: 1280, 2: 640, 4: 320, 8: 160, 16: 80}),
        (200_000, {1: 1280, 2: 640, 4: 320, 8: 160, 16: 80}),
    ],
)
def test_teacher_steps_per_segment_are_those_of_the_paper(step, expected):
    teacher_steps = annealed_steps()(step)
    got = {s: int(Segments(s).per_segment(teacher_steps)) for s in expected}
    assert got == expected


def test_a_segment_never_has_less_than_one_teacher_step():
    assert int(Segments(16).per_segment(4.0)) == 1


def test_draw_covers_every_segment_and_step_alike():
    draws, student_steps, n_seg = 32_000, 4, 8
    keys = jax.random.split(jax.random.key(0), draws)
    times = jax.vmap(lambda k: Segments(student_steps).draw(32.0, key=k))(keys)
    cell = np.rint(np.asarray(times.t) * student_steps * n_seg).astype(int)
    counts = np.bincount(cell, minlength=33)
    assert counts[0] == 0
    expected = draws / (student_steps * n_seg)
    assert np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)
    np.testing.assert_array_equal(
        np.rint(np.asarray(times.r) * student_steps), (cell - 1) // n_seg
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("student_steps", [1, 2, 8])
@pytest.mark.parametrize("n_seg", [1, 2, 16])
def test_merged_steps_land_where_two_steps_land(schedule, student_steps, n_seg):
    total = student_steps * n_seg
    rng = np.random.default_rng(0)
    for segment in {0, student_steps - 1}:
        for n in {1, 1 + n_seg // 2, n_seg}:
            k = segment * n_seg
            t, s, r = (jnp.float64(i / total) for i in (k + n, k + n - 1, k))
            times = Times(t, s, r, jnp.float64(1 / total), jnp.float64((n - 1) / total))
            z, x_first, x_second = jnp.asarray(rng.normal(size=(3, 32)))
            z_s = ddim(schedule, z, x_first, t, s)
            z_r = ddim(schedule, z_s, x_second, s, r)
            expected = inverse_ddim(schedule, z, z_r, t, r)
            merged = merge_steps(schedule, x_first, x_second, times)
            np.testing.assert_allclose(merged, expected, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("student_steps", [1, 2, 8])
def test_merging_keeps_its_digits_in_float32_at_1280_steps(schedule, student_steps):
    n_seg = 1280 // student_steps
    times, segment, n = all_times(student_steps, n_seg)
    x_first, x_second = np.random.default_rng(1).normal(size=(2, 1280)).astype("f4")

    @jax.jit
    @jax.vmap
    def merge(a, b, times):
        return merge_steps(schedule, a, b, times)

    merged = merge(x_first, x_second, times)
    assert merged.dtype == jnp.float32
    k = segment * n_seg
    angle_t, angle_s, angle_r = (
        theta(schedule, i / 1280) for i in (k + n, k + n - 1, k)
    )
    first = np.sin(angle_r) * np.sin(angle_t - angle_s)
    second = np.sin(angle_t) * np.sin(angle_s - angle_r)
    weight = first / (first + second)
    expected = weight * x_first.astype("f8") + (1 - weight) * x_second.astype("f8")
    np.testing.assert_allclose(merged, expected, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(merged)[n == 1], x_first[n == 1])


def test_annealing_does_not_compile_again():
    traces = []

    @jax.jit
    def draw(step, key):
        traces.append(1)
        return Segments(4).draw(annealed_steps()(step), key=key)

    steps = [0, 1, 1000, 50_000, 200_000]
    gaps = [float(draw(jnp.int32(step), jax.random.key(step)).t_to_s) for step in steps]
    assert len(traces) == 1
    np.testing.assert_allclose(gaps, [1 / 64, 1 / 64, 1 / 64, 1 / 288, 1 / 1280])


@pytest.mark.parametrize("student_steps", [0, -2])
def test_a_student_has_at_least_one_step(student_steps):
    with pytest.raises(ValueError, match=str(student_steps)):
        Segments(student_steps)
