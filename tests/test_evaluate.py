"""The evaluation runs whole on tiny networks, goes on after a kill, repeats none."""

import csv
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from PIL import Image

import mcmeqx as mc
from mcmeqx.metrics import AbstractFeatureNetwork, Moments, frechet_distance

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _chunks
import _evaluation
import _measured_data
import _networks
import _scores
import evaluate
from _chunks import as_bytes
from _measured_data import Data, from_images, from_statistics
from _results import COLUMNS, add_row, write_card
from _tables import read_rows

RNG = np.random.default_rng(0)
CONFIG = mc.nets.UViTConfig(
    8, (mc.nets.Stage("resnet", 4, 1),), classes=3, embedding=8, patch=4
)
pytestmark = pytest.mark.usefixtures("as_users_run")


class Corners(AbstractFeatureNetwork):
    """Four pixels, of whose logits the Inception Score has a closed form."""

    name: str = eqx.field(default="corners, 4-d", static=True)
    resize: str = eqx.field(default="none", static=True)
    dims = 4
    classes = 4

    def __call__(self, images):
        return images[:, 0, :8:4, :8:4].reshape(len(images), 4)

    def logits(self, features):
        return 0.0 * features


def pixels(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 8, 8, 3), np.uint8)


@pytest.fixture
def images():
    labels = RNG.integers(0, 3, 90).astype(np.int32)
    return mc.data.Images(pixels(90), labels, tuple("abc"), "noise")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.eqx"
    network = CONFIG.build(key=jax.random.key(0))
    mc.save_model(path, mc.Denoiser(network, mc.Cosine()))
    return path


@pytest.fixture
def tiny(monkeypatch, images, tmp_path):
    """Chunks of 16 images, features that need no weights, and data of noise."""
    for module in (_chunks, _evaluation, _measured_data):
        monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(_measured_data, "_ROWS", 20)
    monkeypatch.setitem(evaluate.NETWORKS, "efficientnet", lambda *_: Corners())
    monkeypatch.setitem(evaluate.DATA, "openmoji", lambda _: images)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.chdir(tmp_path)


