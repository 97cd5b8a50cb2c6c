import dataclasses
import functools
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SCHEDULES, alpha_sigma, theta

from mcmeqx import (
    Cosine,
    Denoiser,
    eps_prediction,
    v_prediction,
    with_guidance_input,
    with_null_class,
    x_prediction,
)
from mcmeqx.nets import (
    AbstractNetwork,
    MLPConfig,
    Stage,
    UNetConfig,
    UViTConfig,
    count_parameters,
    demo64,
    imagenet64_large,
    imagenet64_small,
    imagenet128_large,
    imagenet128_small,
    noise_level_features,
    unet32,
)
from mcmeqx.nets._blocks import ResNetBlock, TransformerBlock
from mcmeqx.nets._layers import GroupNorm
from mcmeqx.nets._network import Embedding, guidance_features, network_shapes

KEY = jax.random.key(0)
STAGES = (Stage("resnet", 8, 1, 0.3), Stage("transformer", 16, 2, 0.3))
HEADS = {"classes": 4, "head_width": 8}
NETWORKS = (
    (MLPConfig(3, width=8, depth=2, embedding=8), (3,)),
    (MLPConfig(3, width=8, depth=1, classes=4, embedding=8), (3,)),
    (UViTConfig(8, STAGES, embedding=8, head_width=8), (3, 8, 8)),
    (UViTConfig(8, STAGES, 1, 4, embedding=8, head_width=8, patch=2), (1, 8, 8)),
    (UViTConfig(8, STAGES[::-1], embedding=8, head_width=8), (3, 8, 8)),
    (UNetConfig(8, 8, (1, 2), 1, (4,), embedding=8, dropout=0.3, **HEADS), (3, 8, 8)),
)
networks = pytest.mark.parametrize(
    ("config", "shape"),
    NETWORKS,
    ids=[f"{type(c).__name__}{i}" for i, (c, _) in enumerate(NETWORKS)],
)


@functools.cache
def built(config):
    """A fresh network, and it with every parameter off its start: the zeros too."""
    # Eager, or with the default generator, compiling the draws takes most of the time.
    network = eqx.filter_jit(lambda key: config.build(key=key))(
        jax.random.key(0, impl="rbg")
    )
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda a: a + 0.1 * rng.normal(size=a.shape).astype("f4"),
        jax.tree.map(np.asarray, eqx.filter(network, eqx.is_array)),
    )
    moved = jax.tree.map(jnp.asarray, moved)
    return network, eqx.combine(moved, network)


@eqx.filter_jit
def call(network, z, logsnr, label=None, key=None):
    return network(z, logsnr, label, key=key)


def inputs(config, shape):
    label = None if config.classes is None else jnp.int32(1)
    z = jax.random.normal(jax.random.key(1), shape, jnp.float32)
    return z, jnp.float32(0.3), label


def stage_of_kind(kind):
    """A stage of any kind, past the checks that run under pytest alone."""
    stage = Stage("resnet", 8, 1)
    object.__setattr__(stage, "kind", kind)
    return stage


def with_parts(config, null_class, guidance_input):
    """`config` with a null class, a guidance input, both or neither."""
    return dataclasses.replace(
        config, null_class=null_class, guidance_input=guidance_input
    )


@pytest.mark.parametrize(
    "asked", [*itertools.product([False, True], repeat=2)], ids=str
)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(NETWORKS[1][0], id="mlp"),
        pytest.param(NETWORKS[3][0], id="uv", marks=pytest.mark.slow),
    ],
)
def test_a_network_has_the_structure_that_its_config_builds(config, asked):
    plain = eqx.filter_jit(lambda key: config.build(key=key))(KEY)
    model = Denoiser(plain, Cosine())
    null_class, guidance_input = asked
    # The guidance input first: adding the null class must carry it over.
    model = with_guidance_input(model) if guidance_input else model
    model = with_null_class(model) if null_class else model
    network = model.network
    assert network.config == with_parts(config, *asked)
    shapes = eqx.filter_eval_shape(lambda k: network.config.build(key=k), KEY)
    assert jax.tree.structure(network) == jax.tree.structure(shapes)
    assert [np.shape(a) for a in jax.tree.leaves(network)] == [
        np.shape(a) for a in jax.tree.leaves(shapes)
    ]
    np.testing.assert_array_equal(network.embed.classes[:4], plain.embed.classes)
    np.testing.assert_array_equal(
        network.embed.project.weight, plain.embed.project.weight
    )


