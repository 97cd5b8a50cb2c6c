"""Closed forms of a network that says v = c z, for the peers' tests."""

import numpy as np


def turn(v, a, b):
    """What DDIM from time a to b makes of z, over z."""
    angle = 0.5 * np.pi * (a - b)
    return np.cos(angle) - v * np.sin(angle)


def target(c, taught, n):
    """The target's v over z at n / 256: a teacher's `taught`, eight segments of c."""
    t, s = n / 256, (n - 1) / 256
    r = np.floor(s * 8) / 8
    # By the teacher from t to s, by the student on to the segment's end.
    whole, angle = turn(taught, t, s) * turn(c, s, r), 0.5 * np.pi * (t - r)
    return (np.cos(angle) - whole) / np.sin(angle)
