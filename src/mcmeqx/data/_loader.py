"""Shuffled batches without end, whose order is a pure function of (seed, step).

The stream of examples is one permutation after another: epoch e is drawn from
`default_rng([seed, e])`. Batch k holds the positions [k B, (k + 1) B) of that stream:
it may straddle two epochs, nothing is dropped, and a run that resumes at step k has
batch k at once. grain draws whole batches ahead, on threads, and keeps their order.

Several processes share batch k by its rows, in order; which rows are mirrored is drawn
for the whole of it, from (seed, k). So together they have the batch of a single one.
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
    process: int = 0,
    processes: int = 1,
    flip: bool = False,
) -> Iterator[Example]:
    """Batches `start`, `start + 1`, ... of `images`, up to but without `stop`.

    Each is an `Example` with x float32 (batch_size, channel, height, width) and label
    int32 (batch_size,), as `images.take` gives them, in fresh NumPy arrays. Every
    example comes once an epoch of len(images) examples, whatever the batch size, which
    may exceed an epoch. Without `stop` the stream never ends.

    With `processes` P, number `process` in [0, P) has batch_size / P rows of each
    batch, the next ones after its predecessor's. `flip` mirrors an example left to
    right with probability 1/2, anew each time it comes.

    Raises, before the first batch is drawn, `TypeError` for a number that is no integer
    and for what is no `Images`, and `ValueError` for empty `images`, `batch_size` below
    1 or not a multiple of `processes`, a negative `seed` or `start`, `stop` below
    `start`, or a `process` that is not below `processes`.
    """
    if not isinstance(images, Images):
        raise TypeError(
            f"batches are of Images, got {type(images).__name__}: of a source, "
            "save_packed(source, path) and then packed(path)"
        )
    batch_size, seed = _integer("batch_size", batch_size, 1), _integer("seed", seed, 0)
    start = _integer("start", start, 0)
    end = _ENDLESS if stop is None else _integer("stop", stop, start)
    process = _integer("process", process, 0)
    processes = _integer("processes", processes, process + 1)
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of processes, {processes}"
        )
    if not len(images):
        raise ValueError(f"{images.name} holds no examples")
    count, share = len(images), batch_size // processes
    rows = slice(process * share, (process + 1) * share)

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(count)

    def draw(step: int) -> Example:
        first = step * batch_size + rows.start
        last = first + share
        parts = [
            permutation(epoch)[max(first - epoch * count, 0) : last - epoch * count]
            for epoch in range(first // count, (last - 1) // count + 1)
        ]
        batch = images.take(np.concatenate(parts))
        if not flip:
            return batch
        # A spawn key keeps these draws apart from those of every permutation.
        draws = np.random.SeedSequence([seed, step], spawn_key=(1,))
        mirrored = np.random.default_rng(draws).random(batch_size)[rows] < 0.5
        # In place, one by one: half the time of choosing between two whole batches.
        x: Any = batch.x
        for row in np.flatnonzero(mirrored):
            x[row] = x[row, ..., ::-1]
        return batch

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    steps = grain.MapDataset.range(start, end)
    return iter(steps.map(draw).to_iter_dataset(options))


def _integer(field: str, value: Any, least: int) -> int:
    """`value` as Python's integer, which never overflows."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{field} is {value!r}, expected an integer")
    if value < least:
        raise ValueError(f"{field} is {value}, expected at least {least}")
    return int(value)
