"""What a step sends between devices: weights and their gradients, no activations."""

import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import mcmeqx as mc
from mcmeqx._sharding import place_shapes
from mcmeqx.nets import MLPConfig, Stage, UNetConfig, UViTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from _collectives import collected

pytestmark = pytest.mark.usefixtures("as_users_run")
WIDE = {"classes": 100, "embedding": 64}
# One transformer block is unrolled, seven are scanned; every matrix is split.
STAGES = (("resnet", 64, 1), ("transformer", 64, 1), ("transformer", 64, 7, 0.1))
NETWORKS = {
    "uvit": UViTConfig(8, tuple(Stage(*s) for s in STAGES), **WIDE),
    "unet": UNetConfig(8, 64, (1, 1), attention=(4,), **WIDE),
    "mlp": MLPConfig(2, width=64, depth=1, embedding=64),
    # Wide enough that the guidance scale's 32 features have a map that is split.
    "guided": UViTConfig(8, (Stage(*STAGES[0]),), classes=9, null_class=True),
}


def test_collectives_count_by_what_they_return_and_in_loops_as_often_as_they_run():
    mesh = mc.make_mesh(4)

    def summed(rows):
        def body(x, _):
            return jax.lax.psum(x, "data") * 0.5, None

        x, _ = jax.lax.scan(body, rows, None, length=5)
        return jax.lax.all_gather(x.astype(jnp.bfloat16), "data")

    split, whole = PartitionSpec("data"), PartitionSpec()
    function = jax.shard_map(
        summed, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False
    )
    program = jax.jit(function).lower(jnp.zeros((12, 7))).compile().as_text()
    found = collected(program)
    assert found["all-reduce"] == 5 * 3 * 7 * 4
    # A CPU may gather in float32 what it has in bfloat16.
    assert found["all-gather"] in (12 * 7 * 2, 12 * 7 * 4)
    assert set(found) == {"all-reduce", "all-gather"}


TPU = """
%part_one (p: bf16[8,2]) -> bf16[64,2] {
  %gathered = bf16[64,2]{1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={0}
}

%part_two (p: bf16[8,2]) -> bf16[64,2] {
  %gathered.1 = bf16[64,2]{1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={0}
}

%end (p: (s32[], f32[4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(6)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %begun = (f32[4]{0}, f32[4]{0}, u32[]) collective-permute-start(%x), channel_id=3
  %done = f32[4]{0:T(128)} collective-permute-done(%begun)
}

ENTRY %main (p: bf16[8,2]) -> bf16[64,2] {
  %first = bf16[64,2] fusion(%p), kind=kCustom, calls=%part_one
  %second = (bf16[64,2], pred[2]) fusion(%first), kind=kCustom, calls=%part_two
  %loop = (s32[], f32[4]{0}) while(%init), condition=%end, body=%body
  %both = (f32[], f32[10]{0}, /*index=2*/pred[2]) all-reduce(%a, %b), channel_id=9
}
"""


def test_a_tpus_collectives_in_parts_count_once_and_its_loops_by_their_bound():
    assert collected(TPU) == {
        "all-gather": 64 * 2 * 2,
        "collective-permute": 6 * 4 * 4,
        "all-reduce": 4 + 10 * 4 + 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_split_weights_are_sent_between_devices_and_activations_never(name, accumulate):
    config, guided = NETWORKS[name], name == "guided"
    guidance = mc.Guidance(1.0) if guided else None
    scales = (0.0, 2.0) if guided else None

    def build(key):
        network, dtype = config.build(key=key), jnp.dtype(jnp.bfloat16)
        model = mc.Denoiser(network, mc.Cosine(), dtype=dtype)
        teacher = mc.DistillationTeacher(model, guidance=guidance)
        loss = mc.MultistepConsistencyLoss(
            teacher, mc.Segments(2), guidance_range=scales
        )
        learner = mc.Learner(loss, optax.adam(1e-3), accumulate=accumulate)
        student = mc.with_guidance_input(model) if guided else model
        return learner, learner.init(student, key=key)

    mesh = mc.make_mesh(1, 4)
    learner, state = place_shapes(eqx.filter_eval_shape(build, jax.random.key(0)), mesh)

    def sent(rows):
        where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        shape = (rows, 2) if name == "mlp" else (rows, 3, 8, 8)
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
        label = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=where)
        batch = mc.Example(x, None if name == "mlp" else label)
        with jax.set_mesh(mesh):
            return collected(learner.compiled(state, batch).as_text())

    few = sent(8 * accumulate)
    assert set(few) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert sum(few.values()) > 0
    assert sent(32 * accumulate) == few


NESTED = """
%inner (p: s32[]) -> s32[] {
  %a = f32[4]{0} all-reduce(%x), channel_id=1
}
%part (p: s32[]) -> s32[] {
  %c = bf16[3]{0} all-gather(%x), channel_id=2
}
%end (p: s32[]) -> pred[] {
  %k = s32[] constant(1)
}
%outer (p: s32[]) -> s32[] {
  %w = s32[] while(%p), condition=%end, body=%inner, TRIPS5
  %f = bf16[3] fusion(%p), kind=kCustom, calls=%part
}
ENTRY %main (p: s32[]) -> s32[] {
  %w = s32[] while(%p), condition=%end, body=%outer, TRIPS7
}
"""


def test_loops_within_loops_multiply():
    text = NESTED
    for count in ("5", "7"):
        known = 'backend_config={"known_trip_count":{"n":"' + count + '"}}'
        text = text.replace(f"TRIPS{count}", known)
    # Four numbers of four bytes, and three of two.
    assert collected(text) == {"all-reduce": 5 * 7 * 16, "all-gather": 7 * 6}


def test_collectives_in_a_branch_count():
    mesh, split = mc.make_mesh(4), PartitionSpec("data")

    def summed(x, k):
        return jax.lax.cond(
            k > 0, lambda x: jax.lax.psum(x, "data"), lambda x: 2.0 * x, x
        )

    function = jax.shard_map(
        summed,
        mesh=mesh,
        in_specs=(split, PartitionSpec()),
        out_specs=split,
        check_vma=False,
    )
    program = jax.jit(function).lower(jnp.zeros((12, 7)), jnp.int32(1)).compile()
    assert collected(program.as_text()) == {"all-reduce": 3 * 7 * 4}
