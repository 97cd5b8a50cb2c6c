"""Distances of sets of features: against plain formulas, prdc, and closed forms."""

import inspect
import itertools

import numpy as np
import prdc
import pytest
import scipy.spatial.distance
import scipy.special

from mcmeqx.metrics import (
    _neighbours,
    density_coverage,
    inception_score,
    kernel_distance,
    precision_recall,
)

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(90, 6)).astype(np.float32)
FAKE = RNG.normal(0.5, 0.8, size=(70, 6)).astype(np.float32)


def test_kernel_distance_of_one_subset_is_the_unbiased_formula():
    a, b = REAL[:70].astype(float), FAKE.astype(float)

    def kernel(x, y):
        return (float(np.dot(x, y)) / 6 + 1) ** 3

    within = sum(
        kernel(s[i], s[j])
        for s in (a, b)
        for i, j in itertools.permutations(range(70), 2)
    )
    across = sum(kernel(x, y) for x in a for y in b)
    found = kernel_distance(a, b, subsets=1)
    np.testing.assert_allclose(found.value, within / 70 / 69 - 2 * across / 70**2)
    assert np.isnan(found.error)


@pytest.mark.parametrize("size", [50, 100, 190])
def test_kernel_distance_has_no_bias_and_its_error_is_that_of_repeats(size):
    # E k(x, y) of independent rows is E (x.y / d + 1)^3, by the moments of x.y
    d, shift, repeats = 4, 0.7, 40

    def mean_kernel(m):
        # x.y of N(m1, I), N(m2, I), by 200,000 pairs of another generator's draws
        rng = np.random.default_rng(5)
        x, y = (rng.normal(size=(200_000, d)) + s for s in m)
        k = ((x * y).sum(1) / d + 1) ** 3
        return k.mean(), k.std() / np.sqrt(len(k))

    (kx, ex), (ky, ey), (kxy, exy) = map(
        mean_kernel, ((0, 0), (shift, shift), (0, shift))
    )
    expected, doubt = kx + ky - 2 * kxy, np.sqrt(ex**2 + ey**2 + 4 * exy**2)
    found = [
        kernel_distance(
            RNG.normal(size=(200, d)),
            RNG.normal(shift, 1, (200, d)),
            subsets=20,
            size=size,
        )
        for _ in range(repeats)
    ]
    values = np.array([f.value for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - expected) < 5 * np.hypot(
        spread / np.sqrt(repeats), doubt
    )
    assert 0.7 < np.sqrt(np.mean([f.error**2 for f in found])) / spread < 1.4


def test_kernel_distance_of_large_float32_features_keeps_its_digits():
    # Sums of a million kernels of some 10^8 each, of which hundreds are left.
    a, b = (RNG.normal(20.0, 1.0, (60, 2048)).astype(np.float32) for _ in range(2))
    found = kernel_distance(a, b, subsets=1).value
    longer = [np.asarray(rows, np.longdouble) for rows in (a, b)]

    def kernel(x, y):
        return (x @ y.T / 2048 + 1) ** 3

    within = [kernel(x, x) for x in longer]
    own = sum(k.sum() - np.trace(k) for k in within) / (60 * 59)
    expected = float(own - 2 * kernel(*longer).mean())
    assert abs(expected) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_published_settings_are_the_defaults():
    # Binkowski et al. 2018: subsets of a thousand, a hundred of them; Naeem et al.
    # 2020: five neighbours of density and coverage.
    options = inspect.signature(kernel_distance).parameters
    assert (options["subsets"].default, options["size"].default) == (100, 1000)
    expected = prdc.compute_prdc(REAL, FAKE, nearest_k=5)
    found = density_coverage(REAL, FAKE)
    np.testing.assert_allclose(
        found, (expected["density"], expected["coverage"]), rtol=1e-12
    )


def test_subsets_of_a_whole_set_tell_no_error():
    assert np.isnan(kernel_distance(REAL, FAKE, subsets=9, size=70).error)
    assert kernel_distance(REAL, FAKE, subsets=9, size=69).error > 0


def test_inception_score_is_the_formula_of_probabilities():
    logits = RNG.normal(0, 3, (30, 5))
    p = scipy.special.softmax(logits, 1)
    parts = [
        np.exp(np.mean([np.sum(scipy.special.rel_entr(q, s.mean(0))) for q in s]))
        for s in (p[:10], p[10:20], p[20:])
    ]
    found = inception_score(logits, parts=3)
    np.testing.assert_allclose(found, (np.mean(parts), np.std(parts)), rtol=1e-12)


def test_inception_score_of_sure_and_of_undecided_networks():
    sure = inception_score(np.tile(2000.0 * np.eye(7), (3, 1)), parts=3)
    np.testing.assert_allclose(sure, (7.0, 0.0), atol=1e-12)
    # A class that nobody is of, with a share that float64 has as 0.
    never = np.column_stack([np.tile(2000.0 * np.eye(7), (3, 1)), np.full(21, -2000.0)])
    np.testing.assert_allclose(inception_score(never, parts=3), (7.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(inception_score(np.zeros((8, 7)), parts=2), (1.0, 0.0))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_agree_with_prdc_whatever_the_block(k, monkeypatch):
    expected = prdc.compute_prdc(REAL, FAKE, nearest_k=k)
    for block in (16, 1024):
        monkeypatch.setattr(_neighbours, "_BLOCK", block)
        both = (*precision_recall(REAL, FAKE, k=k), *density_coverage(REAL, FAKE, k=k))
        wanted = (expected[n] for n in ("precision", "recall", "density", "coverage"))
        np.testing.assert_allclose(both, tuple(wanted), rtol=1e-12)


def test_neighbours_do_not_depend_on_where_the_features_lie():
    real, fake = (rows.astype(np.float64) for rows in (REAL, FAKE))
    for metric in (precision_recall, density_coverage):
        moved = metric(real + 1e8, fake + 1e8)
        np.testing.assert_allclose(moved, metric(real, fake), atol=0.02)


def test_neighbours_agree_with_counting():
    own = scipy.spatial.distance.cdist(REAL, REAL)
    across = scipy.spatial.distance.cdist(REAL, FAKE)
    radii = np.sort(own, 1)[:, 3]
    found = precision_recall(REAL, FAKE, k=3)
    assert found.precision == np.mean((across <= radii[:, None]).any(0))
    found = density_coverage(REAL, FAKE, k=3)
    assert found.density == (across <= radii[:, None]).sum() / (3 * len(FAKE))
    assert found.coverage == np.mean((across <= radii[:, None]).any(1))


def test_coverage_of_a_law_by_itself():
    # none of n fakes among the k nearest of 2n: about 2^-k (Naeem et al. 2020, eq. 10)
    n = 1500
    real, fake = RNG.normal(size=(2, n, 3))
    exact = 1 - np.prod([(n - i) / (2 * n - 1 - i) for i in range(2)])
    found = density_coverage(real, fake, k=2)
    assert abs(found.coverage - exact) < 5 * np.sqrt(exact * (1 - exact) / n)
    assert abs(found.density - 1) < 0.15


def test_sets_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match="do not compare"):
        kernel_distance(REAL, FAKE[:, :3])
    with pytest.raises(ValueError, match="two rows"):
        kernel_distance(REAL, FAKE[:1])
    with pytest.raises(ValueError, match="subsets=0"):
        kernel_distance(REAL, FAKE, subsets=0)
    with pytest.raises(ValueError, match="do not compare"):
        density_coverage(REAL, FAKE[:, :3])
    with pytest.raises(ValueError, match="less than both 90 and 3, got 3"):
        precision_recall(REAL, FAKE[:3])
    for metric in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match=r"k is 1 or more .*, got 0"):
            metric(REAL, FAKE, k=0)
        for broken in (np.nan, np.inf):
            rows = np.where(np.arange(len(REAL))[:, None] == 7, broken, REAL)
            with pytest.raises(ValueError, match="features are not finite"):
                metric(rows, FAKE)
            with pytest.raises(ValueError, match="features are not finite"):
                metric(REAL, rows)
    for parts in (10, 0):
        with pytest.raises(ValueError, match=f"split into {parts}"):
            inception_score(np.zeros((9, 3)), parts=parts)
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.full((9, 3), np.nan), parts=1)
