"""The segments of multistep consistency: training times, sampling grid, and the target.

[0, 1] is cut into S = `student_steps` equal segments. N teacher steps give
`n_seg = max(1, round(N / S))` of them to each segment and `T = S n_seg` in all, so that
the grid tiles [0, 1]. With integers `k = segment n_seg` and n in 1..n_seg,

    r = k / T        s = (k + n - 1) / T        t = (k + n) / T

and s equals r bit for bit at n = 1 (Heek et al. 2024, Alg. 1).

**Two DDIM steps are one.** In `u = z / sigma` and `y = alpha / sigma` DDIM is Euler's
rule, `u_s = u_t + (y_s - y_t) x`. A step t -> s told `x_first` and a step s -> r told
`x_second` therefore land where one step t -> r lands that is told their mean, weighted
by the lengths in y. In angles the weights are

    sigma_r sin(theta_t - theta_s)  :  sigma_t sin(theta_s - theta_r)

which is the training target `invDDIM(DDIM(...))` without its cancellation.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from mcmeqx._sampler import uniform_grid
from mcmeqx._schedule import AbstractNoiseSchedule
from mcmeqx._types import Sample, Scalar, ScalarLike


class Times(NamedTuple):
    """One training step's times, r <= s < t, and its lengths from integers."""

    t: Scalar
    """Where the noisy example lies, in (0, 1]."""
    s: Scalar
    """One teacher step earlier, or several."""
    r: Scalar
    """The end of the segment that holds t."""
    t_to_s: Scalar
    """`t - s`, to rounding."""
    s_to_r: Scalar
    """`s - r`, to rounding; exactly 0 when s is r."""


class Segments(eqx.Module):
    """The cut of [0, 1] into `student_steps` equal segments."""

    student_steps: int = eqx.field(static=True)
    """Network evaluations per sample, S >= 1."""

    def __check_init__(self):
        if self.student_steps < 1 or self.student_steps != int(self.student_steps):
            raise ValueError(
                f"student_steps is the number of segments, 1 or more, "
                f"got {self.student_steps}"
            )

    def grid(self) -> np.ndarray:
        """The S + 1 sampling times, from 1 down to 0 (Alg. 2)."""
        return uniform_grid(self.student_steps)

    def per_segment(self, teacher_steps: ScalarLike) -> Int[Array, ""]:
        """Teacher steps in one segment: `max(1, round(teacher_steps / S))`."""
        n_seg = jnp.round(jnp.asarray(teacher_steps, jnp.float32) / self.student_steps)
        return jnp.maximum(n_seg, 1).astype(jnp.int32)

    def draw(
        self, teacher_steps: ScalarLike, *, key: Key[Array, ""], back: int = 1
    ) -> Times:
        """Times of a uniform segment and a uniform teacher step in it, float32.

        s lies `back` teacher steps before t, or at r where these are fewer.
        """
        segment_key, step_key = jax.random.split(key)
        n_seg = self.per_segment(teacher_steps)
        segment = jax.random.randint(
            segment_key, (), 0, self.student_steps, dtype=jnp.int32
        )
        n = jax.random.randint(step_key, (), 1, n_seg + 1, dtype=jnp.int32)
        return self.times(n_seg, segment, n, back)

    def times(
        self,
        n_seg: Int[Array, ""],
        segment: Int[Array, ""],
        n: Int[Array, ""],
        back: int = 1,
    ) -> Times:
        """The times of teacher step `n` in 1..n_seg of `segment` in 0..S-1."""
        k, rest = segment * n_seg, jnp.maximum(n - back, 0)
        integers = jnp.stack([k + n, k + rest, k, n - rest, rest])
        total = (self.student_steps * n_seg).astype(jnp.float32)
        return Times(*(integers.astype(jnp.float32) / total))


def merge_steps(
    schedule: AbstractNoiseSchedule, x_first: Sample, x_second: Sample, times: Times
) -> Sample:
    """The x whose DDIM step t -> r is t -> s by `x_first`, then s -> r by `x_second`.

    A mean with weights in [0, 1], exactly `x_first` when s is r.
    """
    first = schedule.sigma(times.r) * schedule.sin_gap(times.t, times.t_to_s)
    second = schedule.sigma(times.t) * schedule.sin_gap(times.s, times.s_to_r)
    weight = first / (first + second)
    return weight * x_first + (second / (first + second)) * x_second
