"""SIGTERM and Ctrl-C as a question that the training loop asks between two steps."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

_WANTED = (signal.SIGTERM, signal.SIGINT)

Stop = Callable[[], signal.Signals | None]

# JAX lets all processes stop at the question behind the last that any has asked. So
# that no process is ahead of another between two stages or runs, whose steps begin
# anew, all of a process's questions are counted.
_questions = itertools.count(1)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within it, `stop()` gives the signal that asked the run to end, or None.

    A second signal does what it did before. Several processes, which ask equally often,
    agree on the question at which all stop, through JAX's own service, which watches
    for SIGTERM from when they join; there Ctrl-C does what it always does. Outside the
    main thread, where Python lets nobody set a handler, no signal is seen.
    """
    if jax.process_count() > 1:

        def agreed() -> signal.Signals | None:
            asked = multihost_utils.reached_preemption_sync_point(next(_questions))
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
        # What is ignored, as Ctrl-C by what a shell runs in the background, stays so.
        deaf = (signal.SIG_IGN, None)
        heard = [each for each in _WANTED if signal.getsignal(each) not in deaf]
        before |= {each: signal.signal(each, note) for each in heard}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
