import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import skimage.data
from jaxprs import equations
from PIL import Image
from torch_file import Named, tensor, write_torch_file

from mcmeqx.metrics import (
    AbstractFeatureNetwork,
    EfficientNetLite0,
    Moments,
    _efficientnet,
    _network,
    features,
    frechet_distance,
    imagenet_crop,
    sliced_wasserstein,
)
from mcmeqx.metrics._efficientnet import depthwise
from mcmeqx.metrics._torch_file import read_torch_file

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0.load()


def photo(name: str, side: int) -> np.ndarray:
    image = Image.fromarray(getattr(skimage.data, name)())
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge)).resize((side, side))
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def test_no_device_may_round_the_inputs_of_a_features_products(network):
    def precisions(jaxpr):
        products = ("dot_general", "conv_general_dilated")
        found = [e for e in equations(jaxpr) if e.primitive.name in products]
        return [equation.params["precision"] for equation in found]

    exact = (jax.lax.Precision.HIGHEST,) * 2
    images = jnp.zeros((1, 3, 64, 64), jnp.float32)
    apply = eqx.filter_make_jaxpr(_network._apply)
    assert set(precisions(apply(network, images)[0].jaxpr)) == {exact}
    logits = eqx.filter_make_jaxpr(network.logits)(jnp.zeros((1, 1280), jnp.float32))
    assert set(precisions(logits[0].jaxpr)) == {exact}


def test_frechet_equals_the_matrix_square_root_formula():
    a, b = RNG.normal(size=(300, 12)), RNG.normal(0.3, 1.7, size=(200, 12))
    first, second = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected += np.trace(first + second - 2 * root)
    found = frechet_distance(Moments.of(a), Moments.of(b))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_frechet_closed_form_of_diagonal_gaussians():
    s1, s2 = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 2.0])
    a = Moments(11, np.zeros(3), 10 * np.diag(s1))
    b = Moments(6, np.array([0.0, 2.0, 0.0]), 5 * np.diag(s2))
    expected = 4.0 + np.sum((np.sqrt(s1) - np.sqrt(s2)) ** 2)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_no_set_is_at_less_than_nothing_from_itself():
    for n in range(2, 22):
        own = Moments.of(RNG.normal(size=(n, 12)))
        assert 0.0 <= frechet_distance(own, own) < 1e-6


def test_frechet_of_fewer_rows_than_numbers_is_zero_only_against_itself():
    a = RNG.normal(size=(20, 50))
    assert frechet_distance(Moments.of(a), Moments.of(a)) < 1e-6
    shifted = frechet_distance(Moments.of(a), Moments.of(a + 2.0))
    np.testing.assert_allclose(shifted, 50 * 4.0, rtol=1e-6)


@pytest.mark.parametrize("split", [1, 7, 99])
def test_merged_moments_are_those_of_the_whole(split):
    rows = RNG.normal(5.0, 2.0, size=(100, 6))
    merged = Moments.of(rows[:split]).merge(Moments.of(rows[split:]))
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), np.cov(rows.T), rtol=1e-10)


