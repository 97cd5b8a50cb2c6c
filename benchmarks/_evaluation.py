"""A model's samples, or given images, measured once; a killed evaluation goes on."""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import wadler_lindig
from _chunks import CHUNK, as_bytes, chunked_features, named_if_damaged
from _measured_data import Data, digest, scaled
from _recipes import at_least, whole
from _scores import code_digest, scores

import mcmeqx as mc


def drawn_labels(labels: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Labels (samples,) drawn from `labels`: classes as often as the data have them."""
    return np.random.default_rng([seed, 1]).choice(labels, samples)


def evaluate(
    model: Any,
    sampler: mc.AbstractSampler,
    grid: np.ndarray,
    *,
    shape: tuple[int, int, int],
    labels: np.ndarray | None,
    samples: int,
    seed: int,
    against: Sequence[Data],
    folder: Path,
    guidance: float | None = None,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """The metrics of `samples` images of `model`, with all that they depend on.

    They are drawn once, and measured against each of `against`. `labels` (samples,)
    are int32, or None for a model without classes. Noise and keys follow from the seed
    and a sample's number, so that models and samplers are compared from the same noise,
    and neither `batch_size` nor a kill changes anything. What is under way lies in a
    folder of `folder` that is named by model, sampler and options; a finished result is
    read from there.
    """
    at_least(2, samples=samples)
    at_least(0, seed=seed)
    if labels is not None and len(labels) != samples:
        raise ValueError(f"{samples} samples need as many labels, got {len(labels)}")
    about = {
        "model": tree_digest(model),
        "sampler": sampler_digest(sampler),
        "grid": digest(np.asarray(grid)),
        "labels": "" if labels is None else digest(labels),
        "guidance": "" if guidance is None else guidance,
        "samples": samples,
        "seed": seed,
        "chunk": CHUNK,
    }

    options = {"guidance": guidance, "batch_size": batch_size}
    make = partial(_sampled, model, sampler, grid, shape, labels, seed, options)
    return _measured(make, about, against, folder, batch_size)


def _sampled(model, sampler, grid, shape, labels, seed, options, start: int, n: int):
    """Samples `start` to `start + n`, of noise and keys of their own.

    A last, smaller chunk is sampled whole and cut: so it needs no executable of its
    own, and a smaller number of samples is the beginning of a larger.
    """
    noise = np.random.default_rng([seed, 2, start])
    x = mc.generate(
        model,
        sampler,
        grid,
        noise.standard_normal((CHUNK, *shape), np.float32),
        None if labels is None else np.resize(labels[start : start + n], CHUNK),
        key=jax.random.fold_in(jax.random.key(seed), start),
        **options,
    )
    return as_bytes(x[:n])


def evaluate_images(
    pixels: np.ndarray,
    *,
    samples: int,
    seed: int,
    data: Data,
    folder: Path,
    batch_size: int = 64,
) -> dict[str, Any]:
    """The metrics of `samples` of the images uint8 (n, height, width, channel).

    They are a random choice by `seed`, in random order, `samples` at most.
    """
    at_least(2, samples=samples)
    order = np.random.default_rng([seed, 3]).permutation(len(pixels))[:samples]
    about = {"model": digest(pixels), "samples": samples, "seed": seed}

    def make(start: int, n: int) -> np.ndarray:
        return scaled(pixels[order[start : start + n]])

    return _measured(make, about, [data], folder, batch_size)[0]


def tree_digest(tree: Any) -> str:
    """SHA-256 of what a model or a sampler is: its structure and its arrays."""
    arrays = [
        np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    ]
    text = wadler_lindig.pformat(tree, hide_defaults=False) + digest(*arrays)
    return hashlib.sha256(text.encode()).hexdigest()


def sampler_digest(sampler: mc.AbstractSampler) -> str:
    """`tree_digest`, with the code that samples: of former one, nothing counts."""
    kinds = [k for k in type(sampler).__mro__ if issubclass(k, mc.AbstractSampler)]
    modules = dict.fromkeys(map(inspect.getmodule, [*kinds, mc.ddim, mc.Cosine]))
    text = tree_digest(sampler) + "".join(inspect.getsource(m) for m in modules if m)
    return hashlib.sha256(text.encode()).hexdigest()


def _measured(
    make: Callable[[int, int], np.ndarray],
    about: dict[str, Any],
    against: Sequence[Data],
    folder: Path,
    batch_size: int,
) -> list[dict[str, Any]]:
    every = [about | _said(data) for data in against]
    texts = [json.dumps(own) for own in every]
    # What former code of the metrics gave counts no more; features do.
    code = code_digest()
    ids = [_short(text + code) for text in texts]
    paths = [
        folder / _short(text) / f"result_{own}.json"
        for text, own in zip(texts, ids, strict=True)
    ]
    if not all(path.exists() for path in paths):
        features = chunked_features(
            make,
            about["samples"],
            [(d.network, path.parent) for d, path in zip(against, paths, strict=True)],
            batch_size=batch_size,
            describe="samples and their features",
        )
        for i, rows in enumerate(features):
            result = {"id": ids[i]} | every[i] | scores(rows, against[i])
            with whole(paths[i]) as part:
                part.write_text(json.dumps(result, indent=1) + "\n")
    found = []
    for path in paths:
        with named_if_damaged(path):
            found.append(json.loads(path.read_text()))
    return found


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _said(data: Data) -> dict[str, Any]:
    """What a result says of that which it was measured against."""
    # Moments alone give less than the images that they are of.
    less = {} if data.kept is not None else {"moments_alone": True}
    return less | {
        "network": data.network.name,
        "resize": data.network.resize,
        "reference": data.reference.name,
        "reference_sha256": data.reference.sha256,
        "reference_samples": data.reference.count,
    }
