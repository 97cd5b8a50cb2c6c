"""SIGTERM and Ctrl-C as a question that the training loop asks between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

_WANTED = (signal.SIGTERM, signal.SIGINT)

Stop = Callable[[int], signal.Signals | None]


@contextmanager
def stop_signals(start: int) -> Iterator[Stop]:
    """Within it, `stop(step)` gives the signal that asked the run to end, or None.

    `start` is the step before the first that is asked about.

    A second signal does what it did before. Several processes agree on the step after
    which all stop, through JAX's own service, which watches for SIGTERM; there Ctrl-C
    does what it always does. Outside the main thread, where Python lets nobody set a
    handler, no signal is seen.
    """
    if jax.process_count() > 1:
        # They stop after the step behind the last that any has asked about: without
        # this, one of a former stage or run, which these may never reach.
        multihost_utils.reached_preemption_sync_point(start)

        def agreed(step: int) -> signal.Signals | None:
            asked = multihost_utils.reached_preemption_sync_point(step)
            return signal.SIGTERM if asked else None

        yield agreed
        return
    asked: list[signal.Signals] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: Any) -> None:
        asked.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        before |= {each: signal.signal(each, note) for each in _WANTED}
    try:
        yield lambda step: asked[0] if asked else None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
