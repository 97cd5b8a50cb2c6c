"""The loop: batches in, steps done, metrics out, and the ways in which a run stops.

The host runs ahead of the device. The next batch is on its way before a step is asked
for, and metrics are looked at two steps late, so that neither waits for the other.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mcmeqx._checks import check_classes, check_example, label_range
from mcmeqx._sharding import check_batch_size, make_mesh, place, split_batch
from mcmeqx._signals import stop_signals
from mcmeqx._train import Learner, Metrics, TrainState
from mcmeqx._types import Example

Callback = Callable[[int, TrainState, dict[str, float]], None]
Save = Callable[[TrainState], None]

_LATE = 2


class Stopped(Exception):  # noqa: N818 -- a person may have asked for it
    """Training stopped before its last step; `state` is what it had reached."""

    def __init__(self, message: str, state: TrainState):
        super().__init__(message)
        self.state = state


class Interrupted(Stopped):
    """Training was asked to stop by SIGTERM or SIGINT (Ctrl-C), `signal` by number."""

    def __init__(self, message: str, state: TrainState, signal: int):
        super().__init__(message, state)
        self.signal = signal


class NonFiniteLossError(Stopped, ArithmeticError):
    """Step after step had a loss or gradient that is not finite.

    `batch` is that of the last of them. No step since the first of them changed a
    parameter, so `state` is what it was computed from, but for its count of steps.
    """

    def __init__(self, message: str, state: TrainState, step: int, batch: Example):
        super().__init__(message, state)
        self.step, self.batch = step, batch


class OutOfBatchesError(Stopped, ValueError):
    """The batches ran out before the last step."""


class _Done(NamedTuple):
    step: int
    metrics: Metrics
    batch: Example


def fit(
    learner: Learner,
    state: TrainState,
    batches: Iterable[Example],
    *,
    steps: int,
    callbacks: Iterable[Callback] = (),
    save: Save | None = None,
    save_every: int = 1000,
    mesh: Mesh | None = None,
    patience: int = 5,
) -> TrainState:
    """The state at step `steps`; those it has done already are among these.

    `batches` starts with the batch of step `state.step`; where there are several
    processes each gives its own share of the rows. `mesh` is that of `make_mesh()` by
    default. Each callback gets `(step, state, metrics)` for every step, with the
    metrics of that step and a state up to two steps younger, `state.step` says which.
    A callback must not keep the state, whose buffers the next step takes. `save` gets
    the state after each step that is a multiple of `save_every`, when all callbacks
    have seen that step, so that what it writes and what they write fit together. The
    state given is copied, and stays as it is: give it away, with no name kept, and it
    takes no room while the run goes on.

    Raises `Interrupted` on SIGTERM or SIGINT, after the step in flight, and
    `NonFiniteLossError` after `patience` steps in a row whose loss or gradient is not
    finite, and `OutOfBatchesError` when the batches run out; all carry the state.
    Raises ValueError for a state of more than `steps` steps, and for batches that do
    not split over the mesh, are not of float32 at least, or hold labels that are no
    classes of the model or of its teacher, as far as their networks are the library's.
    """
    for name, value in {"save_every": save_every, "patience": patience}.items():
        if value < 1:
            raise ValueError(f"{name} is a number of steps, 1 or more, got {value}")
    mesh = make_mesh() if mesh is None else mesh
    # A step takes the buffers of its state, and leaves those of the learner.
    state = place(state, mesh)
    learner = place(learner, mesh, copy=False)
    watch = _Watch(tuple(callbacks), patience)
    start = int(state.step)
    if start > steps:
        raise ValueError(
            f"the state has done {start} steps already, and steps is {steps}: those "
            "done are among them"
        )
    teacher = getattr(learner.loss, "teacher", None)
    guide = getattr(getattr(teacher, "guidance", None), "negative", None)
    known = label_range(state.model, getattr(teacher, "denoiser", None), guide)
    stream = _ahead(batches, mesh, start, steps, learner.accumulate, known)
    with stop_signals() as stop:
        for step in range(start + 1, steps + 1):
            batch = next(stream, None)
            if batch is None:
                watch.finish(state)
                message = f"the batches ran out before step {step} of {steps}"
                raise OutOfBatchesError(message, state)
            with jax.set_mesh(mesh):
                state, metrics = learner.step(state, batch)
            watch.add(_Done(step, metrics, batch), state)
            if save is not None and step % save_every == 0:
                watch.finish(state)
                save(state)
            if signal := stop():
                watch.finish(state)
                done = f"stopped after step {step} of {steps} by {signal.name}"
                raise Interrupted(done, state, signal)
        watch.finish(state)
        # Several processes stop one question behind the last that any has asked.
        if signal := stop():
            done = f"stopped after the last of {steps} steps by {signal.name}"
            raise Interrupted(done, state, signal)
    return state


def _ahead(
    batches: Iterable[Example],
    mesh: Mesh,
    start: int,
    steps: int,
    accumulate: int,
    known: tuple[int, int] | None,
) -> Iterator[Example]:
    """The batches of steps start + 1 to `steps`, each on the mesh one step early.

    Fewer if they run out.
    """
    iterator, ready = iter(batches), deque[Example]()
    for _ in range(start, steps):
        batch = next(iterator, None)
        if batch is None:
            break
        check_example(batch)
        rows = len(batch.x) * jax.process_count()
        check_batch_size(rows, mesh, accumulate)
        check_classes(batch.label, known)
        ready.append(split_batch(batch, mesh))
        if len(ready) > 1:
            yield ready.popleft()
    yield from ready


class _Watch:
    """Looks at what steps gave, some steps late; stops a run that does not recover."""

    def __init__(self, callbacks: tuple[Callback, ...], patience: int):
        self._callbacks, self._patience = callbacks, patience
        self._pending: deque[_Done] = deque()
        self._last: _Done | None = None
        self._in_a_row = 0

    def add(self, done: _Done, state: TrainState) -> None:
        self._pending.append(done)
        if len(self._pending) > _LATE:
            self._report(state)
        if self._in_a_row >= self._patience:
            self.finish(state)

    def finish(self, state: TrainState) -> None:
        """Report all; NonFiniteLossError if the run had not recovered by the end."""
        while self._pending:
            self._report(state)
        if self._in_a_row >= self._patience:
            assert self._last is not None
            step, metrics, batch = self._last
            raise NonFiniteLossError(
                f"{self._in_a_row} steps in a row had a loss or gradient that is not "
                f"finite, up to step {step} (loss {metrics['loss']}); the parameters "
                "are those from before them. Lower the learning rate, or look at that "
                "batch",
                state,
                step,
                batch,
            )

    def _report(self, state: TrainState) -> None:
        step, metrics, batch = self._pending.popleft()
        values = _floats(jax.device_get(metrics))
        finite = np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])
        self._in_a_row = 0 if finite else self._in_a_row + 1
        self._last = _Done(step, values, batch)
        for callback in self._callbacks:
            callback(step, state, values)


def _floats(metrics: Metrics) -> dict[str, float]:
    """Numbers by name; a vector's entries as `name_1`, ..., those that are no NaN."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if np.ndim(value) == 0:
            flat[name] = float(value)
        else:
            rows = enumerate(np.asarray(value).tolist(), 1)
            flat |= {f"{name}_{i}": v for i, v in rows if v == v}
    return flat
