"""Training: a pure `init` and `step`, one jitted, donated call.

Its randomness is `fold_in(state.key, state.step)`, so a state says all that is needed
to go on. A step whose loss or gradient is not finite changes no parameter: it is
counted, and the next one goes on from the same place.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, PyTree

from mcmeqx._denoiser import Denoiser
from mcmeqx._donating import donating
from mcmeqx._flops import count_flops
from mcmeqx._loss import AbstractLoss, Ratio
from mcmeqx._sharding import is_placed, keep_placed, over_rows, place, shardings
from mcmeqx._types import Example, Scalar


class TrainState(eqx.Module):
    """All that a run needs to go on."""

    step: Int[Array, ""]
    """Steps done, skipped ones too."""
    model: Denoiser
    """The model that is trained."""
    ema: Denoiser
    """Its exponential moving average, for evaluation only; float32 at least."""
    opt_state: PyTree
    """The optimiser's state."""
    key: Key[Array, ""]
    """The run's key; step i uses `fold_in(key, i)`."""
    skipped: Int[Array, ""]
    """Steps so far that changed nothing, for their loss or gradient was not finite."""


Metrics = dict[str, Any]
"""Scalars by name, and vectors with one entry for each segment."""


class Learner(eqx.Module):
    """A loss and an optimiser, joined to an optax-like pair `init` and `step`."""

    loss: AbstractLoss
    """The loss of one example; a teacher's weights travel in it as arguments."""
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    """Any optax transformation that needs gradients, its state and parameters alone."""
    ema_decay: float = eqx.field(default=0.9999, static=True)
    """Decay of the moving average, reached gradually as `(1 + i) / (10 + i)`."""
    accumulate: int = eqx.field(default=1, static=True)
    """Parts of a batch that follow one another to save memory; the gradient is that
    of the whole batch."""

    def __check_init__(self):
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay lies in [0, 1), got {self.ema_decay}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate is 1 or more, got {self.accumulate}")

    def init(
        self, model: Denoiser, *, key: Key[Array, ""], mesh: Mesh | None = None
    ) -> TrainState:
        """The state before the first step; `model` is copied, never shared.

        With a `mesh` it is made where `place` would put it, by an `optimizer.init` that
        is traced: beside `model`, no device ever holds more than its share, where
        otherwise the first one holds all.
        """
        if mesh is None:
            return self._fresh(model, key)
        given, fixed = eqx.partition(
            place((model, key), mesh, copy=False), eqx.is_array
        )

        def fresh(given: Any) -> TrainState:
            return self._fresh(*eqx.combine(given, fixed))

        shapes = eqx.filter_eval_shape(fresh, given)
        where = shardings(shapes, mesh)
        make = jax.jit(lambda given: _arrays(fresh(given)), out_shardings=where)
        return eqx.combine(make(given), shapes)

    def _fresh(self, model: Denoiser, key: Key[Array, ""]) -> TrainState:
        own, ema = (jax.tree.map(partial(_copy, wide=w), model) for w in (False, True))
        parameters = jax.tree.map(_copy, eqx.filter(model, eqx.is_inexact_array))
        opt_state = self.optimizer.init(parameters)
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return TrainState(step, own, ema, opt_state, jax.random.clone(key), skipped)

    def step(self, state: TrainState, batch: Example) -> tuple[TrainState, Metrics]:
        """The state one update later, and metrics averaged over the batch.

        The old state's buffers are given away: do not use it again. Raises ValueError
        for a batch that does not split into `accumulate` parts.
        """
        return _step((self, batch), state)

    def compiled(self, state: TrainState, batch: Example) -> Any:
        """A step's program compiled ahead of time, for its memory and cost analysis.

        A `jax.stages.Compiled`. Arrays, in the learner too, may be shapes with their
        places: nothing is allocated.
        """
        given, fixed = eqx.partition(((self, batch), state), is_placed)

        def step(inputs: Any, state: Any) -> Any:
            full = eqx.combine((inputs, state), fixed)
            return _arrays(_update(*full))

        return jax.jit(step, donate_argnums=1).lower(*given).compile()

    def flops(self, state: TrainState, batch: Example) -> int:
        """Operations of loss and gradient on this batch, see `count_flops`."""
        return count_flops(
            _means, dataclasses.replace(self, accumulate=1), state, batch
        )

    def examine(self, state: TrainState, batch: Example) -> tuple[Array, Array]:
        """Loss and gradient norm of each example, as the next `step` would see them."""
        return _examine(self.loss, state, batch)


def _arrays(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_array)


