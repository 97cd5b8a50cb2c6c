"""The jitted, batched edge of sampling: samples, and a table of a model's errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mcmeqx._batched import batched
from mcmeqx._checks import (
    check_guidance,
    check_labels,
    check_noise,
    check_times,
    label_range,
)
from mcmeqx._denoiser import Model
from mcmeqx._guidance import Guided
from mcmeqx._sampler import AbstractSampler
from mcmeqx._step import MeasuredVariance
from mcmeqx._types import Example

_PADDED = 64


def padded(ts: np.ndarray) -> tuple[np.ndarray, Int[Array, ""]]:
    """`ts` at a length that many grids share, and the number of its own steps.

    That length is of 64 steps, or 256, 1024 and so on.
    """
    steps, length = len(ts) - 1, _PADDED
    while length < steps:
        length *= 4
    return np.pad(ts, (0, length - steps), mode="edge"), jnp.int32(steps)


def sample_rows(model, sampler, ts, noise, labels, guidance, keys, steps=None):
    """A sample for each row of `noise`, `labels` and `keys`; to be jitted."""
    ts = jnp.asarray(ts, noise.dtype)

    def one(z, label, key):
        def denoise(z, t):
            return model(z, t, label, guidance=guidance)

        return sampler.run(denoise, model.schedule, z, ts, key=key, steps=steps)

    return jax.vmap(one)(noise, labels, keys)


@eqx.filter_jit
def _sample_batch(constants, rows):
    model, sampler, (ts, steps), guidance = constants
    noise, labels, keys = rows
    return sample_rows(model, sampler, ts, noise, labels, guidance, keys, steps)


def generate(
    model: Model,
    sampler: AbstractSampler,
    ts: np.ndarray,
    noise: Float[Array, "n *shape"] | Float[np.ndarray, "n *shape"],
    labels: Int[Array, " labels"] | Int[np.ndarray, " labels"] | None = None,
    *,
    guidance: float | None = None,
    key: Key[Array, ""],
    batch_size: int = 64,
    describe: str | None = None,
) -> Float[np.ndarray, "n *shape"]:
    """Samples in the shape of `noise`, one for each of its rows, on the host.

    `ts` are the times from that of `noise` to that of the samples: `uniform_grid(8)`.
    Row i depends on `noise[i]`, `labels[i]`, `key` and i alone, so that two models
    given the same rows can be compared picture by picture and the batch size changes
    nothing but speed. Batches are split over all devices of this process, `batch_size`
    being rounded up to a multiple of their number. One executable serves every batch
    and every number of steps up to 64. `guidance` is the scale for a student that takes
    one, or of a `Guided` model in place of its own; and traced. `describe` names a
    progress bar.

    Raises ValueError if `ts` has no step, leaves [0, 1] or does not fall (but see
    `ProbabilityFlow`), `noise` is empty or below float32, `labels` differ in number or
    are no classes of the model or of what guides it (of networks of the library),
    `batch_size` is not positive or `guidance` negative.
    """
    if not hasattr(model, "schedule") or not isinstance(sampler, AbstractSampler):
        raise ValueError(
            "generate takes a model, of a TrainState its ema, and a sampler, as "
            f"DDIM(), got {type(model).__name__} and {sampler}"
        )
    n = len(noise)
    if n < 1 or batch_size < 1:
        raise ValueError(
            f"generate needs at least one row of noise and a batch_size of 1 or more, "
            f"got {n} rows and batch_size {batch_size}"
        )
    check_times(ts, rising=sampler.rising)
    check_guidance(guidance)
    check_noise(noise)
    labels = np.asarray(labels) if isinstance(labels, list | tuple) else labels
    check_labels(labels, n, label_range(model))
    scale = None if guidance is None else jnp.float32(guidance)
    ts = np.asarray(ts, np.float32 if noise.dtype == np.float32 else np.float64)
    return batched(
        _sample_batch,
        (model, sampler, padded(ts), scale),
        (noise, labels, jax.random.split(key, n)),
        batch_size=min(batch_size, n),
        describe=describe,
    )


@eqx.filter_jit
def _mean_square_error(model, batch, t, key):
    def one(example, key):
        eps = jax.random.normal(key, example.x.shape, example.x.dtype)
        z = model.schedule.diffuse(example.x, eps, t)
        return jnp.mean((example.x - model(z, t, example.label)) ** 2)

    return jnp.mean(jax.vmap(one)(batch, jax.random.split(key, len(batch.x))))


def measure_x_var(
    model: Model,
    batch: Example,
    ts: np.ndarray,
    *,
    eta: float = 0.75,
    key: Key[Array, ""],
) -> MeasuredVariance:
    """aDDIM's table of x_var at the rising times `ts`: the paper's measured choice.

    Each entry is `eta` times the mean of `|x - x_hat(z_t)|^2 / d` over the batch (Heek
    et al. 2024, Alg. 3; eta = 0.75 is theirs). The errors are those of the unguided
    model (app. A.1): ValueError for one that is `Guided`.
    """
    if isinstance(model, Guided):
        raise ValueError(
            "measure_x_var is for the model without guidance: give the Guided's .model"
        )
    check_labels(batch.label, len(batch.x), label_range(model))
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is a share of the squared error, in [0, 1], got {eta}")
    rise = len(ts) and np.all(np.diff(ts) > 0.0)
    if not (rise and np.min(ts) >= 0.0 and np.max(ts) <= 1.0):
        raise ValueError(
            f"ts holds rising times in [0, 1], as uniform_grid(8)[::-1], got {ts}"
        )
    keys = jax.random.split(key, len(ts))
    times = [jnp.asarray(t, batch.x.dtype) for t in ts]
    errors = [
        _mean_square_error(model, batch, t, k) for t, k in zip(times, keys, strict=True)
    ]
    return MeasuredVariance(jnp.stack(times), eta * jnp.stack(errors))