def test_bad_features_are_refused():
    rows = np.ones((4, 3))
    rows[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2"):
        Moments.of(rows)
    for shape in ((3,), (0, 3)):
        with pytest.raises(ValueError, match=r"expected \(n >= 1, d\)"):
            Moments.of(np.ones(shape))
    with pytest.raises(ValueError, match="do not compare"):
        Moments.of(np.ones((4, 3))).merge(Moments.of(np.ones((4, 1))))
    with pytest.raises(ValueError, match="two rows"):
        Moments.of(np.ones((1, 3))).covariance()
    with pytest.raises(ValueError, match="do not compare"):
        frechet_distance(Moments.of(np.ones((4, 3))), Moments.of(np.ones((4, 2))))


def test_sliced_wasserstein_of_a_shift():
    # each direction's distance is |<shift, w>|, whose mean square is |shift|^2 / d
    a = RNG.normal(size=(64, 3))
    shift = np.array([3.0, 0.0, 4.0])
    found = sliced_wasserstein(a, a + shift, directions=20_000, key=jax.random.key(0))
    error = 25 * np.sqrt(4 / 45 / 20_000)
    assert abs(float(found) ** 2 - 25 / 3) < 5 * error


def test_sliced_wasserstein_pairs_the_sorted():
    # In one dimension, whatever the direction: (0, 1, 5) with (1, 2, 6).
    a, b = (np.array(points)[:, None] for points in ([0.0, 1.0, 5.0], [6.0, 1.0, 2.0]))
    found = sliced_wasserstein(a, b, directions=3, key=jax.random.key(0))
    np.testing.assert_allclose(found, 1.0, rtol=1e-12)


def test_points_that_do_not_compare_are_refused():
    key = jax.random.key(0)
    for a, directions in ((np.ones((0, 2)), 1), (np.ones((5, 2)), 0)):
        with pytest.raises(ValueError, match=f"directions={directions}"):
            sliced_wasserstein(a, a, directions=directions, key=key)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_depthwise_equals_a_grouped_convolution(kernel, stride, size):
    x = RNG.normal(size=(2, size, size, 4))
    weight = RNG.normal(size=(kernel, kernel, 4))
    expected = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(weight)[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    found = depthwise(jnp.asarray(x), jnp.asarray(weight), stride)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_network_knows_photographs(network):
    # ImageNet: 281, 282, 285 are tabby, tiger and Egyptian cat, 967 is espresso
    cases = (("chelsea", {281, 282, 285}), ("coffee", {967}))
    images = np.stack([imagenet_crop(getattr(skimage.data, n)()) for n, _ in cases])
    logits = network.logits(jnp.asarray(features(network, images, batch_size=2)))
    for row, (_, classes) in zip(np.asarray(logits), cases, strict=True):
        assert int(np.argmax(row)) in classes


@pytest.mark.parametrize("upright", [False, True])
def test_imagenets_crop_is_that_of_pillow(upright):
    pixels = skimage.data.chelsea()
    height, width = pixels.shape[:2]
    wide = round(256 * width / height)
    # a channel of floats is not rounded between the two axes
    channels = [
        Image.fromarray(channel).resize((wide, 256), Image.Resampling.BICUBIC)
        for channel in pixels.transpose(2, 0, 1).astype(np.float32)
    ]
    left = (wide - 224) // 2
    expected = np.stack([c.crop((left, 16, left + 224, 240)) for c in channels])
    expected = np.clip(expected, 0, 255)
    if upright:
        pixels, expected = pixels.swapaxes(0, 1), expected.swapaxes(1, 2)
    found = (imagenet_crop(pixels) + 1) * 127.5
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-3)


def test_what_is_no_photograph_is_not_cropped():
    for pixels in (
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.float32),
    ):
        with pytest.raises(ValueError, match="expected uint8"):
            imagenet_crop(pixels)


@pytest.mark.slow
def test_a_cut_network_gives_the_pooled_output_of_its_last_block(network):
    images = RNG.uniform(-1, 1, size=(2, 3, 64, 64)).astype(np.float32)
    maps = []
    watched = [
        lambda x, block=block: maps.append(block(x)) or maps[-1]
        for block in network.blocks
    ]
    eqx.tree_at(lambda n: n.blocks, network, tuple(watched))(jnp.asarray(images))
    for blocks, width in ((3, 24), (5, 40), (8, 80), (11, 112), (15, 192), (16, 320)):
        cut = network.cut(blocks)
        assert f"block {blocks}, {width}-d" in cut.name
        expected = maps[blocks - 1].mean((1, 2))
        assert expected.shape == (2, width)
        np.testing.assert_allclose(
            features(cut, images), expected, rtol=1e-5, atol=1e-5
        )
    assert EfficientNetLite0.load(5).name == network.cut(5).name
    for samples, blocks in ((2, 3), (159, 3), (160, 5), (448, 11), (1280, 16)):
        found = EfficientNetLite0.for_samples(samples)
        assert f"block {blocks}," in found.name
    assert EfficientNetLite0.for_samples(5119).dims == 320
    assert EfficientNetLite0.for_samples(5120).dims == 1280
    for blocks in (0, 17):
        for cut in (EfficientNetLite0.load, network.cut):
            with pytest.raises(ValueError, match=f"1 to 16, got {blocks}"):
                cut(blocks)
    with pytest.raises(ValueError, match="block 5, 40-d is cut"):
        network.cut(5).logits(jnp.ones((1, 1280)))