def rows_of(table: Path) -> list[dict]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_model_gives_a_row_a_seed_and_a_card_and_nothing_twice(tiny, model, images):
    config = evaluate.Config(
        model, steps=2, samples=40, seeds=(0, 1, 2), out=Path("out")
    )
    table = evaluate.main(config)
    before = table.read_bytes()
    rows = rows_of(table)
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert float(row["frechet"]) > 0
        assert float(row["inception_score"]) == pytest.approx(1.0)
        assert row["floor_samples"] == row["neighbours"] == "40"
        assert row["network"] == "corners, 4-d"
        assert row["resize"] == "none"
        assert (row["reference"], row["reference_samples"]) == ("noise", "90")
        assert row["reference_sha256"] == _measured_data.digest(images.pixels)
        assert (row["steps"], row["sampler"], row["samples"]) == ("2", "ddim", "40")
    (card,) = (json.loads(path.read_text()) for path in Path("out").glob("*.json"))
    values = [float(row["frechet"]) for row in rows]
    summary = card["summary"]["frechet"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    # Student's t with two degrees of freedom is (2 p - 1) / sqrt(2 p (1 - p)).
    t = 0.95 / np.sqrt(2 * 0.975 * 0.025)
    half = t * np.std(values, ddof=1) / np.sqrt(3)
    assert summary["interval"][1] == pytest.approx(np.mean(values) + half)
    assert evaluate.main(config) == table
    assert table.read_bytes() == before
    (kept,) = Path("out").rglob("reference.npz")
    data = from_statistics(kept, Corners(), Path("out"))
    assert (data.reference.name, data.reference.count) == ("noise", 90)
    evaluate.main(replace(config, seeds=(0,)))
    cards = [json.loads(path.read_text()) for path in Path("out").glob("*.json")]
    assert sorted(len(card["seeds"]) for card in cards) == [1, 3]


def test_the_distance_is_that_of_the_samples_that_the_model_gives(
    tiny, model, images, tmp_path
):
    loaded = mc.load(model)
    data = from_images(images, Corners(), tmp_path / "features")
    labels = np.arange(21, dtype=np.int32) % 3
    common = {"shape": (3, 8, 8), "labels": labels, "samples": 21, "seed": 4}
    common |= {"against": [data]}
    grid, folder = mc.uniform_grid(2), tmp_path / "a"
    (found,) = _evaluation.evaluate(loaded, mc.DDIM(), grid, folder=folder, **common)
    x = []
    for start, n in ((0, 16), (16, 5)):
        noise = np.random.default_rng([4, 2, start]).standard_normal(
            (16, 3, 8, 8), np.float32
        )
        key = jax.random.fold_in(jax.random.key(4), start)
        part = np.resize(labels[start : start + n], 16)
        x.append(mc.generate(loaded, mc.DDIM(), grid, noise, part, key=key)[:n])
    own = as_bytes(np.concatenate(x))[:, 0, ::4, ::4].reshape(21, 4)
    whole = images.take(np.arange(90)).x[:, 0, ::4, ::4].reshape(90, 4)
    expected = frechet_distance(Moments.of(own), Moments.of(np.asarray(whole)))
    assert found["frechet"] == pytest.approx(expected, rel=1e-5)
    order = np.random.default_rng(0).permutation(90)
    floor = frechet_distance(
        Moments.of(np.asarray(whole[order[:21]])),
        Moments.of(np.asarray(whole[order[21:]])),
    )
    assert found["floor"] == pytest.approx(floor, rel=1e-5)
    other = tmp_path / "b"
    (again,) = _evaluation.evaluate(
        loaded, mc.DDIM(), grid, folder=other, batch_size=7, **common
    )
    assert again["frechet"] == pytest.approx(found["frechet"], rel=1e-4)
    assert again["id"] == found["id"]
    balanced = mc.ADDIM(balanced=True)
    (other,) = _evaluation.evaluate(loaded, balanced, grid, folder=folder, **common)
    assert other["id"] != found["id"]


def test_samples_are_the_nearest_of_256_levels_and_clipped():
    levels = np.arange(256) / 127.5 - 1
    for off in (-0.4, 0.0, 0.4):
        found = as_bytes((levels + off / 127.5)[:, None])[:, 0]
        np.testing.assert_allclose(found, levels, atol=1e-12)
    np.testing.assert_array_equal(as_bytes(np.array([[-3.0], [3.0]])), [[-1], [1]])


def test_each_option_has_a_result_of_its_own(tiny, images, tmp_path):
    config = replace(CONFIG, guidance_input=True)
    made = mc.Denoiser(config.build(key=jax.random.key(0)), mc.Cosine())
    data = from_images(images, Corners(), tmp_path / "features")
    zeros, ones = np.zeros(20, np.int32), np.ones(20, np.int32)
    common = {"labels": zeros, "samples": 20, "seed": 0, "guidance": 1.0}
    changes = (
        {},
        {"grid": mc.uniform_grid(2)},
        {"labels": ones},
        {"seed": 1},
        {"guidance": 2.0},
        {"samples": 19, "labels": zeros[1:]},
    )
    found = set()
    for change in changes:
        options = {"grid": mc.uniform_grid(1)} | common | change
        (row,) = _evaluation.evaluate(
            made,
            mc.DDIM(),
            options.pop("grid"),
            shape=(3, 8, 8),
            against=[data],
            folder=tmp_path,
            **options,
        )
        found.add(row["id"])
    assert len(found) == len(changes)


def test_of_statistics_classes_come_equally_often_by_the_sampler_named(
    tiny, model, monkeypatch
):
    rows = as_bytes(pixels(60)[:, ::4, ::4, 0].reshape(60, 4) / 127.5 - 1)
    np.savez("edm.npz", mu=rows.mean(0), sigma=np.cov(rows.T))
    asked = []

    def evaluated(model, sampler, *_, labels, **__):
        asked.append((type(sampler), labels))
        raise SystemExit

    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    common = {"steps": 1, "statistics": Path("edm.npz"), "out": Path("out")}
    samplers = {
        "heun": mc.Heun,
        "addim": mc.ADDIM,
        "ddpm": mc.DDPM,
        "dpm-solver": mc.DPMSolver,
    }
    for name in samplers:
        config = evaluate.Config(model, samples=300, sampler=name, **common)
        with pytest.raises(SystemExit):
            evaluate.main(config)
    assert [kind for kind, _ in asked] == list(samplers.values())
    for _, labels in asked:
        # Of 300 fair draws from three: within four standard deviations.
        counts = np.bincount(labels, minlength=3)
        assert (np.abs(counts - 100) < 4 * np.sqrt(300 * 2 / 9)).all()


def test_a_sampler_is_known_by_its_options_and_its_code(monkeypatch):
    digest = _evaluation.sampler_digest
    every = (mc.DDIM(), mc.DDPM(), mc.ADDIM(), mc.ADDIM(literal=True))
    assert len({digest(sampler) for sampler in every}) == len(every)
    before = digest(mc.DDIM())
    assert digest(mc.DDIM()) == before
    text = _evaluation.tree_digest(mc.DDIM())
    # The formulas of a step and of the schedule are code of the sampler too.
    source = inspect.getsource
    for part in (type(mc.DDIM()), mc.ddim, mc.Cosine):
        edited = inspect.getmodule(part)
        monkeypatch.setattr(
            _evaluation.inspect,
            "getsource",
            lambda module, edited=edited: source(module) + "#" * (module is edited),
        )
        assert digest(mc.DDIM()) != before
    assert _evaluation.tree_digest(mc.DDIM()) == text


def test_a_digest_shows_fields_that_have_their_defaults():
    class First(eqx.Module):
        pass

    class Then(eqx.Module):
        new: bool = eqx.field(default=False, static=True)

    Then.__name__ = First.__name__
    digest = _evaluation.tree_digest
    assert digest(Then()) != digest(First())
    assert digest(Then(new=True)) != digest(Then())


class _Killed(BaseException):
    pass


def test_an_evaluation_that_is_cut_goes_on_with_the_same_result(
    tiny, model, images, tmp_path, monkeypatch
):
    loaded = mc.load(model)
    labels = np.zeros(60, np.int32)
    calls, real = [], mc.generate

    def result(folder: Path):
        data = from_images(images, Corners(), folder)
        return _evaluation.evaluate(
            loaded,
            mc.ADDIM(),
            mc.uniform_grid(2),
            shape=(3, 8, 8),
            labels=labels,
            samples=60,
            seed=0,
            against=[data],
            folder=folder,
        )

    def cut(*arguments, **options):
        calls.append(len(arguments[3]))
        if len(calls) in (2, 4):
            raise _Killed
        return real(*arguments, **options)

    expected = result(tmp_path / "whole")
    monkeypatch.setattr(_evaluation.mc, "generate", cut)
    for _ in range(2):
        with pytest.raises(_Killed):
            result(tmp_path / "cut")
    assert result(tmp_path / "cut") == expected
    # four chunks and the two that were cut
    assert calls == [16] * 6
    assert result(tmp_path / "cut") == expected
    assert len(calls) == 6


def test_moments_of_the_data_go_on_where_they_were(tiny, images, tmp_path, monkeypatch):
    real, left = mc.metrics.features, [2]

    def cut(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise _Killed
        return real(*arguments, **options)

    expected = from_images(images, Corners(), tmp_path / "whole")
    monkeypatch.setattr(_measured_data.mc.metrics, "features", cut)
    with pytest.raises(_Killed):
        from_images(images, Corners(), tmp_path / "cut")
    left[0] = 1
    found = from_images(images, Corners(), tmp_path / "cut")
    np.testing.assert_array_equal(found.rest.scatter, expected.rest.scatter)
    np.testing.assert_array_equal(found.reference.law.mean, expected.reference.law.mean)
    assert found.reference.count == 90


def test_headroom_changes_nothing_about_the_data(tiny, images, tmp_path):
    hard = replace(images, pixels=np.where(images.pixels < 128, 0, 255).astype("u1"))
    room = from_images(replace(hard, headroom=0.2), Corners(), tmp_path / "room")
    plain = from_images(hard, Corners(), tmp_path / "plain")
    np.testing.assert_array_equal(room.kept, plain.kept)
    np.testing.assert_array_equal(
        room.reference.law.covariance(), plain.reference.law.covariance()
    )
    assert room.reference.sha256 == plain.reference.sha256


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.706), (11, 2.228), (31, 2.042)])
def test_a_card_has_students_interval_of_any_number_of_seeds(tmp_path, seeds, t):
    values = np.arange(seeds) ** 2.0
    rows = [{"seed": i, "frechet": v} for i, v in enumerate(values.tolist())]
    summary = write_card(tmp_path / "card.json", rows)["frechet"]
    # Student's t at 97.5%, as printed tables have it.
    half = t * values.std(ddof=1) / np.sqrt(seeds)
    assert summary["interval"][1] - summary["mean"] == pytest.approx(half, rel=3e-4)
    assert summary["mean"] - summary["interval"][0] == pytest.approx(half, rel=3e-4)


