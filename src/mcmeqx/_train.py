"""Training: a pure `init` and `step`, and the loop that feeds them.

A step is one jitted, donated call. Its randomness is `fold_in(state.key, state.step)`,
so a state says all that is needed to go on.
"""

from collections import deque
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key, PyTree

from mcmeqx._denoiser import Denoiser
from mcmeqx._loss import AbstractLoss
from mcmeqx._sharding import check_batch_size, data_mesh, replicate, split_batch
from mcmeqx._types import Example, Scalar


class TrainState(eqx.Module):
    """All that a run needs to go on."""

    step: Int[Array, ""]
    """Steps done."""
    model: Denoiser
    """The model that is trained."""
    ema: Denoiser
    """Its exponential moving average, for evaluation only."""
    opt_state: PyTree
    """The optimiser's state."""
    key: Key[Array, ""]
    """The run's key; step i uses `fold_in(key, i)`."""


Callback = Callable[[int, TrainState, dict[str, float]], None]


class Learner(eqx.Module):
    """A loss and an optimiser, joined to an optax-like pair `init` and `step`."""

    loss: AbstractLoss
    """The loss of one example; a teacher's weights travel in it as arguments."""
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    """Any optax transformation."""
    ema_decay: float = eqx.field(default=0.9999, static=True)
    """Decay of the moving average, reached gradually as `(1 + i) / (10 + i)`."""

    def __check_init__(self):
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay lies in [0, 1), got {self.ema_decay}")

    def init(self, model: Denoiser, *, key: Key[Array, ""]) -> TrainState:
        """The state before the first step; `model` is copied, never shared."""

        def copy() -> Denoiser:
            return jax.tree.map(
                lambda a: jnp.array(a, copy=True) if eqx.is_array(a) else a, model
            )

        opt_state = self.optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        return TrainState(
            jnp.zeros((), jnp.int32), copy(), copy(), opt_state, jax.random.clone(key)
        )

    def step(
        self, state: TrainState, batch: Example
    ) -> tuple[TrainState, dict[str, Scalar]]:
        """The state one update later, and metrics averaged over the batch.

        The old state's buffers are given away: do not use it again.
        """
        return _step((self, batch), state)


@eqx.filter_jit(donate="all-except-first")
def _step(inputs: tuple[Learner, Example], state: TrainState):
    learner, batch = inputs
    key = jax.random.fold_in(state.key, state.step)
    keys = jax.random.split(key, len(batch.x))

    def mean_loss(model: Denoiser):
        def one(example: Example, key: Key[Array, ""]):
            return learner.loss(model, example, step=state.step, key=key)

        losses, metrics = jax.vmap(one)(batch, keys)
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    (_, metrics), grads = eqx.filter_value_and_grad(mean_loss, has_aux=True)(
        state.model
    )
    parameters = eqx.filter(state.model, eqx.is_inexact_array)
    updates, opt_state = learner.optimizer.update(grads, state.opt_state, parameters)
    model = eqx.apply_updates(state.model, updates)
    done = state.step.astype(jnp.float32)
    decay = jnp.minimum(learner.ema_decay, (1 + done) / (10 + done))
    ema = jax.tree.map(
        lambda e, m: e + (1 - decay) * (m - e) if eqx.is_inexact_array(e) else e,
        state.ema,
        model,
    )
    metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, model, ema, opt_state, state.key), metrics


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is not a finite number."""


def fit(
    learner: Learner,
    state: TrainState,
    batches: Iterable[Example],
    *,
    steps: int,
    callbacks: Iterable[Callback] = (),
) -> TrainState:
    """The state after `steps` steps in all, counted from the state's own.

    `batches` starts with the batch of step `state.step`. Each callback gets
    `(step, state, metrics)` for every step, with the metrics of that step and a state
    up to two steps younger, `state.step` says which: the loop runs ahead of what it
    looks at, so the host never waits for the step in flight. A callback must not keep
    the state, whose buffers the next step takes.

    Stops with `NonFiniteLossError`, naming the step, when a loss is not finite, and
    with ValueError when the batches run out or do not split over the devices.
    """
    mesh = data_mesh()
    state = replicate(state, mesh)
    learner = replicate(learner, mesh)
    pending: deque[tuple[int, dict[str, Scalar]]] = deque()
    callbacks = tuple(callbacks)
    iterator = iter(batches)

    def report(step: int, metrics: dict[str, Scalar]) -> None:
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if not np.isfinite(values["loss"]):
            raise NonFiniteLossError(
                f"the loss of step {step} is {values['loss']}; lower the learning "
                "rate, or look at that step's batch. Checkpoints from before it are "
                "untouched."
            )
        for callback in callbacks:
            callback(step, state, values)

    for step in range(int(state.step) + 1, steps + 1):
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(f"the batches ran out before step {step} of {steps}")
        check_batch_size(len(batch.x))
        state, metrics = learner.step(state, split_batch(batch, mesh))
        pending.append((step, metrics))
        if len(pending) > 2:
            report(*pending.popleft())
    while pending:
        report(*pending.popleft())
    return state
