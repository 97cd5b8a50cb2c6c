"""A contestant of `versus.py`: a resident process that does a job whenever asked."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

BATCH_SIZE, SIDE, SEGMENTS, TEACHER_STEPS = 8, 32, 8, 256
LEARNING_RATE, EMA_DECAY = 1e-4, 0.999
STEPS = (1, 4)


class Contestant(NamedTuple):
    """Parameters of the network, version of the library, and jobs that block."""

    parameters: int
    version: str
    jobs: dict[str, Callable[[], Any]]


def serve(contestant: Contestant) -> None:
    """Say what this is; then, for each job named on a line of input, its seconds."""
    about = contestant._asdict() | {"jobs": list(contestant.jobs)}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        contestant.jobs[line.strip()]()
        found = {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
        }
        print(json.dumps(found), flush=True)