@pytest.mark.parametrize("taken", [50, 180])
def test_an_interval_of_choices_from_the_same_images_covers_what_it_should(
    tmp_path, taken
):
    rng = np.random.default_rng(1)
    covered, count = 0, 300
    for _ in range(count):
        every = rng.normal(size=200)
        values = [rng.permutation(every)[:taken].mean() for _ in range(3)]
        rows = [{"seed": i, "frechet": v} for i, v in enumerate(values)]
        shared = taken / (200 - taken)
        summary = write_card(tmp_path / "card.json", rows, shared=shared)["frechet"]
        low, high = summary["interval"]
        covered += low < 0.0 < high
    # Four standard deviations of a binomial of 95%.
    assert abs(covered / count - 0.95) < 4 * np.sqrt(0.95 * 0.05 / count)


def test_no_row_is_lost_where_several_add_to_one_table(tmp_path):
    table = tmp_path / "new" / "t.csv"
    with ThreadPoolExecutor(4) as pool:
        rows = [{"id": str(i), "name": i} for i in range(40)]
        added = list(pool.map(lambda row: add_row(table, row), [*rows, *rows]))
    assert sum(added) == 40
    assert {row["id"] for row in read_rows(table, COLUMNS)} == set(map(str, range(40)))
    link = tmp_path / "link.csv"
    link.symlink_to(table)
    assert add_row(link, {"id": "40", "name": 40})
    assert link.is_symlink()
    assert len(read_rows(table, COLUMNS)) == 41