@networks
def test_output_has_the_shape_and_dtype_of_z_and_starts_at_zero(config, shape):
    network, _ = built(config)
    assert all(
        a.dtype == jnp.float32 for a in jax.tree.leaves(network) if eqx.is_array(a)
    )
    out = call(network, *inputs(config, shape))
    assert (out.shape, out.dtype) == (shape, jnp.float32)
    np.testing.assert_array_equal(out, 0.0)


@networks
def test_a_traced_noise_level_changes_the_output_and_keeps_it_finite(config, shape):
    _, network = built(config)
    z, _, label = inputs(config, shape)
    out = [call(network, z, jnp.float32(level), label) for level in (-15.0, 0.0, 15.0)]
    assert np.all(np.isfinite(out))
    assert np.abs(out[0] - out[1]).max() > 1e-4
    assert np.abs(out[1] - out[2]).max() > 1e-4


@networks
def test_a_label_is_asked_for_exactly_when_there_are_classes(config, shape):
    network, _ = built(config)
    z, logsnr, label = inputs(config, shape)
    wrong = jnp.int32(0) if label is None else None
    with pytest.raises(ValueError, match="label"):
        network(z, logsnr, wrong)


@pytest.mark.parametrize(
    ("config", "shape"),
    [NETWORKS[i] for i in (1, 3, 4, 5)],
    ids=["mlp", "uvit", "turned", "unet"],
)
def test_every_path_of_the_conditioning_has_a_gradient(config, shape):
    _, network = built(config)
    weights = jax.random.normal(jax.random.key(2), shape, jnp.float32)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(network, arguments):
        return jnp.sum(weights * network(*arguments))

    found = gradient(network, inputs(config, shape))
    for path, leaf in jax.tree.leaves_with_path(found):
        name = jax.tree_util.keystr(path)
        if any(part in name for part in ("norm_skip", "position", "film", "qkv")):
            assert np.abs(leaf).max() > 1e-2, name
    if config.classes is not None:
        largest = np.abs(found.embed.classes).max(1)
        assert largest[1] > 1e-2
        np.testing.assert_array_equal(np.delete(largest, 1), 0.0)


