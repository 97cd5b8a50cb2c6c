import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import alpha_sigma, theta

from mcmeqx import Cosine, Denoiser, eps_prediction, v_prediction, x_prediction
from mcmeqx.nets import (
    MLPConfig,
    Stage,
    UViTConfig,
    count_parameters,
    imagenet64_large,
    imagenet64_small,
    imagenet128_large,
    imagenet128_small,
    noise_level_features,
)

KEY = jax.random.key(0)
STAGES = (Stage("resnet", 8, 1, 0.3), Stage("transformer", 16, 2, 0.3))
NETWORKS = (
    (MLPConfig(3, width=8, depth=2, embedding=8), (3,)),
    (MLPConfig(3, width=8, depth=1, classes=4, embedding=8), (3,)),
    (UViTConfig(8, STAGES, embedding=8, head_width=8), (3, 8, 8)),
    (UViTConfig(8, STAGES, 1, 4, embedding=8, head_width=8, patch=2), (1, 8, 8)),
    (UViTConfig(8, STAGES[::-1], embedding=8, head_width=8), (3, 8, 8)),
)
networks = pytest.mark.parametrize(
    ("config", "shape"),
    NETWORKS,
    ids=[f"{type(c).__name__}{i}" for i, (c, _) in enumerate(NETWORKS)],
)


def awake(network, key=KEY):
    """The network with every parameter moved off its start, the zero layers too."""
    leaves, tree = jax.tree.flatten(network)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        a + 0.1 * jax.random.normal(k, a.shape, a.dtype) if eqx.is_array(a) else a
        for a, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def inputs(config, shape):
    label = None if config.classes is None else jnp.int32(1)
    z = jax.random.normal(jax.random.key(1), shape, jnp.float32)
    return z, jnp.float32(0.3), label


@networks
def test_output_has_the_shape_and_dtype_of_z_and_starts_at_zero(config, shape):
    network = config.build(key=KEY)
    assert all(
        a.dtype == jnp.float32 for a in jax.tree.leaves(network) if eqx.is_array(a)
    )
    out = network(*inputs(config, shape))
    assert (out.shape, out.dtype) == (shape, jnp.float32)
    np.testing.assert_array_equal(out, 0.0)


@networks
def test_one_compilation_serves_all_noise_levels(config, shape):
    network, traces = awake(config.build(key=KEY)), []

    @jax.jit
    def call(z, logsnr, label):
        traces.append(1)
        return network(z, logsnr, label)

    z, _, label = inputs(config, shape)
    out = [call(z, jnp.float32(level), label) for level in (-15.0, 0.0, 15.0)]
    assert len(traces) == 1
    assert np.all(np.isfinite(out))
    assert np.abs(out[0] - out[1]).max() > 1e-4


@networks
def test_a_label_is_asked_for_exactly_when_there_are_classes(config, shape):
    network = config.build(key=KEY)
    z, logsnr, label = inputs(config, shape)
    wrong = jnp.int32(0) if label is None else None
    with pytest.raises(ValueError, match="label"):
        network(z, logsnr, wrong)


@networks
def test_classes_change_the_output(config, shape):
    if config.classes is None:
        return
    network = awake(config.build(key=KEY))
    z, logsnr, _ = inputs(config, shape)
    out = [network(z, logsnr, jnp.int32(i)) for i in (0, 1, 0)]
    np.testing.assert_array_equal(out[0], out[2])
    assert np.abs(out[0] - out[1]).max() > 1e-4


@networks
def test_dropout_acts_only_with_a_key(config, shape):
    network, arguments = awake(config.build(key=KEY)), inputs(config, shape)
    call = jax.jit(lambda key: network(*arguments, key=key))
    plain = network(*arguments)
    np.testing.assert_array_equal(plain, network(*arguments))
    first, again, other = (call(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    if isinstance(config, UViTConfig):
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


def readout_error(student_steps: int, **options) -> float:
    """RMS residual of a ridge readout of the exact student's v on 1280 steps."""
    schedule, step = Cosine(), np.arange(1, 1281)
    t, r = step / 1280, ((step - 1) * student_steps // 1280) / student_steps
    wanted = -np.tan((theta(schedule, t) - theta(schedule, r)) / 2)
    logsnr = jax.vmap(schedule.logsnr)(t).astype(jnp.float32)
    features = jax.vmap(lambda a: noise_level_features(a, 1024, **options))(logsnr)
    design = np.column_stack([np.asarray(features, np.float64), np.ones(1280)])
    gram = design.T @ design + 1e-6 * np.eye(design.shape[1])
    readout = np.linalg.solve(gram, design.T @ wanted)
    return float(np.sqrt(np.mean((design @ readout - wanted) ** 2)))


@pytest.mark.parametrize("student_steps", [2, 4, 8])
def test_features_resolve_the_jumps_of_a_multistep_student(student_steps):
    smooth = readout_error(student_steps, max_frequency=4.0)
    assert readout_error(student_steps) < smooth / 4


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


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_denoiser_computes_in_its_own_precision_and_answers_in_that_of_z(dtype):
    config, shape = NETWORKS[2]
    network = awake(config.build(key=KEY))
    z, *_ = inputs(config, shape)
    exact = Denoiser(network, Cosine())(z, 0.5)
    out = Denoiser(network, Cosine(), dtype=jnp.dtype(dtype))(z, 0.5)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=0.1 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPConfig(0), "size"),
        (lambda: MLPConfig(2, depth=0), "depth"),
        (lambda: MLPConfig(2, embedding=7), "7"),
        (lambda: MLPConfig(2, classes=0), "classes"),
        (lambda: UViTConfig(8, ()), "stages"),
        (lambda: UViTConfig(9, STAGES, head_width=8), "9"),
        (lambda: UViTConfig(8, STAGES, head_width=7), "head_width 7"),
        (lambda: UViTConfig(8, (Stage("resnet", 8, 0),)), "depth"),
        (lambda: UViTConfig(8, (Stage("resnet", 8, 1, 1.0),)), "dropout"),
        (lambda: noise_level_features(jnp.float32(0.0), 5), "5"),
    ],
)
def test_a_network_that_cannot_be_names_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