def test_what_former_code_of_the_metrics_gave_counts_no_more(
    tiny, images, tmp_path, monkeypatch
):
    data = from_images(images, Corners(), tmp_path)

    def measured():
        return _evaluation.evaluate_images(
            pixels(30, seed=1), samples=20, seed=0, data=data, folder=tmp_path
        )

    with monkeypatch.context() as former:
        former.setattr(_evaluation, "code_digest", lambda: "former")
        former.setattr(_evaluation, "scores", lambda rows, data: {"frechet": -1.0})
        assert measured()["frechet"] == measured()["frechet"] == -1.0
    monkeypatch.setattr(_chunks, "features", lambda *_, **__: pytest.fail("again"))
    monkeypatch.setattr(_evaluation, "scaled", lambda x: pytest.fail("again"))
    assert measured()["frechet"] > 0.0
    assert len(list(tmp_path.glob("*/result_*.json"))) == 2
    source, before = inspect.getsource, _scores.code_digest()
    for part in (Moments, mc.metrics.kernel_distance, _scores.scores):
        edited = inspect.getmodule(part)
        monkeypatch.setattr(
            _scores.inspect,
            "getsource",
            lambda module, edited=edited: source(module) + "#" * (module is edited),
        )
        assert _scores.code_digest() != before


def test_a_damaged_file_is_named_with_what_to_do(tiny, images, tmp_path):
    def measured():
        data = from_images(images, Corners(), tmp_path)
        return _evaluation.evaluate_images(
            pixels(30, seed=1), samples=20, seed=0, data=data, folder=tmp_path
        )["frechet"]

    expected = measured()
    for name in ("features_*.npy", "rest.npz", "result_*.json"):
        path = next(tmp_path.rglob(name))
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{path.name} is damaged .* remove"):
                measured()
        path.unlink()
        assert measured() == expected


