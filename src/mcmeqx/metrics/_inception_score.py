"""The Inception Score: sure of each sample's class, and of all classes alike.

`exp(mean_x KL(p(y | x), mean_x p(y | x)))` (Salimans et al. 2016), of each of several
parts of the samples; it looks at no data.
"""

from typing import NamedTuple

import numpy as np


class InceptionScore(NamedTuple):
    """The score over the parts; at least 1, at most the number of classes."""

    value: float
    """Mean."""
    deviation: float
    """Standard deviation between the parts, as published; no standard error."""


def inception_score(logits: np.ndarray, *, parts: int = 10) -> InceptionScore:
    """The score of logits (n, classes), in float64, over `parts` runs of rows.

    Rows that stand by class or by name must be shuffled first. Raises ValueError for
    fewer rows than parts, no part or values that are not finite.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= parts <= len(logits):
        raise ValueError(f"logits of shape {logits.shape} do not split into {parts}")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite")
    scores = [_score(part) for part in np.array_split(logits, parts)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: np.ndarray) -> float:
    log_p = logits - logits.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(0)
    # A class so unlikely that its share is 0 has p = 0 throughout and adds nothing.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    return float(np.exp((p * (log_p - log_marginal)).sum(1).mean()))