@networks
def test_dropout_acts_only_with_a_key(config, shape):
    _, network = built(config)
    arguments = inputs(config, shape)
    plain = call(network, *arguments)
    np.testing.assert_array_equal(plain, call(network, *arguments))
    first, again, other = (
        call(network, *arguments, key=jax.random.key(i)) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    if not isinstance(config, MLPConfig):
        assert np.abs(first - other).max() > 1e-5
        assert np.abs(first - plain).max() > 1e-5


@pytest.mark.parametrize(
    ("config", "stated"),
    [
        (imagenet64_small, 394e6),
        (imagenet64_large, 1.23e9),
        (imagenet128_small, 397e6),
        (imagenet128_large, 1.25e9),
    ],
    ids=["64_small", "64_large", "128_small", "128_large"],
)
def test_parameter_counts_are_those_of_the_paper(config, stated):
    assert count_parameters(config) == pytest.approx(stated, rel=0.01)


# Heek et al. 2024, app. A.2: kind, width, depth and dropout of each stage.
PAPERS = {
    imagenet64_small: "r 256 3 0; t 512 3 0; t 1024 16 0.2",
    imagenet64_large: "r 512 3 0; t 1024 3 0.1; t 2048 16 0.1",
    imagenet128_small: "r 128 3 0; r 256 3 0; t 512 3 0; t 1024 16 0.1",
    imagenet128_large: "r 256 3 0; r 512 3 0.1; t 1024 3 0.1; t 2048 16 0.1",
}


@pytest.mark.parametrize("config", PAPERS, ids=["64s", "64l", "128s", "128l"])
def test_presets_have_the_stages_of_the_paper(config):
    stages = [f"{s.kind[0]} {s.width} {s.depth} {s.dropout:g}" for s in config.stages]
    assert "; ".join(stages) == PAPERS[config]
    assert (config.group_width, config.patch, config.embedding) == (1, 1, 1024)


def test_the_demo_has_groups_of_four_and_the_small_networks_their_defaults():
    stages = [(s.kind[0], s.width, s.depth) for s in demo64.stages]
    assert stages == [("r", 16, 1), ("r", 32, 1), ("r", 64, 1), ("t", 128, 4)]
    assert demo64.group_width == 4
    # Heads of 64, as the networks that have kernels for them like it.
    for config in (UViTConfig(8, (Stage("transformer", 128, 1),)), unet32):
        assert config.head_width == 64
    # A first layer, three of 256 with their FiLM, a last; the noise level's besides.
    layers = 3 * 256 + 3 * ((64 + 1) * 2 * 256 + (256 + 1) * 256) + (256 + 1) * 2
    assert count_parameters(MLPConfig(2)) == layers + (64 + 1) * 64


def test_the_unet_has_the_parameters_that_its_levels_add_up_to():
    def block(n_in, n_out):
        film = (256 + 1) * 2 * n_out
        convolutions = 9 * n_in * n_out + n_out + 9 * n_out**2 + n_out
        skip = 0 if n_in == n_out else (n_in + 1) * n_out
        return 2 * n_in + 2 * n_out + convolutions + film + skip

    attention = 2 * 128 + (128 + 1) * 3 * 128 + (128 + 1) * 128
    down = block(64, 64) + block(64, 128) + block(128, 128)
    between = block(64, 64) + 3 * block(128, 128)
    coarse = 2 * block(256, 128)
    up = coarse + block(256, 128) + block(192, 128) + block(192, 64) + block(128, 64)
    ends = (256 + 1) * 256 + (27 + 1) * 64 + 2 * 64 + (9 * 64 + 1) * 3
    middle = 2 * block(128, 128)
    total = ends + down + between + middle + up + 7 * attention
    assert count_parameters(unet32) == total
    assert total == pytest.approx(5.66e6, rel=0.01)


def readout_error(student_steps: int, width: int, **options) -> float:
    """RMS residual of a ridge readout of the exact student's v on 1280 steps."""
    schedule, step = Cosine(), np.arange(1, 1281)
    t, r = step / 1280, ((step - 1) * student_steps // 1280) / student_steps
    wanted = -np.tan((theta(schedule, t) - theta(schedule, r)) / 2)
    logsnr = jax.vmap(schedule.logsnr)(t).astype(jnp.float32)
    features = jax.vmap(lambda a: noise_level_features(a, width, **options))(logsnr)
    design = np.column_stack([np.asarray(features, np.float64), np.ones(1280)])
    gram = design.T @ design + 1e-6 * np.eye(design.shape[1])
    readout = np.linalg.solve(gram, design.T @ wanted)
    return float(np.sqrt(np.mean((design @ readout - wanted) ** 2)))


@pytest.mark.parametrize("student_steps", [2, 4, 8])
@pytest.mark.parametrize(
    ("width", "share"), [(64, 0.6), (128, 0.6), (256, 0.6), (1024, 0.25)]
)
def test_features_resolve_the_jumps_of_a_multistep_student(width, share, student_steps):
    smooth = readout_error(student_steps, width, max_frequency=4.0)
    assert readout_error(student_steps, width) < share * smooth


@pytest.mark.parametrize("width", [64, 128, 1024])
def test_an_embedding_tells_a_border_from_the_next_time(width):
    embed = eqx.filter_jit(
        lambda key: Embedding(MLPConfig(1, embedding=width), key=key)
    )(KEY)
    assert embed.project.weight.shape == (width, min(width, 256))
    border = np.array([0.25, 0.5, 0.75])
    at, after = (
        jax.vmap(lambda t: embed(Cosine().logsnr(t), None))(t.astype("f4"))
        for t in (border, border + 1 / 1280)
    )
    change = np.linalg.norm(after - at, axis=1) / np.linalg.norm(at, axis=1)
    assert change.min() > 0.1


def test_features_are_finite_and_of_u_equal_to_t():
    schedule = Cosine(-30.0, 30.0)
    for t in (0.0, 0.25, 1.0):
        features = noise_level_features(jnp.float32(schedule.logsnr(t)), 8)
        assert features.shape == (8,)
        # The lowest frequency is pi / 2: the angle of the schedule itself.
        assert float(features[0]) == pytest.approx(math.sin(math.pi * t / 2), abs=1e-5)
        assert float(features[4]) == pytest.approx(math.cos(math.pi * t / 2), abs=1e-5)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_every_parameterisation_gives_back_x(t):
    schedule = Cosine()
    x, eps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)))
    alpha, sigma = alpha_sigma(schedule, t)
    z, v = alpha * x + sigma * eps, alpha * eps - sigma * x
    for to_x, out in ((x_prediction, x), (eps_prediction, eps), (v_prediction, v)):
        np.testing.assert_allclose(to_x(schedule, z, out, t), x, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_v_prediction_keeps_its_digits_in_float32_at_both_ends(schedule, t):
    z, v = np.random.default_rng(0).normal(size=(2, 6)).astype("f4")
    alpha, sigma = alpha_sigma(schedule, t)
    x = v_prediction(schedule, jnp.asarray(z), jnp.asarray(v), jnp.float32(t))
    np.testing.assert_allclose(x, alpha * z - sigma * v, atol=1e-6)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_denoiser_computes_in_its_own_precision_and_answers_in_that_of_z(dtype):
    config, shape = NETWORKS[2]
    _, network = built(config)
    z, *_ = inputs(config, shape)
    alpha, sigma = alpha_sigma(Cosine(), 0.5)
    out = call(network, z, jnp.float32(Cosine().logsnr(0.5)))
    exact = alpha * np.asarray(z) - sigma * np.asarray(out)
    model = Denoiser(network, Cosine(), dtype=jnp.dtype(dtype))
    out = eqx.filter_jit(model)(z, jnp.float32(0.5))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=0.1 if dtype == "bfloat16" else 1e-5)


