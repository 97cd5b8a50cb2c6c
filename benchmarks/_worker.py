"""A contestant of `versus.py`: a resident process that does a job whenever asked."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

BATCH_SIZE = int(os.environ.get("VERSUS_BATCH_SIZE", "8"))
SIDE, SEGMENTS, TEACHER_STEPS = 32, 8, 256
LEARNING_RATE, EMA_DECAY = 1e-4, 0.999
STEPS = (1, 4)


class Contestant(NamedTuple):
    """Parameters of the network, versions, device, and jobs that block."""

    parameters: int
    version: str
    device: str
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
