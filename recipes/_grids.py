"""Samples of the average at intervals, so that one sees a run learn."""

from pathlib import Path

import jax
import numpy as np
from _machine import first
from _pictures import draw
from jax.sharding import Mesh

import mcmeqx as mc

_CLASSES = 9
_ROWS = 2


class Grids:
    """A `fit` callback: a picture `<step>.png` in `folder` every `every` steps.

    Noise and classes are the same in all of them.
    """

    def __init__(
        self,
        folder: Path,
        images: mc.data.Images,
        grid: np.ndarray,
        guidance: float | None,
        *,
        every: int,
        mesh: Mesh,
    ):
        self._folder, self._every, self._mesh = folder, every, mesh
        self._grid, self._guidance = grid, guidance
        count = min(_CLASSES, len(images.classes))
        # Spread over all classes, where there are more than fit.
        classes = np.linspace(0, len(images.classes) - 1, count).astype(np.int32)
        self._labels = np.tile(classes, _ROWS)
        rng = np.random.default_rng(0)
        self._noise = rng.standard_normal(
            (len(self._labels), *images.shape), np.float32
        )

    def __call__(
        self, step: int, state: mc.TrainState, metrics: dict[str, float]
    ) -> None:
        """Draw if the turn has come; every process must call it."""
        if step % self._every:
            return
        model = mc.gathered(state.ema, self._mesh)
        if first():
            x = mc.generate(
                model,
                mc.DDIM(),
                self._grid,
                self._noise,
                self._labels,
                guidance=self._guidance,
                key=jax.random.key(0),
            )
            parts = enumerate(np.split(x, _ROWS), 1)
            rows = {f"noise {i}": part for i, part in parts}
            title = f"{int(state.step)} steps, EMA, {len(self._grid) - 1} DDIM steps"
            draw(rows, self._folder / f"{step:08d}.png", title)
