"""How a teacher steps: aDDIM, DDIM, the midpoint rule, or diffrax along its flow."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import diffrax
from _runs import at_least

import mcmeqx as mc

Kind = Literal[
    "addim", "ddim", "midpoint", "euler", "heun", "ralston", "dopri5", "tsit5"
]
_SINGLE = {
    "addim": mc.DistillationTeacher,
    "ddim": partial(mc.DistillationTeacher, x_var_fraction=0.0),
    "midpoint": mc.MidpointTeacher,
}
_SOLVERS = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "ralston": diffrax.Ralston,
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
}


@dataclass(frozen=True)
class TeacherSolver:
    """How the teacher steps from t to s = t - 1/T."""

    kind: Kind | None = None
    """The paper's aDDIM; DDIM; the midpoint rule, of the second order in two calls; or
    a Runge-Kutta method of diffrax. None is midpoint in the demo, addim on ImageNet."""
    substeps: int = 1
    """Equal steps of a Runge-Kutta method from t to s."""
    tolerance: float | None = None
    """Adaptive steps of a Runge-Kutta method, with this error, in place of substeps."""

    def __post_init__(self) -> None:
        """ValueError for options that the kind does not have."""
        at_least(1, substeps=self.substeps)
        single, kind = (None, *_SINGLE), self.kind or "the default"
        if self.kind in single and self.substeps > 1:
            raise ValueError(
                f"substeps {self.substeps} is for Runge-Kutta methods, {kind} "
                "takes one step: drop it, or take --teacher-solver.kind euler"
            )
        if self.kind in (*single, "euler") and self.tolerance is not None:
            raise ValueError(
                f"tolerance {self.tolerance} is for methods that estimate their error, "
                f"{kind} does not: drop it, or take --teacher-solver.kind heun"
            )
        if self.tolerance is not None and self.substeps > 1:
            raise ValueError(
                f"substeps {self.substeps} are equal steps and tolerance "
                f"{self.tolerance} is for adaptive ones: drop either"
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance is positive, got {self.tolerance}")

    def build(
        self, teacher: mc.Denoiser, guidance: mc.Guidance | None = None
    ) -> mc.AbstractTeacher:
        """The teacher object of a trained denoiser, once there is a kind."""
        assert self.kind is not None
        if self.kind in _SINGLE:
            return _SINGLE[self.kind](teacher, guidance=guidance)
        if self.tolerance is None:
            steps = mc.fixed_steps(self.substeps)
        else:
            steps = mc.adaptive_steps(self.tolerance)
        return mc.ODETeacher(teacher, _SOLVERS[self.kind](), steps, guidance)
