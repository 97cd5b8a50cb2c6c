"""Programs as JAX traces them, read by tests."""

import jax


def equations(jaxpr):
    """Every equation of a jaxpr and of those within it: scans, calls, derivatives."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda a: hasattr(a, "eqns") or hasattr(a, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
