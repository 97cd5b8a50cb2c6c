"""Attention against its formula, and where a GPU's own kernel stands in for it."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcmeqx import DDIM, Cosine, Denoiser, log_likelihood, uniform_grid
from mcmeqx._export_sampler import export_sampler, load_sampler
from mcmeqx.nets import UNetConfig, _attention
from mcmeqx.nets._attention import attend, formula_alone

pytestmark = pytest.mark.usefixtures("as_users_run")
BFLOAT16 = jnp.dtype("bfloat16")


def test_attention_and_its_derivatives_are_those_of_the_formula():
    def plain(q, k, v):
        logits = jnp.sum(q[:, None] * k[None], -1) / np.sqrt(3.0)
        weights = jnp.exp(logits) / jnp.sum(jnp.exp(logits), 1, keepdims=True)
        return jnp.sum(weights[..., None] * v[None], 1)

    def all_of(f):
        value, forward = jax.jvp(f, (q, k, v), (w, q, k))
        gradients = jax.grad(lambda *a: jnp.sum(w * f(*a)), (0, 1, 2))(q, k, v)
        return value, forward, *gradients

    with jax.enable_x64(True):
        q, k, v, w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 2, 3)))
        for found, expected in zip(all_of(attend), all_of(plain), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_two_byte_attention_is_within_rounding_of_float64_on_any_device():
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(2, 256, 4, 64)), BFLOAT16) for _ in range(4)]

    def all_of(q, k, v, w):
        value, pull = jax.vjp(jax.vmap(attend), q, k, v)
        return value, *pull(w)

    narrow = jax.jit(all_of)(*arrays)
    with jax.enable_x64(True):
        wide = all_of(*(jnp.asarray(np.asarray(a, np.float64)) for a in arrays))
        exact = [np.asarray(a) for a in wide]
    for found, expected in zip(narrow, exact, strict=True):
        assert found.dtype == BFLOAT16
        error = np.linalg.norm(np.asarray(found, np.float64) - expected)
        # Rounded to 2^-9 at the weights, at their derivative, and at the end.
        assert error < 2.0**-8 * np.linalg.norm(expected)


@pytest.fixture
def kernel(monkeypatch):
    """A device with a kernel, which is the formula under the eyes of the test."""
    calls, real = [], jax.nn.dot_product_attention

    def spied(q, k, v, *, implementation):
        calls.append(implementation)
        return real(q, k, v, implementation="xla")

    monkeypatch.setattr(_attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", spied)
    return calls


def test_the_kernel_computes_the_formula(kernel):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(64, 3, 8)), BFLOAT16) for _ in range(3))
    found = attend(q, k, v)
    assert kernel == ["cudnn"]
    with formula_alone():
        expected = attend(q, k, v)
    assert kernel == ["cudnn"]
    np.testing.assert_allclose(
        found.astype("f4"), expected.astype("f4"), atol=2.0**-7 * float(abs(v).max())
    )
    attend(q, k, v)
    assert kernel == ["cudnn"] * 2


@pytest.mark.parametrize(
    ("shape", "dtype", "takes"),
    [
        ((64, 2, 64), "bfloat16", True),
        ((1024, 2, 128), "float16", True),
        ((1024, 2, 64), "float32", False),
        ((16, 2, 64), "bfloat16", False),
        ((64, 2, 136), "bfloat16", False),
        ((64, 2, 12), "bfloat16", False),
    ],
)
def test_the_kernel_is_for_queries_that_it_can_take(kernel, shape, dtype, takes):
    assert _attention._has_kernel(jnp.zeros(shape, dtype)) is takes


def test_an_error_while_tracing_leaves_the_kernel_in_use(kernel):
    queries = jnp.zeros((64, 2, 64), BFLOAT16)
    assert _attention._has_kernel(queries)
    with contextlib.suppress(KeyError), formula_alone():
        assert not _attention._has_kernel(queries)
        raise KeyError
    assert _attention._has_kernel(queries)


@pytest.mark.parametrize(
    ("platform", "version", "capability", "has"),
    [
        ("gpu", "PJRT C API cuda 13000", "9.0", True),
        ("gpu", "PJRT C API cuda 13000", "12.0", True),
        ("gpu", "PJRT C API cuda 13000", "8.0", True),
        ("gpu", "PJRT C API cuda 13000", "7.5", False),
        ("gpu", "PJRT C API rocm 70000", "gfx90a", False),
        ("cpu", "cpu", None, False),
    ],
)
def test_the_kernel_is_there_on_gpus_of_cudnn(
    platform, version, capability, has, monkeypatch
):
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(
        platform=platform, client=client, compute_capability=capability
    )
    monkeypatch.setattr(jax, "devices", lambda backend: [device])
    assert _attention._has_cudnn() is has


@pytest.mark.parametrize("given", ["cpu", jax.devices("cpu")[0]])
def test_the_kernel_is_not_for_a_cpu_that_is_made_the_default(given, monkeypatch):
    gpu = SimpleNamespace(
        platform="gpu",
        client=SimpleNamespace(platform_version="cuda"),
        compute_capability="9.0",
    )
    real = jax.devices
    monkeypatch.setattr(
        jax, "devices", lambda backend: [gpu] if backend is None else real(backend)
    )
    assert _attention._has_cudnn()
    with jax.default_device(given):
        assert not _attention._has_cudnn()


@pytest.mark.slow
def test_forward_derivatives_and_exported_programs_do_without(kernel, tmp_path):
    config = UNetConfig(8, 32, (1,), attention=(8,), head_width=8, embedding=8)
    network = config.build(key=jax.random.key(0))
    model = Denoiser(network, Cosine(), dtype=BFLOAT16)
    x = jnp.zeros((3, 8, 8), jnp.float32)
    jax.eval_shape(model, x, 0.5)
    assert kernel
    kernel.clear()
    key = jax.random.key(1)
    jax.eval_shape(
        lambda x: log_likelihood(model, model.schedule, x, probes=1, key=key), x
    )
    path = tmp_path / "sampler.zip"
    export_sampler(path, model, DDIM(), uniform_grid(1), x.shape, batch_size=1)
    assert load_sampler(path)(x[None]).shape == (1, *x.shape)
    assert kernel == []
