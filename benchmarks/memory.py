"""Bytes of a training step on a device, from its program; nothing is allocated.

    python benchmarks/memory.py --network imagenet64_large --devices 8 --fsdp 8
    python benchmarks/memory.py --tpu v5e:2x4 --batch-size 64
    python benchmarks/memory.py --gpu --devices 1 --fsdp 1 --batch-size 64 --no-remat

The step is that of consistency distillation: student, average, Adam's moments and
teacher, with gradients. CPU devices stand in for accelerators, whose compilers pack
temporary memory otherwise; arguments are the same everywhere. `--tpu` asks the compiler
for TPUs itself, which `pip install "jax[tpu]"` brings and which needs no TPU; `--gpu`
that for an H100, of `pip install "jax[cuda12]"`. What collectives return counts as
collected.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from _collectives import collected
from _tables import appended
from _targets import H100

COLUMNS: tuple[str, ...] = (
    "device",
    "network",
    "parameters",
    "devices",
    "data",
    "fsdp",
    "batch_size",
    "accumulate",
    "remat",
    "precision",
    "state_and_teacher_bytes",
    "arguments_bytes_a_device",
    "temporary_bytes_a_device",
    "collected_bytes_a_device",
    "compile_seconds",
)


UVITS = (
    "demo64",
    "imagenet64_small",
    "imagenet64_large",
    "imagenet128_small",
    "imagenet128_large",
)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Bytes a device of a training step")
    parser.add_argument("--network", default="imagenet64_large", choices=UVITS)
    parser.add_argument(
        "--devices", type=int, default=8, help="fake CPU devices, or GPUs"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--gpu", action="store_true", help="H100s instead of CPUs")
    kinds.add_argument("--tpu", metavar="TOPOLOGY", help="TPUs instead: v5e:2x4")
    parser.add_argument("--fsdp", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--no-remat", action="store_true")
    precisions = ("bfloat16", "float16", "float32")
    parser.add_argument("--precision", default="bfloat16", choices=precisions)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/memory.csv"))
    options = parser.parse_args()
    for name in ("devices", "fsdp", "batch_size", "accumulate"):
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option} is 1 or more, got {getattr(options, name)}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    import dataclasses

    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    import mcmeqx as mc
    from mcmeqx.nets import _attention

    devices = jax.devices()
    if options.tpu:
        devices = topologies.get_topology_desc(options.tpu, "tpu").devices
    if options.gpu:
        shape = {"target_config": H100, "topology": f"1x1x{options.devices}"}
        try:
            devices = topologies.get_topology_desc("", "cuda", **shape).devices
        except NotImplementedError as error:
            raise SystemExit('--gpu needs pip install "jax[cuda12]"') from error
        # It looks for a GPU in this machine.
        _attention._has_cudnn = lambda: True
    mesh = mc.make_mesh(fsdp=options.fsdp, devices=devices)
    mc.check_batch_size(options.batch_size, mesh, options.accumulate)
    remat = not options.no_remat
    config = dataclasses.replace(getattr(mc.nets, options.network), remat=remat)

    def build(key: jax.Array) -> tuple[mc.Learner, mc.TrainState]:
        network = config.build(key=key)
        model = mc.Denoiser(network, mc.Cosine(), dtype=jnp.dtype(options.precision))
        loss = mc.MultistepConsistencyLoss(
            mc.DistillationTeacher(model), mc.Segments(8)
        )
        learner = mc.Learner(loss, optax.adam(1e-4), accumulate=options.accumulate)
        return learner, learner.init(model, key=key)

    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    placed = mc.place_shapes(shapes, mesh)
    side = config.image_size
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    image: Any = jax.ShapeDtypeStruct(
        (options.batch_size, 3, side, side), jnp.float32, sharding=rows
    )
    label: Any = jax.ShapeDtypeStruct((options.batch_size,), jnp.int32, sharding=rows)
    batch = mc.Example(image, label)
    learner, state = placed
    begun = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = learner.compiled(state, batch)
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    leaves = [a for a in jax.tree.leaves(shapes) if isinstance(a, jax.ShapeDtypeStruct)]
    total = sum(a.size * a.dtype.itemsize for a in leaves if a.dtype == jnp.float32)
    return {
        "device": devices[0].device_kind,
        "network": options.network,
        "parameters": mc.nets.count_parameters(config),
        "devices": mesh.size,
        "data": mesh.shape["data"],
        "fsdp": mesh.shape["fsdp"],
        "batch_size": options.batch_size,
        "accumulate": options.accumulate,
        "remat": str(remat),
        "precision": options.precision,
        "state_and_teacher_bytes": total,
        "arguments_bytes_a_device": memory.argument_size_in_bytes,
        "temporary_bytes_a_device": memory.temp_size_in_bytes,
        "collected_bytes_a_device": sum(collected(compiled.as_text()).values()),
        "compile_seconds": f"{seconds:.1f}",
    }


def main() -> None:
    """Measure, print, and add a row to the table."""
    options = parse()
    flags = os.environ.get("XLA_FLAGS", "")
    fake = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["XLA_FLAGS"] = f"{flags} {fake}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("JAX_NUM_CPU_DEVICES", None)
    with appended(options.out, COLUMNS) as table:
        row = measure(options)
        table.writerow(row)
    for name, value in row.items():
        print(
            f"{name:28} {value:,}" if isinstance(value, int) else f"{name:28} {value}"
        )


if __name__ == "__main__":
    main()
