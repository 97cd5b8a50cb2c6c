"""Batches shared by several processes, and mirrored ones."""

import numpy as np
import pytest

from mcmeqx.data import Images, batches


def ramps(n: int) -> Images:
    """Image i holds i everywhere but in its left column, where it holds 255."""
    pixels = np.empty((n, 2, 3, 1), np.uint8)
    pixels[:] = np.arange(n)[:, None, None, None]
    pixels[:, :, 0] = 255
    labels = np.arange(n, dtype=np.int32)
    return Images(pixels, labels, tuple(map(str, range(n))), "ramps")


def mirrored(batch) -> np.ndarray:
    left, right = batch.x[..., 0] == 1.0, batch.x[..., -1] == 1.0
    assert (left.all(axis=(1, 2)) ^ right.all(axis=(1, 2))).all()
    return right.all(axis=(1, 2))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_processes_have_the_single_ones_batches_in_parts(processes, flip):
    options = {"batch_size": 8, "seed": 5, "start": 3, "stop": 9, "flip": flip}
    whole = list(batches(ramps(13), **options))
    parts = [
        list(batches(ramps(13), process=p, processes=processes, **options))
        for p in range(processes)
    ]
    for step, batch in enumerate(whole):
        for field in ("x", "label"):
            shares = [getattr(part[step], field) for part in parts]
            assert {len(share) for share in shares} == {8 // processes}
            np.testing.assert_array_equal(np.concatenate(shares), getattr(batch, field))


def test_together_processes_see_every_example_once_an_epoch():
    n, batch_size, processes = 12, 8, 4
    labels = [
        batch.label
        for process in range(processes)
        for batch in batches(
            ramps(n),
            batch_size=batch_size,
            seed=1,
            stop=3,
            process=process,
            processes=processes,
        )
    ]
    counts = np.bincount(np.concatenate(labels), minlength=n)
    np.testing.assert_array_equal(counts, np.full(n, 2))


def test_a_share_far_into_a_run_is_drawn_at_once(taken):
    start = 10**12
    options = {"batch_size": 8, "seed": 7, "start": start, "stop": start + 2}
    shares = list(batches(ramps(11), **options, flip=True, process=1, processes=2))
    assert taken == [4, 4]
    whole = batches(ramps(11), **options, flip=True)
    for share, batch in zip(shares, whole, strict=True):
        np.testing.assert_array_equal(share.x, batch.x[4:])


def test_mirroring_turns_half_of_the_examples_and_nothing_else():
    options = {"batch_size": 100, "seed": 0, "stop": 40}
    plain = list(batches(ramps(200), **options))
    flipped = list(batches(ramps(200), flip=True, **options))
    turned = np.array([mirrored(batch) for batch in flipped])
    assert not any(mirrored(batch).any() for batch in plain)
    for a, b, which in zip(plain, flipped, turned, strict=True):
        np.testing.assert_array_equal(a.label, b.label)
        expected = np.array(
            [x[..., ::-1] if w else x for x, w in zip(a.x, which, strict=True)]
        )
        np.testing.assert_array_equal(b.x, expected)
        assert b.x.dtype == np.float32
    # Of 4000 fair draws: within four standard deviations of a half.
    assert abs(turned.mean() - 0.5) < 4 * 0.5 / np.sqrt(turned.size)
    # Rows and steps are drawn on their own: neither repeats.
    assert len({tuple(row) for row in turned}) == len(turned)
    assert len({tuple(column) for column in turned.T}) == 100
    neighbours = (turned[1:] == turned[:-1]).mean()
    assert abs(neighbours - 0.5) < 4 * 0.5 / np.sqrt(turned[1:].size)


def test_an_example_is_mirrored_anew_in_each_epoch_and_for_each_seed():
    def run(seed: int) -> dict[int, list[bool]]:
        seen: dict[int, list[bool]] = {}
        for batch in batches(ramps(16), batch_size=16, seed=seed, stop=20, flip=True):
            for label, turned in zip(batch.label, mirrored(batch), strict=True):
                seen.setdefault(int(label), []).append(bool(turned))
        return seen

    first = run(0)
    assert first == run(0)
    assert first != run(1)
    assert all(0 < sum(turns) < 20 for turns in first.values())
