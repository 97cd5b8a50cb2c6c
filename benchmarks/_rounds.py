"""What the rounds of a measurement say."""

import statistics
from collections.abc import Sequence


def median_and_spread(found: Sequence[float]) -> tuple[float, float]:
    """The median, and how far apart the slowest and the fastest lie, over it."""
    median = statistics.median(found)
    return median, (max(found) - min(found)) / median