def test_batches_are_no_larger_than_what_there_is(tiny, images, tmp_path, monkeypatch):
    sizes, real = [], mc.metrics.features

    def seen(network, x, *, batch_size):
        sizes.append(batch_size)
        return real(network, x, batch_size=batch_size)

    monkeypatch.setattr(_chunks, "features", seen)
    monkeypatch.setattr(_measured_data.mc.metrics, "features", seen)
    from_images(images, Corners(), tmp_path, batch_size=1000)
    # Chunks of 16 for those that are kept, of 20 for the others.
    assert sizes == [16] * 3 + [20] * 3


def test_features_that_are_there_serve_who_may_only_read(tiny, images, tmp_path):
    made = from_images(images, Corners(), tmp_path)
    (kept,) = tmp_path.rglob("reference.npz")
    before = kept.stat()
    again = from_images(images, Corners(), tmp_path)
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    np.testing.assert_array_equal(again.kept, made.kept)


def test_images_of_any_program_are_measured(tiny, images, tmp_path):
    np.savez("samples.npz", pixels(50, seed=1))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pixels(50, seed=1)):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    tables = [
        evaluate.main(
            evaluate.Config(images=Path(source), samples=50, out=Path("out") / source)
        )
        for source in ("samples.npz", "pictures")
    ]
    (first,), (second,) = map(rows_of, tables)
    assert first["frechet"] == second["frechet"]
    assert first["model"] == second["model"]
    assert (first["name"], second["name"]) == ("samples.npz", "pictures")
    own = pixels(50, seed=1)[:, ::4, ::4, 0].reshape(50, 4) / 127.5 - 1
    data = pixels(90)[:, ::4, ::4, 0].reshape(90, 4) / 127.5 - 1
    expected = frechet_distance(Moments.of(own), Moments.of(data))
    assert float(first["frechet"]) == pytest.approx(expected, rel=1e-4)
    config = evaluate.Config(images=Path("samples.npz"), samples=40, seeds=(0, 1))
    rows = rows_of(evaluate.main(replace(config, out=Path("both"))))
    a, b = (float(row["frechet"]) for row in rows)
    (card,) = Path("both").glob("*.json")
    low, high = json.loads(card.read_text())["summary"]["frechet"]["interval"]
    # Two choices of 40 of 50 share most: means of n of N differ by 1 - n / N of what
    # they err. 12.7062 is Student's for one degree of freedom.
    error = abs(a - b) / 2**0.5 * (1 / 2 + 40 / 10) ** 0.5
    assert high - low == pytest.approx(2 * 12.7062 * error, rel=1e-4)


def test_statistics_stand_in_for_data_and_adms_images_for_its_features(
    tmp_path, tiny, images
):
    rows = pixels(60)[:, ::4, ::4, 0].reshape(60, 4) / 127.5 - 1
    law = {"mu": rows.mean(0), "sigma": np.cov(rows.T)}
    np.savez("edm.npz", **law)
    found = from_statistics(Path("edm.npz"), Corners(), tmp_path)
    assert found == Data(found.network, found.reference)
    np.savez("samples.npz", pixels(50, seed=1))
    table = evaluate.main(
        evaluate.Config(
            images=Path("samples.npz"),
            samples=50,
            statistics=Path("edm.npz"),
            out=Path("out"),
        )
    )
    (row,) = rows_of(table)
    assert row["reference"].startswith("edm.npz")
    assert row["kernel"] == row["floor"] == row["reference_samples"] == ""
    law |= {"mu_s": rows[0], "sigma_s": rows[:1], "arr_0": pixels(60)}
    np.savez("adm.npz", **law)
    inception = "FID Inception 2015-12-05, 2048-d"
    resize = "bilinear to 299, corners, as TensorFlow's graph"
    network = Corners(inception, resize)
    for name in ("samples (ADM).npz", "stripped.npz"):
        np.savez(name, **{k: v for k, v in law.items() if k != "arr_0"})
        assert from_statistics(Path(name), network, tmp_path).kept is None
    found = from_statistics(Path("adm.npz"), network, tmp_path)
    np.testing.assert_allclose(found.kept.mean(0), rows.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="choose the same network"):
        from_statistics(Path("adm.npz"), Corners(), tmp_path)
    for shape in ((1, 8, 8), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"of images \(3, 8, 8\), the samples are"):
            from_statistics(Path("adm.npz"), network, tmp_path, shape=shape)
    from_images(images, Corners(), tmp_path)
    (own,) = tmp_path.glob("*/reference.npz")
    with pytest.raises(ValueError, match=r"of images \(3, 8, 8\), the samples are"):
        from_statistics(own, Corners(), tmp_path, shape=(1, 8, 8))
    np.savez("large.npz", np.tile(pixels(5), (1, 2, 2, 1)))
    larger = evaluate.Config(images=Path("large.npz"), samples=5, statistics=own)
    with pytest.raises(ValueError, match=r"of images \(3, 8, 8\), the samples are"):
        evaluate.main(larger)