def test_features_do_not_depend_on_the_batch_and_grey_is_three_channels(network):
    images = RNG.uniform(-1, 1, size=(5, 1, 64, 64)).astype(np.float32)
    whole = features(network, images, batch_size=2)
    three = features(network, np.repeat(images, 3, 1), batch_size=2)
    assert whole.shape == (5, 1280)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, three, atol=1e-5)
    np.testing.assert_allclose(
        whole[4:], features(network, images[[4, 0]], batch_size=2)[:1], atol=1e-5
    )
    for wrong in (images * 2, images - 2, images * np.float32(np.nan)):
        with pytest.raises(ValueError, match="clip"):
            features(network, wrong)
    for few in (images[0], images[:0]):
        with pytest.raises(ValueError, match=r"expected \(n, channel, height, width\)"):
            features(network, few)
    with pytest.raises(ValueError, match="batch_size is 1 or more, got 0"):
        features(network, images, batch_size=0)


@pytest.mark.parametrize("side", [32, 64])
def test_the_first_layers_are_their_formula_on_what_imagenet_networks_are_shown(
    network, side
):
    images = RNG.uniform(-1, 1, size=(2, 3, side, side)).astype(np.float32)
    x = np.float64(images).transpose(0, 2, 3, 1)
    if side < 64:
        # Linear between the centres of pixels, and the last ones go on.
        at = (np.arange(64) + 0.5) * side / 64 - 0.5
        for axis in (1, 2):
            x = np.apply_along_axis(
                lambda line: np.interp(at, np.arange(side), line), axis, x
            )
    # The bytes less 127, over 128: the constants of TensorFlow's Lite models.
    x = ((x + 1) * 127.5 - 127) / 128

    def convolved(x, weight, stride, before, after):
        k = len(weight)
        x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        n = (x.shape[1] - k) // stride + 1
        parts = (
            x[:, i : i + stride * n : stride, j : j + stride * n : stride]
            @ np.float64(weight[i, j])
            for i in range(k)
            for j in range(k)
        )
        return sum(parts)

    def relu6(x):
        return np.clip(x, 0, 6)

    # TensorFlow's SAME of an even side: nothing before, one after.
    stem, block = network.stem, network.blocks[0]
    x = relu6(convolved(x, stem.weight, 2, 0, 1) + np.float64(stem.bias))
    deep = np.einsum("ijc,cd->ijcd", block.depth.weight, np.eye(x.shape[-1]))
    x = relu6(convolved(x, deep, 1, 1, 1) + np.float64(block.depth.bias))
    x = x @ np.float64(block.project.weight) + np.float64(block.project.bias)
    found = features(network.cut(1), images)
    np.testing.assert_allclose(found, x.mean((1, 2)), rtol=1e-4, atol=1e-4)


