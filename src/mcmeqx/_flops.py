"""How many floating-point operations a function takes, and how many a device can do.

Only matrix products and convolutions count, two operations for each multiply-add; the
body of a scan counts as often as it runs, which XLA's own cost analysis does not do.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations of one call of `function`; arguments may be arrays or their shapes.

    A while loop, as of an adaptive solver, counts as one pass, and a branch as the
    longest of its kind.
    """
    jaxpr, _, _ = eqx.filter_make_jaxpr(function)(*args)
    return _of_jaxpr(jaxpr.jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_axis = params["dimension_numbers"].rhs_spec[0]
        taps = math.prod(kernel) // kernel[out_axis]
        outputs = math.prod(equation.outvars[0].aval.shape)
        return 2 * outputs * taps // math.prod(params["lhs_dilation"])
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def matmul_peak(dtype: Any = jnp.float32) -> float:
    """Operations a second of one device in a large matrix product: a measured peak.

    The best of several rounds, which take about a second in all.
    """
    side = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = math.inf
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready([product(a, a) for _ in range(4)])
        best = min(best, (time.perf_counter() - begun) / 4)
    return 2 * side**3 / best