def test_inputs_are_looked_at_before_the_data(tiny, model, monkeypatch):
    monkeypatch.setattr(evaluate, "from_images", lambda *_: pytest.fail("too late"))
    mlp = mc.nets.MLPConfig(2, 8, 1, embedding=8).build(key=jax.random.key(0))
    mc.save_model("mlp.eqx", mc.Denoiser(mlp, mc.Cosine()))
    takes = replace(CONFIG, guidance_input=True).build(key=jax.random.key(0))
    mc.save_model("takes.eqx", mc.Denoiser(takes, mc.Cosine()))
    np.savez("few.npz", pixels(5))
    np.savez("large.npz", np.tile(pixels(5), (1, 2, 2, 1)))
    np.savez("grey.npz", pixels(5)[..., :1])
    Path("other.csv").write_text("a,b\n1,2\n")
    for changes, error, message in (
        (
            {"images": Path("few.npz")},
            ValueError,
            "50000 samples are asked for, of 5 images",
        ),
        ({"checkpoint": model, "seeds": (0, -1)}, ValueError, r"seeds\[1\] is 0 or"),
        ({"checkpoint": model, "guidance": np.nan}, ValueError, "finite and above -1"),
        ({"checkpoint": model, "guidance": 1.0}, ValueError, "needs a label, unless"),
        ({"checkpoint": Path("takes.eqx")}, ValueError, "needs a guidance scale"),
        (
            {"checkpoint": Path("takes.eqx"), "guidance": -0.5},
            ValueError,
            "guidance is 0 or more, got -0.5",
        ),
        (
            {"checkpoint": model, "table": Path("other.csv")},
            ValueError,
            "other.csv has other columns",
        ),
        ({"checkpoint": Path("typo.eqx")}, FileNotFoundError, r"typo\.eqx"),
        ({"checkpoint": Path("mlp.eqx")}, ValueError, "MLPConfig, which draws no"),
        ({"images": Path("typo.npz")}, FileNotFoundError, r"typo\.npz"),
        ({"checkpoint": model, "steps": 0}, ValueError, "steps is 1 or more"),
        ({"checkpoint": model, "samples": 1}, ValueError, "samples is 2 or more"),
        ({"checkpoint": model, "seeds": ()}, ValueError, "seeds is 1 or more"),
        ({"checkpoint": model, "seeds": (3, 3)}, ValueError, r"\(3, 3\): give each"),
        ({"images": Path("few.npz"), "guidance": 1.0}, ValueError, "guidance is for a"),
        (
            {"images": Path("few.npz"), "samples": 5, "seeds": (0, 1)},
            ValueError,
            "the same for every one of 2 seeds",
        ),
        (
            {"images": Path("large.npz"), "samples": 5},
            ValueError,
            r"large\.npz has images of \(16, 16, 3\), .* of \(8, 8, 3\)",
        ),
        (
            {"images": Path("grey.npz"), "samples": 5},
            ValueError,
            r"grey\.npz has images of \(8, 8, 1\), .* of \(8, 8, 3\)",
        ),
        (
            {"checkpoint": model, "data_path": Path(), "statistics": Path("a.npz")},
            ValueError,
            "--statistics or --data-path",
        ),
    ):
        with pytest.raises(error, match=message):
            evaluate.main(evaluate.Config(**changes))
    assert Path("other.csv").read_text() == "a,b\n1,2\n"