def test_a_denoiser_hands_label_and_key_to_a_network_in_its_own_precision():
    calls = []

    class Probe(AbstractNetwork):
        weight: jax.Array

        def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
            calls.append((z.dtype, logsnr.dtype, self.weight.dtype, label, key))
            return z

    network, dtype = Probe(jnp.ones((), jnp.float32)), jnp.dtype("bfloat16")
    label = jnp.int32(3)
    x = Denoiser(network, Cosine(), x_prediction, dtype)(
        jnp.ones(2, jnp.float32), jnp.float32(0.5), label, key=KEY
    )
    ((*dtypes, given_label, given_key),) = calls
    assert dtypes == [dtype, jnp.float32, dtype]
    assert given_label is label
    assert given_key is KEY
    assert x.dtype == jnp.float32


@pytest.mark.parametrize(
    ("width", "group_width", "groups"),
    [
        (256, 1, 32),
        (256, 4, 32),
        (64, 1, 32),
        (64, 4, 16),
        (16, 1, 16),
        (16, 4, 4),
        (18, 4, 2),
        (6, 4, 1),
        (2, 4, 1),
    ],
)
def test_a_group_has_at_least_the_channels_asked_for(width, group_width, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(rng.normal(size=width), 1.0, (5, 3, width)).astype("f4")
    parts = x.astype("f8").reshape(5, 3, groups, -1)
    mean = parts.mean((0, 1, 3), keepdims=True)
    deviation = np.sqrt(parts.var((0, 1, 3), keepdims=True) + 1e-5)
    expected = ((parts - mean) / deviation).reshape(x.shape)
    normed = GroupNorm(width, group_width)(jnp.asarray(x))
    np.testing.assert_allclose(normed, expected, atol=3e-6)


def test_every_norm_of_a_map_takes_the_width_of_groups_from_the_config():
    stages = (Stage("resnet", 16, 2), Stage("resnet", 64, 1))
    network = network_shapes(UViTConfig(8, stages, group_width=8))
    norms = jax.tree.leaves(network, is_leaf=lambda x: isinstance(x, GroupNorm))
    norms = [norm for norm in norms if isinstance(norm, GroupNorm)]
    groups = [(len(norm.scale), norm.groups) for norm in norms]
    assert len(groups) == 2 * 5 + 1
    assert set(groups) == {(16, 2), (64, 8)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPConfig(0), "size"),
        (lambda: MLPConfig(2, depth=0), "depth"),
        (lambda: MLPConfig(2, width=0), "width"),
        (lambda: MLPConfig(2, embedding=7), "7"),
        (lambda: MLPConfig(2, embedding=2), "at least 4, got 2"),
        (lambda: MLPConfig(2, classes=0), "classes"),
        (lambda: UViTConfig(8, ()), "stages"),
        (lambda: UViTConfig(0, STAGES), "image_size is at least 1, got 0"),
        (lambda: UViTConfig(8, STAGES, head_width=8, patch=0), "patch"),
        (
            lambda: UViTConfig(8, STAGES, head_width=8, patch=3),
            "multiple of 6: patch 3",
        ),
        (lambda: UViTConfig(8, STAGES, channels=0), "channels"),
        (lambda: UViTConfig(8, STAGES, classes=0), "classes"),
        (lambda: UViTConfig(8, STAGES, embedding=7), "embedding"),
        (lambda: UViTConfig(8, STAGES, head_width=0), "head_width"),
        (lambda: UViTConfig(8, STAGES, group_width=0), "group_width"),
        (lambda: UViTConfig(8, (stage_of_kind("conv"),)), "conv"),
        (lambda: UViTConfig(9, STAGES, head_width=8), "9"),
        (lambda: UViTConfig(8, STAGES, head_width=7), "head_width 7"),
        (lambda: UViTConfig(8, (Stage("resnet", 8, 0),)), "depth"),
        (lambda: UViTConfig(8, (Stage("resnet", 0, 1),)), "width >= 1"),
        (lambda: UViTConfig(8, (Stage("resnet", 8, 1, 1.0),)), "dropout"),
        (lambda: UViTConfig(8, (Stage("resnet", 8, 1, -0.1),)), "dropout"),
        (lambda: UNetConfig(8, 0), "width"),
        (lambda: UNetConfig(32, multipliers=()), "multipliers"),
        (lambda: UNetConfig(32, multipliers=(1, 0)), r"multipliers .*\(1, 0\)"),
        (lambda: UNetConfig(0), "image_size is at least 1, got 0"),
        (lambda: UNetConfig(32, depth=0), "depth"),
        (lambda: UNetConfig(32, channels=0), "channels"),
        (lambda: UNetConfig(32, head_width=0), "head_width"),
        (lambda: UNetConfig(32, dropout=1.0), "dropout"),
        (lambda: UNetConfig(32, dropout=-0.1), "dropout"),
        (lambda: UNetConfig(32, classes=0), "classes"),
        (lambda: UNetConfig(30), "30"),
        (lambda: UNetConfig(32, attention=(4,)), r"attention .* \[32, 16, 8\]"),
        (lambda: UNetConfig(32, head_width=48), "head_width 48"),
        # The last level has attention whether it is asked for or not.
        (lambda: UNetConfig(32, attention=(), head_width=48), "head_width 48"),
        (lambda: noise_level_features(jnp.float32(0.0), 5), "5"),
        (lambda: noise_level_features(jnp.float32(0.0), 2), "at least 4, got 2"),
    ],
)
def test_a_network_that_cannot_be_names_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("level", [10.1, 100.1, 1000.3])
def test_a_map_of_one_value_is_normalised_to_something_finite(level):
    # The mean square may lie below the squared mean, by its rounding.
    out = GroupNorm(32)(jnp.full((8, 8, 32), level, jnp.float32))
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (UViTConfig(8, STAGES[1:], embedding=8, head_width=8), (3, 1, 1)),
        (UViTConfig(8, STAGES, embedding=8, head_width=8), (3, 16, 16)),
        (UNetConfig(8, 8, (1, 2), 1, (4,), embedding=8, head_width=8), (3, 8, 4)),
        (UNetConfig(8, 8, (1, 2), 1, (4,), embedding=8, head_width=8), (1, 8, 8)),
    ],
)
def test_an_image_of_another_size_is_refused(config, shape):
    network = network_shapes(config)
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=r"images of .* \(3, 8, 8\), got"):
        eqx.filter_eval_shape(network, z, jax.ShapeDtypeStruct((), jnp.float32))


