"""What measurements call the device that they were made on."""

from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def named(kind: str) -> str:
    """A device's `kind`; for "cpu" the processor's model, where Linux tells it."""
    if kind != "cpu" or not _CPU_INFO.exists():
        return kind
    pairs = (line.partition(":") for line in _CPU_INFO.read_text().splitlines())
    models = [value.strip() for key, _, value in pairs if key.strip() == "model name"]
    return models[0] if models else kind