def test_a_scale_guides_a_model_with_a_null_class_or_is_its_input(tiny, images):
    distances = []
    for field, guide in (("null_class", mc.Guided), ("guidance_input", None)):
        network = replace(CONFIG, **{field: True}).build(key=jax.random.key(0))
        # Fresh networks begin with zeros, and heed nothing.
        weights, rest = eqx.partition(network, eqx.is_array)
        weights = jax.tree.map(
            lambda w: w + 0.3 * RNG.normal(size=w.shape).astype(w.dtype), weights
        )
        network = eqx.combine(weights, rest)
        saved = mc.Denoiser(network, mc.Cosine())
        mc.save_model("own.eqx", saved)
        config = evaluate.Config(
            Path("own.eqx"), samples=20, steps=1, guidance=2.0, out=Path(field)
        )
        (row,) = rows_of(evaluate.main(config))
        assert (row["guidance"], row["steps"]) == ("2.0", "1")
        labels = _evaluation.drawn_labels(images.labels, 20, 0)
        model = saved if guide is None else guide(saved, mc.Guidance(2.0))
        (expected,) = _evaluation.evaluate(
            model,
            mc.DDIM(),
            mc.uniform_grid(1),
            shape=(3, 8, 8),
            labels=labels,
            samples=20,
            seed=0,
            against=[from_images(images, Corners(), Path("features"))],
            folder=Path("apart"),
            guidance=2.0 if guide is None else None,
        )
        assert float(row["frechet"]) == pytest.approx(expected["frechet"], rel=1e-6)
        distances.append(row["frechet"])
        other = replace(config, guidance=0.0, out=Path(f"{field}_0"))
        assert rows_of(evaluate.main(other))[0]["frechet"] != row["frechet"]
    assert distances[0] != distances[1]


def test_moments_alone_do_not_stand_for_the_data_that_they_are_of(tiny, images):
    np.savez("samples.npz", pixels(50, seed=1))
    config = evaluate.Config(images=Path("samples.npz"), samples=50, out=Path("out"))
    from_images(images, Corners(), Path("once"))
    (kept,) = Path("once").rglob("reference.npz")
    evaluate.main(replace(config, statistics=kept))
    less, more = rows_of(evaluate.main(config))
    for name in ("reference", "reference_sha256", "reference_samples", "model"):
        assert less[name] == more[name]
    assert float(less["frechet"]) == pytest.approx(float(more["frechet"]))
    assert less["kernel"] == less["floor"] == less["precision"] == ""
    assert all(more[name] for name in ("kernel", "floor", "precision"))


def test_what_cannot_work_is_refused(tiny, model, images, monkeypatch):
    with pytest.raises(ValueError, match="and not both"):
        evaluate.main(evaluate.Config())
    few = mc.data.Images(images.pixels, 0 * images.labels, ("a",), "few")
    doubled = np.tile(images.pixels, (1, 2, 2, 1))
    large = mc.data.Images(doubled, images.labels, tuple("abc"), "large")
    for name, other in (("cifar10", few), ("imagenet64", large)):
        monkeypatch.setitem(evaluate.DATA, name, lambda _, other=other: other)
    with pytest.raises(ValueError, match="few has 1 classes, the model 3"):
        evaluate.main(evaluate.Config(model, data="cifar10"))
    with pytest.raises(ValueError, match=r"large has images \(3, 16, 16\), the model"):
        evaluate.main(evaluate.Config(model, data="imagenet64"))
    with pytest.raises(ValueError, match="1 of 2 samples are not finite"):
        as_bytes(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="needs --weights"):
        evaluate.main(evaluate.Config(model, network="inception"))


