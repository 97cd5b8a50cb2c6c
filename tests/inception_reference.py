"""Writes `inception_reference.npz`: FID's Inception by torch, on weights of a rule.

    pip install "mcmeqx[test,oracle]"
    python tests/inception_reference.py

The network is pytorch-fid's. Weights and images follow from `weights` and `images`
alone, so the file keeps what comes out, and the names and shapes of the tensors.
"""

import json
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

FILE = Path(__file__).with_suffix(".npz")


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Random tensors that keep activations near 1, each seeded by its name."""

    def one(name: str, shape: list[int]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith(("running_var", "bn.weight")):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if len(shape) == 1:
            return rng.normal(0.0, 0.2, shape).astype(np.float32)
        if not shape:
            return np.zeros(shape, np.int64)
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return {name: one(name, shape) for name, shape in shapes.items()}


def images() -> np.ndarray:
    """Two images (2, 3, 40, 52) in [0, 1], the first smooth, the second noise."""
    rows, columns = np.mgrid[:40, :52].astype(np.float32)
    smooth = 0.5 + 0.5 * np.sin(rows / 7 + columns / np.array([[[5]], [[9]], [[4]]]))
    noise = np.random.default_rng(0).uniform(size=(3, 40, 52))
    return np.stack([smooth, noise]).astype(np.float32)


def by_torch(inputs: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """What pytorch-fid's network makes of `inputs`, and the shapes of its tensors."""
    import torch
    from pytorch_fid import inception

    tensors, load = {}, torch.nn.Module.load_state_dict

    def filled(module, _):
        shapes = {k: list(v.shape) for k, v in module.state_dict().items()}
        tensors.update({k: torch.from_numpy(v) for k, v in weights(shapes).items()})
        return load(module, tensors)

    with (
        mock.patch.object(torch.nn.Module, "load_state_dict", filled),
        mock.patch.object(inception, "load_state_dict_from_url"),
        torch.no_grad(),
    ):
        network = inception.InceptionV3([0, 1, 2, 3]).eval()
        outputs = network(torch.from_numpy(inputs))
        pooled = [x.mean((2, 3)) for x in outputs]
        logits = pooled[3] @ tensors["fc.weight"].T
    names = ("pool1", "pool2", "mixed_6e", "features", "logits")
    found = zip(names, (*pooled, logits), strict=True)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {name: x.numpy() for name, x in found}, shapes


if __name__ == "__main__":
    outputs, shapes = by_torch(images())
    np.savez_compressed(FILE, shapes=json.dumps(shapes), **outputs)
