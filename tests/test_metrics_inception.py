"""FID's Inception against what torch made of the same random weights."""

import hashlib
import json

import inception_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from jaxprs import equations
from torch_file import write_arrays

from mcmeqx.metrics import Inception, features
from mcmeqx.metrics._inception import as_pytorch_fid, as_tensorflow
from mcmeqx.metrics._inception_blocks import average_pool, max_pool

RNG = np.random.default_rng(0)


@pytest.mark.slow
def test_features_and_logits_are_those_of_pytorch_fid(tmp_path):
    # written by inception_reference.py with torch
    with np.load(inception_reference.FILE) as stored:
        expected = {name: stored[name] for name in stored.files}
    tensors = inception_reference.weights(json.loads(str(expected["shapes"])))
    path = tmp_path / "weights.pth"
    floats = {k: v for k, v in tensors.items() if v.dtype == np.float32}
    write_arrays(path, floats)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    network = Inception.load(path, "pytorch-fid", sha256=digest)
    assert (network.dims, network.classes) == (2048, 1008)
    assert digest[:16] in network.name
    assert network.prepare is as_pytorch_fid
    assert Inception.load(path, "tensorflow", sha256=digest).prepare is as_tensorflow
    found = features(network, 2 * inception_reference.images() - 1, batch_size=2)
    np.testing.assert_allclose(found, expected["features"], atol=1e-4)
    logits = network.logits(jnp.asarray(expected["features"]))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


def test_weights_that_lack_a_tensor_are_refused():
    with pytest.raises(ValueError, match=r"lack 'Conv2d_1a_3x3\.bn\.running_var'"):
        Inception.from_tensors({}, "tensorflow", "none")


def test_a_file_of_another_hash_is_refused_unless_it_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(ValueError, match=f"sha256 {empty}, expected 6726825d"):
        Inception.load(path, "tensorflow")
    with pytest.raises(ValueError, match="not a PyTorch file"):
        Inception.load(path, "tensorflow", sha256=empty)
    with pytest.raises(FileNotFoundError):
        Inception.load(tmp_path / "none.pth", "tensorflow")


@pytest.mark.parametrize("shape", [(5, 9), (299, 299), (310, 700)])
def test_resize_is_bilinear_between_the_two_nearest_pixels(shape):
    x = RNG.normal(size=(1, *shape, 2))
    expected = x
    for axis, n in ((1, shape[0]), (2, shape[1])):
        at = np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        weight = (at - low)[:, None] if axis == 2 else (at - low)[:, None, None]
        below, above = (np.take(expected, low + i, axis) for i in (0, 1))
        expected = below * (1 - weight) + above * weight
    np.testing.assert_allclose(as_pytorch_fid(jnp.asarray(x)), expected, atol=1e-10)


@pytest.mark.parametrize("shape", [(5, 9), (299, 299), (310, 700)])
def test_tensorflows_resize_starts_at_the_corner_and_repeats_the_last_pixel(shape):
    x = RNG.uniform(-1, 1, size=(1, *shape, 2))
    padded = np.pad((x + 1) * 127.5, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    at = [np.arange(299) * n / 299 for n in shape]
    points = np.stack(np.meshgrid(*at, indexing="ij"), -1)
    grid = [np.arange(n + 1) for n in shape]
    expected = scipy.interpolate.interpn(grid, padded[0], points)
    found = as_tensorflow(jnp.asarray(x))[0]
    np.testing.assert_allclose(found, (expected - 128) / 128, atol=1e-10)


def test_pools_leave_out_the_padding():
    x = RNG.normal(size=(1, 5, 4, 1))
    mean, highest = average_pool(jnp.asarray(x)), max_pool(jnp.asarray(x), 1, 1)
    halved = max_pool(jnp.asarray(x), 2)
    for i, j in np.ndindex(5, 4):
        window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, 0]
        np.testing.assert_allclose(mean[0, i, j, 0], window.mean(), atol=1e-12)
        assert highest[0, i, j, 0] == window.max()
    assert halved.shape == (1, 2, 1, 1)
    assert halved[0, 1, 0, 0] == x[0, 2:5, :3].max()


def test_the_network_is_traced_with_shapes_alone():
    # strict promotion and float32 throughout, whatever the process's default is
    with np.load(inception_reference.FILE) as stored:
        shapes = json.loads(str(stored["shapes"]))
    tensors = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    network = Inception.from_tensors(tensors, "tensorflow", "zeros")
    grey = jax.ShapeDtypeStruct((3, 1, 32, 32), jnp.float32)
    out = jax.eval_shape(network, grey)
    assert (out.shape, out.dtype) == ((3, 2048), jnp.float32)
    # No device may round the inputs of a product; `features` sees to the others.
    program = jax.make_jaxpr(network.logits)(jnp.zeros((1, 2048), jnp.float32))
    (product,) = [e for e in equations(program.jaxpr) if "dot" in e.primitive.name]
    assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