def _copy(leaf: Any, *, wide: bool = False) -> Any:
    """A copy of an array, in float32 at least if `wide`; other leaves as they are."""
    if not eqx.is_array(leaf):
        return leaf
    dtype = leaf.dtype
    if wide and eqx.is_inexact_array(leaf):
        dtype = jnp.promote_types(dtype, jnp.float32)
    # A dtype that is not named may be a weak one, and change in the first step.
    return jnp.array(leaf, dtype, copy=True)


class _Means(NamedTuple):
    """Averages over a batch, or over a part of one."""

    loss: Scalar
    metrics: Metrics
    grads: Any


def _keys(state: TrainState, batch: Example) -> Key[Array, " batch"]:
    return jax.random.split(
        jax.random.fold_in(state.key, state.step), jnp.shape(batch.x)[0]
    )


@eqx.filter_jit
def _examine(loss: AbstractLoss, state: TrainState, batch: Example):
    def one(inputs: tuple[Example, Key[Array, ""]]):
        def of(model: Denoiser):
            return loss(model, inputs[0], step=state.step, key=inputs[1])[0]

        value, grads = eqx.filter_value_and_grad(of)(state.model)
        return value, optax.tree.norm(grads)

    return jax.lax.map(one, (batch, _keys(state, batch)))


def _means(learner: Learner, state: TrainState, batch: Example) -> _Means:
    """The averages over the batch, taken a part at a time if it comes in parts."""

    def mean_loss(model: Denoiser, batch: Example, keys):
        def one(example: Example, key: Key[Array, ""]):
            return learner.loss(model, example, step=state.step, key=key)

        losses, metrics = over_rows(one)(batch, keys)
        return jnp.mean(losses), jax.tree.map(lambda m: jnp.mean(m, 0), metrics)

    def part(batch: Example, keys: Key[Array, " part"]) -> _Means:
        gradient = eqx.filter_value_and_grad(mean_loss, has_aux=True)
        (loss, metrics), grads = gradient(state.model, batch, keys)
        return _Means(loss, metrics, keep_placed(grads))

    keys, parts = _keys(state, batch), learner.accumulate
    if parts == 1:
        return part(batch, keys)
    if len(keys) % parts:
        raise ValueError(f"{len(keys)} rows do not split into accumulate={parts} parts")
    # Each part takes every parts-th row, so that no device waits for another.
    inputs = jax.tree.map(
        lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), (batch, keys)
    )
    first = jax.tree.map(lambda a: a[0], inputs)
    total = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), eqx.filter_eval_shape(part, *first)
    )

    def add(total: _Means, inputs: Any) -> tuple[_Means, None]:
        return jax.tree.map(jnp.add, total, part(*inputs)), None

    total, _ = jax.lax.scan(add, total, inputs)
    return jax.tree.map(lambda a: a / parts, total)


def _update(inputs: tuple[Learner, Example], state: TrainState):
    learner, batch = inputs
    means = _means(learner, state, batch)
    grad_norm = optax.tree.norm(means.grads)
    finite = jnp.isfinite(means.loss) & jnp.isfinite(grad_norm)
    parameters = eqx.filter(state.model, eqx.is_inexact_array)
    updates, opt_state = learner.optimizer.update(
        means.grads, state.opt_state, parameters
    )
    # In the parameters' dtype, as Equinox's own would not be.
    model = eqx.combine(optax.apply_updates(parameters, updates), state.model)
    done = state.step.astype(jnp.float32)
    decay = jnp.minimum(learner.ema_decay, (1 + done) / (10 + done))
    ema = jax.tree.map(
        lambda e, m: e + (1 - decay) * (m - e) if eqx.is_inexact_array(e) else e,
        state.ema,
        model,
    )
    old = (state.model, state.ema, state.opt_state)
    model, ema, opt_state = keep_placed(_choose(finite, (model, ema, opt_state), old))
    skipped = state.skipped + (~finite).astype(jnp.int32)
    metrics = jax.tree.map(
        lambda m: m.over() if isinstance(m, Ratio) else m,
        means.metrics,
        is_leaf=lambda m: isinstance(m, Ratio),
    )
    metrics |= {"loss": means.loss, "grad_norm": grad_norm, "skipped": skipped}
    state = TrainState(state.step + 1, model, ema, opt_state, state.key, skipped)
    return state, metrics


_step = donating(_update)


def _choose(first: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """`yes` where `first`, else `no`, array by array."""
    return jax.tree.map(
        lambda a, b: jnp.where(first, a, b) if eqx.is_array(a) else a, yes, no
    )
