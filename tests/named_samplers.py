"""The samplers of the benchmarks' tables, by the names that rows give them."""

import mcmeqx as mc


def samplers_of(table: mc.MeasuredVariance) -> dict[str, mc.AbstractSampler]:
    """Each sampler, those of a measured variance with that of `table`."""
    return {
        "DDIM": mc.DDIM(),
        "Heun": mc.Heun(),
        "DPM-Solver++(2M)": mc.DPMSolver(),
        "aDDIM, analytic x_var": mc.ADDIM(),
        "aDDIM, measured x_var": mc.ADDIM(table),
        "aDDIM, norm-balanced": mc.ADDIM(table, balanced=True),
        "aDDIM, last step as printed": mc.ADDIM(literal=True),
    }
