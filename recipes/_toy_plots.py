"""The two pictures of the toy recipe: trajectories in 1-D, and samples of the ring."""

from itertools import pairwise
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _runs import whole
from _toy_data import Mixture
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from mcmeqx import Denoiser, ddim, uniform_grid

_LINE = "#1d4e89"
_DATA = "#c1440e"
_POINTS = 128


def trajectories(
    model: Denoiser, steps: int, starts: Float[np.ndarray, "n 1"]
) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, "times n"]]:
    """Times from 1 to 0, and z at them: DDIM's curves between its `steps` evaluations.

    Inside one step x is fixed and z follows `ddim` to every time on the way.
    """
    inner = max(1, _POINTS // steps)
    grid = uniform_grid(steps).astype(np.float32)
    z, times, path = np.asarray(starts), [grid[:1]], [np.asarray(starts)[None, :, 0]]

    @eqx.filter_jit
    def follow(model: Denoiser, z: Array, t: Array, ts: Array) -> Array:
        x = jax.vmap(model, (0, None))(z, t)
        return jax.vmap(lambda s: ddim(model.schedule, z, x, t, s))(ts)

    for t, s in pairwise(grid):
        ts = np.linspace(t, s, inner + 1, dtype=np.float32)[1:]
        curve = np.asarray(
            follow(model, jnp.asarray(z), jnp.asarray(t), jnp.asarray(ts))
        )
        z = curve[-1]
        times.append(ts)
        path.append(curve[:, :, 0])
    return np.concatenate(times), np.concatenate(path)


def density(
    mixture: Mixture, model: Denoiser, z: np.ndarray, t: np.ndarray
) -> Float[np.ndarray, "z t"]:
    """The density of z_t of a 1-D mixture at all pairs of the two axes."""
    alpha = np.asarray(jax.vmap(model.schedule.alpha)(jnp.asarray(t)))
    sigma = np.asarray(jax.vmap(model.schedule.sigma)(jnp.asarray(t)))
    u = (alpha * mixture.std) ** 2 + sigma**2
    means = np.asarray(mixture.means)[:, 0]
    square = (z[:, None, None] - alpha[None, :, None] * means) ** 2 / u[:, None]
    return (np.exp(-square / 2) / np.sqrt(2 * np.pi * u[:, None])).mean(-1)


def plot_trajectories(
    path: Path, mixture: Mixture, models: dict[str, tuple[Denoiser, int]]
) -> None:
    """One panel for each model and its steps, over the density of z_t."""
    quantiles = (np.arange(30) + 0.5) / 30
    starts = jax.scipy.stats.norm.ppf(jnp.asarray(quantiles, jnp.float32))[:, None]
    figure = Figure(figsize=(3.1 * len(models), 3.5), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    t, z = np.linspace(0, 1, 201, dtype=np.float32), np.linspace(-2.6, 2.6, 301)
    for axis, (title, (model, steps)) in zip(axes, models.items(), strict=True):
        shade = np.sqrt(density(mixture, model, z, t))
        axis.pcolormesh(t, z, shade, cmap="Oranges", vmax=1.4, rasterized=True)
        times, curves = trajectories(model, steps, np.asarray(starts))
        axis.plot(times, curves, color=_LINE, lw=0.8, alpha=0.85)
        for border in uniform_grid(steps)[1:-1] if steps <= 8 else ():
            axis.axvline(border, color="black", lw=0.6, ls=":")
        axis.set(title=title, xlabel="t", xlim=(1, 0), ylim=(-2.6, 2.6))
        axis.set_xticks([1, 0.75, 0.5, 0.25, 0], ["1\nnoise", "", "0.5", "", "0\ndata"])
    axes[0].set_ylabel("z")
    with whole(path) as part:
        figure.savefig(part, dpi=150)


def plot_ring(
    path: Path, data: np.ndarray, rows: dict[str, dict[int, np.ndarray]]
) -> None:
    """Scatter plots: one row for each method, one column for each number of steps."""
    columns = max(len(row) for row in rows.values())
    size = (2.1 * columns, 2.25 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    for line, (method, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(method)
        for axis, (steps, points) in zip(line, row.items(), strict=False):
            axis.scatter(*data[:2000].T, s=2, color=_DATA, alpha=0.25, lw=0)
            axis.scatter(*points[:2000].T, s=2, color=_LINE, alpha=0.6, lw=0)
            axis.set(title=f"{steps} step" + "s" * (steps > 1), aspect="equal")
            axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[])
        for axis in line[len(row) :]:
            axis.remove()
    with whole(path) as part:
        figure.savefig(part, dpi=150)
