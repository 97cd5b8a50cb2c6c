"""Files of statistics in the forms they come in, and what of them is refused."""

import hashlib
import pickle
from dataclasses import replace

import equinox as eqx
import numpy as np
import pytest

from mcmeqx.metrics import (
    AbstractFeatureNetwork,
    Moments,
    frechet_distance,
    read_reference,
    reference,
    save_reference,
)

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 6))
MU, SIGMA = ROWS.mean(0), np.cov(ROWS.T)
INCEPTION = "FID Inception 2015-12-05, 2048-d"


class _Network(AbstractFeatureNetwork):
    name: str = eqx.field(default=INCEPTION, static=True)
    resize: str = eqx.field(default="none", static=True)
    dims = 6
    classes = 0

    def __call__(self, images):
        return images.reshape(len(images), -1)[:, :6]

    def logits(self, features):
        raise ValueError("no classifier")


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def pkl(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def files(folder):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    spatial = {"mu_s": MU[:2], "sigma_s": SIGMA[:2, :2]}
    fid = {"mu": MU, "sigma": SIGMA}
    return {
        "EDM": npz(folder / "edm.npz", mu=MU, sigma=SIGMA),
        "ADM": npz(folder / "adm.npz", arr_0=images, mu=MU, sigma=SIGMA, **spatial),
        "EDM2": pkl(
            folder / "edm2.pkl", {"num_images": 7, "fid": fid, "fd_dinov2": fid}
        ),
    }


def test_statistics_of_others_are_read_and_named_with_their_hash(tmp_path):
    for kind, path in files(tmp_path).items():
        found = read_reference(path)
        assert path.name in found.name
        assert kind in found.name
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(found.law.mean, MU)
        np.testing.assert_array_equal(found.law.covariance(), SIGMA)
        # EDM2's calculate_metrics.py writes `num_images` beside each metric's.
        assert found.count == (7 if kind == "EDM2" else None)
        assert found.network == (None if kind == "EDM" else INCEPTION)
        shifted = Moments.of(ROWS + 2.0)
        distance = frechet_distance(shifted, found.law)
        np.testing.assert_allclose(distance, 6 * 2.0**2, rtol=1e-9)


def test_our_own_statistics_come_back_whole(tmp_path):
    network = _Network()
    own = reference(Moments.of(ROWS), network, name="rows", sha256="ab" * 32)
    path = tmp_path / "own.npz"
    with path.open("wb") as file:
        save_reference(file, own)
    found = read_reference(path)
    np.testing.assert_array_equal(found.law.mean, own.law.mean)
    np.testing.assert_array_equal(found.law.sigma, own.law.sigma)
    assert replace(found, law=own.law) == own
    assert found.count == 40
    found.check(network, (3, 8, 8))
    shaped = replace(own, shape=(3, 8, 8))
    with path.open("wb") as file:
        save_reference(file, shaped)
    assert replace(read_reference(path), law=own.law) == shaped
    read_reference(path).check(network, (3, 8, 8))
    read_reference(path).check(network)
    with pytest.raises(ValueError, match=r"of images \(3, 8, 8\), .* \(1, 8, 8\)"):
        read_reference(path).check(network, (1, 8, 8))


def test_statistics_of_another_network_are_refused(tmp_path):
    path = files(tmp_path)["ADM"]
    with pytest.raises(ValueError, match=r"network=FID Inception .* has pixels"):
        read_reference(path).check(_Network(name="pixels"))
    with pytest.raises(ValueError, match=r"resize=bilinear .* has none"):
        read_reference(path).check(_Network())
    narrow = npz(tmp_path / "narrow.npz", mu=MU[:2], sigma=SIGMA[:2, :2])
    with pytest.raises(ValueError, match=r"dims=2, .* has 6"):
        read_reference(narrow).check(_Network())


OWN = '{"name": "n", "sha256": "0", "network": null, "resize": null, "count": 1}'


class _Evil:
    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": MU}, "expected sigma"),
        ({"mu": MU, "sigma": SIGMA[:2]}, "do not fit"),
        ({"mu": MU, "sigma": np.full((6, 6), np.nan)}, "not finite"),
        ({"mu": MU, "sigma": np.triu(SIGMA)}, "not symmetric"),
        ({"mu": np.full(6, np.nan), "sigma": SIGMA}, "not finite"),
        ({"mu": MU, "sigma": -SIGMA}, "variances below 0"),
        ({"mu": MU, "sigma": np.triu(SIGMA), "about": np.array(OWN)}, "not symmetric"),
        ({"mu": np.zeros(6, int), "sigma": SIGMA}, "int64"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"npz: mu is .*\(0,\)"),
        ({"mu": np.zeros(2**14 + 1), "sigma": SIGMA}, r"mu is .*\(16385,\)"),
        ({"mu": MU, "sigma": SIGMA, "about": np.array('{"a": 1}')}, "not describe"),
        ({"mu": MU, "sigma": SIGMA, "about": np.array("no")}, "not describe"),
        ({"mu": MU, "sigma": SIGMA, "about": np.array("3")}, "not describe"),
        ({"mu": MU, "sigma": SIGMA, "about": np.array("[" * 5000)}, "not describe"),
        ({"mu": MU, "sigma": SIGMA, "about": np.array('{"shape": 3}')}, "not describe"),
    ],
)
def test_files_that_hold_no_statistics_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_reference(npz(tmp_path / "bad.npz", **content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fid": _Evil()}, "no pickle of arrays"),
        ({"fid": {"mu": _Evil(), "sigma": SIGMA}}, "no pickle of arrays"),
        ({"fd_dinov2": {"mu": MU, "sigma": SIGMA}}, "no mu and sigma"),
        ({"fid": {"mu": MU}}, "no mu and sigma"),
        ([], "holds a list"),
    ],
)
def test_pickles_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_reference(pkl(tmp_path / "bad.pkl", content))
    assert not (tmp_path / "ran").exists()


def test_dicts_that_hold_one_another_many_times_are_refused_at_once(tmp_path):
    nested: dict = {}
    for _ in range(60):
        nested = {"fid": nested, "a": nested, "b": nested}
    with pytest.raises(ValueError, match="no mu and sigma"):
        read_reference(pkl(tmp_path / "bad.pkl", nested))