def test_weights_with_another_bit_are_refused(network, tmp_path, monkeypatch):
    path = _efficientnet.package_folder(_efficientnet._PACKAGE, "demo")
    content = bytearray((path / _efficientnet._FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / _efficientnet._FILE).write_bytes(content)
    monkeypatch.setattr(_efficientnet, "package_folder", lambda *_: tmp_path)
    with pytest.raises(ValueError, match="it is another file, or a damaged one"):
        EfficientNetLite0.load()


class _Means(AbstractFeatureNetwork):
    """Sums of each channel, by a network that a test can read the place of."""

    name: str = "means"
    dims = 3
    classes = 0
    resize = "none"

    def __call__(self, images):
        return images.sum((2, 3))

    def logits(self, features):
        raise ValueError("no classifier")


@pytest.mark.parametrize("count", [1, 4, 23])
def test_features_are_split_over_the_devices_of_a_mesh_with_one_executable(count):
    images = RNG.uniform(-1, 1, size=(count, 3, 2, 2)).astype(np.float32)
    compiled = _network._apply._cached._cache_size()
    assert jax.local_device_count() == 4
    for mesh in (None, jax.make_mesh((2,), ("a",), devices=jax.devices()[:2])):
        found = features(_Means(), images, batch_size=3, mesh=mesh)
        np.testing.assert_allclose(found, images.sum((2, 3)), rtol=1e-5)
    assert _network._apply._cached._cache_size() <= compiled + 2


def test_the_network_says_how_many_features_and_classes_it_has(network):
    assert (network.dims, network.classes) == (1280, 1000)
    assert (network.cut(5).dims, network.cut(5).classes) == (40, 0)


def test_noise_raises_the_distance(network):
    whole = photo("coffee", 400)
    corners = RNG.integers(0, 400 - 64, size=(96, 2))
    crops = np.stack([whole[:, i : i + 64, j : j + 64] for i, j in corners])
    network = network.cut(5)
    reference = Moments.of(features(network, crops[:48]))
    noise = RNG.normal(size=crops[48:].shape).astype(np.float32)
    distances = [
        frechet_distance(
            Moments.of(features(network, np.clip(crops[48:] + s * noise, -1, 1))),
            reference,
        )
        for s in (0.0, 0.1, 0.4)
    ]
    assert distances[0] < distances[1] < distances[2]


def test_torch_file_honours_offset_and_strides(tmp_path):
    path = tmp_path / "weights.pth"
    state = {"a": tensor(2, (2, 3), (3, 1)), "b": tensor(0, (3, 2), (1, 3))}
    write_torch_file(path, state, range(8))
    found = read_torch_file(path)
    np.testing.assert_array_equal(found["a"], [[2, 3, 4], [5, 6, 7]])
    np.testing.assert_array_equal(found["b"], [[0, 3], [1, 4], [2, 5]])


def test_hostile_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    write_torch_file(path, {"a": (Named("os", "mkdir"), (str(tmp_path / "x"),))}, [1])
    with pytest.raises(ValueError, match=r"os\.mkdir"):
        read_torch_file(path)
    assert not (tmp_path / "x").exists()
    write_torch_file(path, {"a": tensor(2, (2, 3), (3, 1))}, range(8))
    whole = path.read_bytes()
    for cut in (10, 60, len(whole) - 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"truncated|not a PyTorch"):
            read_torch_file(path)
    outside = [tensor(7, (2, 3), (3, 1)), tensor(0, (2,), (-3,))]
    outside += [tensor(0, (2, 2), (3000, -3000)), tensor(-3, (9,), (1,))]
    # Nor numbers without end, all of them one.
    outside.append(tensor(0, (10**12,), (0,)))
    for wrong in ({"a": each} for each in outside):
        write_torch_file(path, wrong, range(8))
        with pytest.raises(ValueError, match="truncated"):
            read_torch_file(path)
    for wrong in ({"epoch": 3, "a": tensor(0, (2,), (1,))}, [1]):
        write_torch_file(path, wrong, range(8))
        with pytest.raises(ValueError, match="is not a PyTorch file"):
            read_torch_file(path)
    with pytest.raises(ValueError, match="sha256"):
        read_torch_file(path, "0" * 64)
