"""The multistep consistency loss (Heek et al. 2024, Algorithm 1), for one example."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mcmeqx._denoiser import Model
from mcmeqx._distance import PseudoHuber, Weighting, snr_plus_one
from mcmeqx._loss import AbstractLoss, Ratio
from mcmeqx._segment import Segments, Times, merge_steps
from mcmeqx._step import ddim
from mcmeqx._teacher import AbstractTeacher, DataTeacher
from mcmeqx._types import Example, Sample, Scalar, ScalarLike

TeacherSteps = Callable[[ScalarLike], ScalarLike]

_LOGGED_SEGMENTS = 16


def annealed_steps(
    start: float = 64.0, stop: float = 1280.0, over: int = 100_000
) -> TeacherSteps:
    """`step -> N`, exponential from `start` to `stop` in `over` steps, then constant.

    The defaults are the paper's for ImageNet (sec. 3). N is traced: no step recompiles.
    Raises ValueError unless `1 <= start <= stop`, finite, and `over >= 1`.
    """
    if not 1 <= start <= stop < math.inf or over < 1:
        raise ValueError(
            "teacher steps anneal from start >= 1 up to stop over at least one "
            f"training step, got start={start}, stop={stop}, over={over}"
        )

    def teacher_steps(step: ScalarLike) -> Scalar:
        done = jnp.clip(jnp.asarray(step, jnp.float32) / over, 0.0, 1.0)
        return start * (stop / start) ** done

    return teacher_steps


def check_guidance_range(scales: tuple[float, float]) -> None:
    """ValueError unless a student can learn the guidance scales between the two."""
    low, high = scales
    if not 0.0 <= low < high < math.inf:
        raise ValueError(f"guidance_range is 0 <= low < high, finite, got {scales}")


def _apart(model: Model) -> Model:
    """`model` with vectors that XLA takes for others than those of `model`.

    Two calls of one network else share the maps that its biases are repeated to, which
    are then written out on a CPU: 2% of a step.
    """
    vectors, rest = eqx.partition(model, lambda a: eqx.is_array(a) and a.ndim == 1)
    vectors = jax.lax.optimization_barrier(vectors)
    return eqx.combine(vectors, rest)


class MultistepConsistencyLoss(AbstractLoss):
    """Algorithm 1: the student agrees with itself one teacher step closer to data."""

    teacher: AbstractTeacher
    """`DistillationTeacher` for CD, `DataTeacher` for CT."""
    segments: Segments
    """The student's segments."""
    teacher_steps: TeacherSteps = eqx.field(default=annealed_steps(), static=True)
    """N as a function of the training step."""
    weighting: Weighting = eqx.field(default=snr_plus_one, static=True)
    """Weight as a function of logsnr."""
    distance: PseudoHuber = PseudoHuber()
    """Distance between target and estimate of x."""
    guidance_range: tuple[float, float] | None = eqx.field(default=None, static=True)
    """Scales g that the student learns, uniform, from a teacher that has a guidance;
    None for a student that takes none."""
    order: int = eqx.field(default=1, static=True)
    """Of the target as a formula for steps: over a length h it is off by h^(order+1).
    1 in the paper. 2, for a `DataTeacher`, asks the student two steps back as well, and
    adds a third of the difference: the backward differentiation formula BDF2."""

    def __check_init__(self):
        teacher, segments = type(self.teacher), type(self.segments)
        if not issubclass(teacher, AbstractTeacher) or segments is not Segments:
            raise ValueError(
                "a loss takes a teacher, as DistillationTeacher(model), and Segments: "
                f"got a {teacher.__name__} and a {segments.__name__}"
            )
        if self.order not in (1, 2):
            raise ValueError(f"order is 1 or 2, got {self.order}")
        if self.order == 2 and not isinstance(self.teacher, DataTeacher):
            raise ValueError(
                f"order 2 is for a DataTeacher, got a {type(self.teacher).__name__}, "
                "whose x is that of one step alone: take order 1, and MidpointTeacher "
                "for distillation of the second order"
            )
        if self.guidance_range is None:
            return
        check_guidance_range(self.guidance_range)
        if getattr(self.teacher, "guidance", True) is None:
            raise ValueError(
                f"guidance_range {self.guidance_range} asks a guidance scale of a "
                f"{type(self.teacher).__name__} without guidance: give it a Guidance"
            )

    def __call__(
        self,
        model: Model,
        example: Example,
        *,
        step: ScalarLike,
        key: Key[Array, ""],
    ) -> tuple[Scalar, dict[str, Any]]:
        """The weighted distance at one random teacher step of one random segment.

        `teacher_evaluations` among the metrics counts the example's own calls of the
        teacher; examples solved together wait for the one that needs most.
        """
        time_key, noise_key, dropout_key, scale_key = jax.random.split(key, 4)
        if self.guidance_range is not None:
            low, high = self.guidance_range
            scale = jax.random.uniform(scale_key, (), jnp.float32, low, high)
            example = example._replace(guidance=scale)
        x, schedule = example.x, model.schedule
        steps = self.teacher_steps(step)
        times = self.segments.draw(steps, key=time_key)

        def student(model: Model, z: Sample, t: Scalar) -> Sample:
            label, scale = example.label, example.guidance
            return model(z, t, label, guidance=scale, key=dropout_key)

        z_t = schedule.diffuse(
            x, jax.random.normal(noise_key, x.shape, x.dtype), times.t
        )
        x_teacher, evaluations = self.teacher.step(
            schedule, example, z_t, times.t, times.s
        )

        def target_by(times: Times) -> Sample:
            z_s = ddim(schedule, z_t, x_teacher, times.t, times.s)
            x_ref = student(_apart(model), z_s, times.s)
            return merge_steps(schedule, x_teacher, x_ref, times)

        target = target_by(times)
        if self.order == 2:
            far = target_by(self.segments.draw(steps, key=time_key, back=2))
            target = target + (target - far) / 3
        target = jax.lax.stop_gradient(target)
        distance = self.distance(target - student(model, z_t, times.t))
        loss = self.weighting(jnp.asarray(schedule.logsnr(times.t))) * distance
        metrics = {
            "loss": loss,
            "x_distance": distance,
            "teacher_steps": jnp.asarray(steps),
            "teacher_evaluations": jnp.asarray(evaluations, jnp.float32),
        }
        target_norm = jnp.sqrt(jnp.mean(target**2))
        return loss, metrics | self._by_segment(
            times.r, segment_loss=loss, segment_target_norm=target_norm
        )

    def _by_segment(self, r: Scalar, **values: Scalar) -> dict[str, Ratio]:
        """The metrics apart for each segment, if there are some, not hundreds.

        A target's norm is its root mean square.
        """
        count = self.segments.student_steps
        if not 1 < count <= _LOGGED_SEGMENTS:
            return {}
        index = jnp.rint(r * count).astype(jnp.int32)
        below = jax.nn.one_hot(index, count, dtype=jnp.float32)
        # Chosen, not multiplied: what is not finite stays in its own segment.
        return {
            name: Ratio(jnp.where(below > 0, value, jnp.zeros_like(value)), below)
            for name, value in values.items()
        }
