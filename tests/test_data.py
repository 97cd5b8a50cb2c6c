from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from mcmeqx.data import Images, _loader, batches


def numbered(n: int, side: int = 2) -> Images:
    """Images whose pixels and labels both spell their index, for n up to 256."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8), (side, side, 3, n))
    labels = np.arange(n, dtype=np.int32)
    classes = tuple(str(i) for i in range(n))
    return Images(np.ascontiguousarray(pixels.T), labels, classes, "numbered")


def drawn(stream, steps: int) -> np.ndarray:
    return np.concatenate([batch.label for batch in islice(stream, steps)])


def test_images_scale_and_turn_pixels_without_loss():
    pixels = np.arange(2 * 8 * 16 * 1, dtype=np.uint8).reshape(2, 8, 16, 1)
    images = Images(pixels, np.array([1, 0], np.int32), ("a", "b"), "ramp")
    assert images.shape == (1, 8, 16)
    x, label, _ = images[1]
    assert (x.shape, x.dtype, label, label.dtype) == (
        (1, 8, 16),
        np.float32,
        0,
        "int32",
    )
    assert (images[0].x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(np.rint((x[0] + 1) * 127.5), pixels[1, :, :, 0])
    batch = images.take([1, 0, -1, 1])
    assert batch.x.shape == (4, 1, 8, 16)
    assert batch.x.dtype == np.float32
    assert batch.label.dtype == np.int32
    for row, i in enumerate([1, 0, 1, 1]):
        np.testing.assert_array_equal(batch.x[row], images[i].x)
    np.testing.assert_array_equal(batch.label, [0, 1, 0, 0])
    assert images.take([]).x.shape == (0, 1, 8, 16)
    assert len(list(images)) == len(images) == 2


def test_headroom_moves_black_and_white_and_nothing_else():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    plain = Images(pixels, np.zeros(1, np.int32), ("a",), "ramp")
    room = replace(plain, headroom=0.25)
    x, own = plain[0].x.ravel(), room[0].x.ravel()
    assert (own[0], own[255], own.dtype) == (-1.25, 1.25, np.float32)
    np.testing.assert_array_equal(own[1:255], x[1:255])
    np.testing.assert_array_equal(room.take([0]).x.ravel(), own)
    noisy = own + np.where(np.arange(256) % 255 == 0, 0.2, 0.0)
    for sign in (-1, 1):
        back = np.rint((np.clip(own + sign * (noisy - own), -1, 1) + 1) * 127.5)
        np.testing.assert_array_equal(back, np.arange(256))


def test_images_cannot_be_written_to():
    pixels = np.zeros((3, 2, 2, 3), np.uint8)
    images = Images(pixels, np.zeros(3, np.int32), ("a",), "zeros")
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1
    assert pixels.flags.writeable, "the caller's own array was locked"
    batch = images.take([0])
    batch.x[:] = 0.5
    assert images[0].x.max() == -1.0


GOOD = {
    "pixels": np.zeros((3, 2, 2, 3), np.uint8),
    "labels": np.array([0, 1, 1], np.int32),
    "classes": ("a", "b"),
    "name": "good",
}
BAD_FIELDS = [
    ({"pixels": np.zeros((3, 2, 2, 3))}, TypeError, "pixels: float64"),
    ({"labels": np.zeros(3, np.int64)}, TypeError, "labels: int64"),
    ({"pixels": np.zeros((3, 2, 2), np.uint8)}, ValueError, r"\(3, 2, 2\)"),
    ({"pixels": np.zeros((3, 2, 0, 3), np.uint8)}, ValueError, "empty axis"),
    ({"labels": np.zeros((3, 1), np.int32)}, ValueError, r"\(3, 1\)"),
    ({"labels": np.zeros(4, np.int32)}, ValueError, "3 pixels, but 4 labels"),
    ({"labels": np.array([0, 2, 1], np.int32)}, ValueError, r"labels\[1\] is 2"),
    ({"labels": np.array([0, 1, -1], np.int32)}, ValueError, r"labels\[2\] is -1"),
    ({"classes": ()}, ValueError, r"labels\[0\] is 0, outside \[0, 0\)"),
    ({"classes": ("a", "a")}, ValueError, "twice"),
    ({"headroom": -0.1}, ValueError, "headroom is -0.1"),
    ({"headroom": float("nan")}, ValueError, "headroom is nan"),
]


@pytest.mark.parametrize(("fields", "error", "message"), BAD_FIELDS)
def test_images_refuse(fields, error, message):
    Images(**GOOD)
    with pytest.raises(error, match=message):
        Images(**{**GOOD, **fields})


def test_images_refuse_bad_indices():
    images = numbered(3)
    for i in (3, -4):
        with pytest.raises(IndexError, match=str(i)):
            images[i]
        with pytest.raises(IndexError, match=str(i)):
            images.take([0, i])
    for indices in ([0.5], np.array([True, False, True]), np.array([[0, 1]])):
        with pytest.raises(TypeError):
            images.take(indices)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 13, 14, 40])
def test_every_example_comes_once_an_epoch(batch_size):
    n, epochs = 13, 4
    steps = -(-n * epochs // batch_size)
    order = drawn(batches(numbered(n), batch_size=batch_size, seed=3), steps)
    permutations = order[: n * epochs].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(permutations), [np.arange(n)] * epochs)
    assert len({tuple(p) for p in permutations}) == epochs, (
        "an epoch's order came twice"
    )


def test_the_order_of_examples_does_not_depend_on_the_batch_size():
    orders = [
        drawn(batches(numbered(7), batch_size=size, seed=0), 60 // size)
        for size in (1, 4, 6, 30)
    ]
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])


@pytest.mark.parametrize("start", [1, 4, 9])
def test_starting_late_equals_skipping(start):
    images = numbered(11)
    late = list(batches(images, batch_size=4, seed=7, start=start, stop=start + 6))
    whole = list(batches(images, batch_size=4, seed=7, stop=start + 6))
    assert (len(late), len(whole)) == (6, start + 6)
    for a, b in zip(late, whole[start:], strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.label, b.label)


def test_the_order_and_what_is_mirrored_are_drawn_as_the_module_says():
    # A run goes on under another version of the library: these draws are a format.
    n, seed = 7, 5
    order = drawn(batches(numbered(n), batch_size=n, seed=seed), 3)
    rngs = [np.random.default_rng([seed, epoch]) for epoch in range(3)]
    np.testing.assert_array_equal(order, np.ravel([r.permutation(n) for r in rngs]))
    pixels = np.zeros((n, 2, 2, 3), np.uint8)
    pixels[:, :, 1] = 255
    images = replace(numbered(n), pixels=pixels)
    stream = batches(images, batch_size=n, seed=seed, flip=True)
    for step, batch in enumerate(islice(stream, 6)):
        draws = np.random.SeedSequence([seed, step], spawn_key=(1,))
        mirrored = np.random.default_rng(draws).random(n) < 0.5
        np.testing.assert_array_equal(batch.x[:, 0, 0, 0] > 0, mirrored)


def test_two_epochs_at_most_are_held(monkeypatch):
    made, real = [], _loader.lru_cache

    def lru_cache(**options):
        return lambda function: made.append(real(**options)(function)) or made[-1]

    monkeypatch.setattr(_loader, "lru_cache", lru_cache)
    assert len(list(batches(numbered(4), batch_size=2, seed=0, stop=40))) == 40
    assert made[0].cache_info().misses >= 20
    assert made[0].cache_info().currsize <= 2


def test_starting_very_late_looks_at_no_earlier_batch(taken):
    start = 10**12
    stream = batches(numbered(11), batch_size=4, seed=7, start=start, stop=start + 3)
    assert drawn(stream, 3).shape == (12,)
    assert taken == [4, 4, 4]


def test_batches_hold_the_images_of_their_labels():
    for x, label, *_ in batches(numbered(200, side=3), batch_size=64, seed=1, stop=5):
        assert (x.shape, x.dtype) == ((64, 3, 3, 3), np.float32)
        assert (label.shape, label.dtype) == ((64,), np.int32)
        expected = np.broadcast_to(label[:, None, None, None], x.shape)
        np.testing.assert_allclose((x + 1) * 127.5, expected, atol=1e-4)


def test_the_seed_alone_decides_the_order():
    orders = [
        drawn(batches(numbered(100), batch_size=10, seed=seed), 10)
        for seed in (0, 0, 1, 2**40)
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert len({tuple(order) for order in orders}) == 3
    # A shuffle leaves one example in place on average, with standard deviation one.
    for order in orders:
        assert np.sum(order == np.arange(100)) < 8


def test_the_stream_stops_where_asked_and_else_goes_on():
    images = numbered(3)
    assert not list(batches(images, batch_size=2, seed=0, start=5, stop=5))
    assert len(list(batches(images, batch_size=2, seed=0, start=5, stop=9))) == 4
    assert drawn(batches(images, batch_size=2, seed=0), 500).shape == (1000,)


BAD_NUMBERS = [
    ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ({"batch_size": -3}, ValueError, "batch_size is -3"),
    ({"batch_size": 2.0}, TypeError, None),
    ({"batch_size": "8"}, TypeError, None),
    ({"batch_size": True}, TypeError, "batch_size is True"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"seed": None}, TypeError, None),
    ({"start": -1}, ValueError, "start is -1"),
    ({"start": 1.5}, TypeError, None),
    ({"start": 4, "stop": 3}, ValueError, "stop is 3, expected at least 4"),
    ({"processes": 4}, ValueError, "batch_size is 2, expected a multiple of .*, 4"),
    ({"processes": 0}, ValueError, "processes is 0, expected at least 1"),
    ({"process": 2, "processes": 2}, ValueError, "processes is 2, .* at least 3"),
    ({"process": -1, "processes": 2}, ValueError, "process is -1"),
]


@pytest.mark.parametrize(("numbers", "error", "message"), BAD_NUMBERS)
def test_batches_refuse_when_they_are_made(numbers, error, message):
    with pytest.raises(error, match=message):
        batches(numbered(3), **{"batch_size": 2, "seed": 0, **numbers})


def test_batches_refuse_an_empty_set():
    with pytest.raises(ValueError, match="numbered holds no examples"):
        batches(numbered(0), batch_size=2, seed=0)
