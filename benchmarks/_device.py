"""What measurements call the device that they were made on."""

import os
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def named(kind: str) -> str:
    """A device's `kind`; for "cpu" the processor's model, where Linux tells it."""
    if kind != "cpu" or not _CPU_INFO.exists():
        return kind
    pairs = (line.partition(":") for line in _CPU_INFO.read_text().splitlines())
    models = [value.strip() for key, _, value in pairs if key.strip() == "model name"]
    return models[0] if models else kind


def cores() -> int:
    """CPU cores that this process may use, of all where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