def test_data_that_lie_in_no_folder_are_not_looked_for_in_one():
    with pytest.raises(ValueError, match=r"name the --data that is in pictures"):
        evaluate.DATA["openmoji"](Path("pictures"))


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_result(tmp_path):
    path = tmp_path / "tiny.eqx"
    config = mc.nets.UViTConfig(
        64, (mc.nets.Stage("resnet", 4, 1),), classes=9, embedding=8, patch=16
    )
    network = config.build(key=jax.random.key(0))
    mc.save_model(path, mc.Denoiser(network, mc.Cosine()))

    def launch(out: Path) -> subprocess.Popen:
        command = [sys.executable, evaluate.__file__, "--checkpoint", str(path)]
        command += ["--samples", "1500", "--network", "efficientnet-block5"]
        command += ["--out", str(out)]
        environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = launch(killed)
    while not list(killed.glob("samples/*/features_*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(killed.glob("samples/*/result_*.json"))
    shutil.copytree(killed / "features", whole / "features")
    for out in (killed, whole):
        process = launch(out)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
    (a,), (b,) = (rows_of(out / "evaluations.csv") for out in (killed, whole))
    different = {name for name in a if a[name] != b[name]}
    assert different == {"command"}


class Sure(Corners):
    """Corners whose logits tell the images apart."""

    def logits(self, features):
        return 3.0 * features


def test_scores_are_those_of_the_samples_against_the_images():
    rng = np.random.default_rng(0)
    kept, rest = rng.standard_normal((2, 40, 4))
    rows = 0.01 * rng.standard_normal((40, 4))
    whole = Moments.of(np.concatenate([kept, rest]))
    reference = types.SimpleNamespace(law=whole)
    data = Data(Sure(), reference, kept, Moments.of(rest))
    found = _scores.scores(rows, data)
    # The samples lie close together in the midst of the images.
    assert found["precision"] == 1.0
    assert found["recall"] < 0.2
    assert found["coverage"] < 0.5
    assert found["inception_deviation"] > 0.0
    kernel = mc.metrics.kernel_distance(rows, kept, subsets=20, size=20)
    assert (found["kernel"], found["kernel_error"]) == kernel
    assert kernel.value > 2 * kernel.error > 0.0


def test_classes_come_as_often_as_the_data_have_them():
    labels = np.repeat(np.arange(2, dtype=np.int32), (90, 10))
    found = _evaluation.drawn_labels(labels, 1000, 0)
    assert abs(np.sum(found == 0) - 900) < 4 * np.sqrt(1000 * 0.9 * 0.1)


def test_two_models_have_results_of_their_own(images, tmp_path):
    data = from_images(images, Corners(), tmp_path)
    options = {"labels": np.zeros(9, np.int32), "samples": 9, "seed": 0}
    options |= {"against": [data], "folder": tmp_path, "shape": (3, 8, 8)}
    found = set()
    for scale in (0.0, 1.0):
        network = CONFIG.build(key=jax.random.key(0))
        arrays, rest = eqx.partition(network, eqx.is_array)
        arrays = jax.tree.map(lambda a, scale=scale: a + scale, arrays)
        network = eqx.combine(arrays, rest)
        model = mc.Denoiser(network, mc.Cosine())
        grid = mc.uniform_grid(1)
        (row,) = _evaluation.evaluate(model, mc.DDIM(), grid, **options)
        found |= {row["id"], row["frechet"]}
    assert len(found) == 4


class Halved(Corners):
    def __call__(self, images):
        return 0.5 * super().__call__(images)


def test_features_of_another_resize_are_not_taken_for_these(images, tmp_path):
    first = from_images(images, Corners(), tmp_path)
    other = from_images(images, Halved(resize="halved"), tmp_path)
    np.testing.assert_allclose(other.kept, 0.5 * first.kept)


def test_inceptions_are_loaded_as_they_are_named(monkeypatch):
    def load(weights, like, **_):
        return like

    monkeypatch.setattr(_networks.Inception, "load", load)
    found = {
        name: _networks.NETWORKS[name](Path("weights"), None)
        for name in ("inception", "inception-pytorch-fid")
    }
    assert found == {
        "inception": "tensorflow",
        "inception-pytorch-fid": "pytorch-fid",
    }