def test_guidance_is_told_by_multiples_of_a_quarter_turn_at_one():
    # g / (1 + g) is a half at 1, and the first multiple of that a quarter of pi.
    multiples = np.pi / 4 * np.arange(1, 17)
    expected = np.concatenate([np.sin(multiples), np.cos(multiples)])
    np.testing.assert_allclose(guidance_features(1.0), expected, atol=1e-5)
    far = np.pi / 2 * 0.75 * np.arange(1, 17)
    expected = np.concatenate([np.sin(far), np.cos(far)])
    np.testing.assert_allclose(guidance_features(3.0), expected, atol=1e-5)


def deviations(layer) -> float:
    """Of the weights, in units of 1 / sqrt(inputs)."""
    weight = np.asarray(layer.weight, np.float64)
    return weight.std() * np.sqrt(weight.size / weight.shape[-1])


def test_weights_begin_at_the_size_that_keeps_maps_near_one():
    stages = (Stage("resnet", 64, 1), Stage("transformer", 128, 1))

    @eqx.filter_jit
    def made(key):
        keys = jax.random.split(key, 5)
        return (
            ResNetBlock(96, 160, 128, 0.0, key=keys[0]),
            TransformerBlock(128, 96, 0.0, 64, key=keys[1]),
            UViTConfig(16, stages).build(key=keys[2]),
            MLPConfig(64, width=128, depth=2).build(key=keys[3]),
            Embedding(MLPConfig(1, classes=200, embedding=64), key=keys[4]).classes,
        )

    block, trunk, uvit, mlp, classes = made(jax.random.key(0, impl="rbg"))
    ones = [block.conv_in, block.project, trunk.mlp_in, trunk.qkv, uvit.stem]
    ones += [*uvit.narrow_to_wide, *uvit.wide_to_narrow, mlp.first, *mlp.films]
    ones += mlp.layers
    for size, layers in {1.0: ones, 0.1: [block.film, trunk.film]}.items():
        for layer in layers:
            # The deviation of n draws is off by 1 / sqrt(2 n).
            error = 5 * size / np.sqrt(2 * layer.weight.size)
            assert abs(deviations(layer) - size) < error
    for layer in (block.conv_out, trunk.mlp_out, trunk.out, uvit.head, mlp.last):
        assert not np.asarray(layer.weight).any()
    for draws, size in ((uvit.position, 0.02), (classes, 0.5)):
        assert abs(float(jnp.std(draws)) - size) < 5 * size / np.sqrt(2 * draws.size)


def test_no_two_layers_begin_alike():
    stages = (Stage("resnet", 8, 2), Stage("transformer", 16, 2))
    networks = [
        UViTConfig(8, stages, embedding=8, head_width=8),
        UNetConfig(8, 8, (1, 1), 2, embedding=8, head_width=8, attention=(8, 4)),
        MLPConfig(4, width=4, depth=3, embedding=8),
    ]
    for config in networks:
        network = eqx.filter_jit(config.build)(key=jax.random.key(0, impl="rbg"))
        # Of stacked blocks, each one's.
        rows = [
            np.asarray(part).ravel().tolist()
            for path, leaf in jax.tree.leaves_with_path(
                eqx.filter(network, eqx.is_array)
            )
            for part in (leaf if "middle" in str(path) and leaf.ndim == 3 else [leaf])
        ]
        drawn = [tuple(row[:4]) for row in rows if len(set(row)) > 2]
        assert len(drawn) > 5
        assert len(set(drawn)) == len(drawn)
