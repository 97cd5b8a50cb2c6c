"""This library as a contestant: its learner's step and its sampler."""

import jax
from _work import build
from _worker import BATCH_SIZE, STEPS, Contestant, serve

import mcmeqx as mc


def contestant() -> Contestant:
    """The jobs of `versus.py` by the library's own learner and sampler."""
    names = ("teacher", "cd", *(f"sample{n}" for n in STEPS))
    made = {}

    def run(name: str) -> None:
        if name not in made:
            made[name] = build(mc.nets.unet32, name, BATCH_SIZE, "float32", real=True)
        jax.block_until_ready(made[name].run())

    jobs = {name: lambda name=name: run(name) for name in names}
    parameters = mc.nets.count_parameters(mc.nets.unet32)
    device = jax.devices()[0].device_kind
    return Contestant(parameters, f"jax {jax.__version__}", device, jobs)


if __name__ == "__main__":
    serve(contestant())
