"""Shuffled batches without end, whose order is a pure function of (seed, step).

The stream of examples is one permutation after another: epoch e is drawn from
`default_rng([seed, e])`. Batch k holds the positions [k B, (k + 1) B) of that stream:
it may straddle two epochs, nothing is dropped, and a run that resumes at step k has
batch k at once. grain draws whole batches ahead, on threads, and keeps their order.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from mcmeqx._types import Example
from mcmeqx.data._images import Images

_THREADS = 2
_AHEAD = 4
_ENDLESS = 2**62


def batches(
    images: Images,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Example]:
    """Batches `start`, `start + 1`, ... of `images`, up to but without `stop`.

    Each is an `Example` with x float32 (batch_size, channel, height, width) in [-1, 1]
    and label int32 (batch_size,), in fresh NumPy arrays. Every example comes once an
    epoch of len(images) examples, whatever the batch size, which may exceed an epoch.
    Without `stop` the stream never ends.

    Raises, before the first batch is drawn, `TypeError` for a number that is no integer
    and `ValueError` for empty `images`, `batch_size` below 1, a negative `seed` or
    `start`, or `stop` below `start`.
    """
    _check("batch_size", batch_size, 1)
    _check("seed", seed, 0)
    _check("start", start, 0)
    if stop is not None:
        _check("stop", stop, start)
    if not len(images):
        raise ValueError(f"{images.name} holds no examples")
    count = len(images)

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(count)

    def draw(step: int) -> Example:
        first, last = step * batch_size, (step + 1) * batch_size
        parts = [
            permutation(epoch)[max(first - epoch * count, 0) : last - epoch * count]
            for epoch in range(first // count, (last - 1) // count + 1)
        ]
        return images.take(np.concatenate(parts))

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    steps = grain.MapDataset.range(start, _ENDLESS if stop is None else stop)
    return iter(steps.map(draw).to_iter_dataset(options))


def _check(field: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{field} is {value!r}, expected an integer")
    if value < least:
        raise ValueError(f"{field} is {value}, expected at least {least}")
