"""A ready model from whatever holds one, without the code that trained it."""

from pathlib import Path

from mcmeqx._checkpoint import load_checkpoint
from mcmeqx._denoiser import Denoiser
from mcmeqx._export import read_weights
from mcmeqx._model_file import read_model


def load(path: Path | str) -> Denoiser:
    """The model in a model file, in exported weights, or in a run's checkpoints.

    `path` is a file of `save_model`, a `.safetensors` file of `export_weights`, a
    checkpoint's step folder, or the folder above, whose newest step is taken; of a
    checkpoint the averaged model is read. Raises FileNotFoundError, ValueError if what
    is there is damaged, or holds no model that the library knows, and ImportError for
    exported weights without `pip install "mcmeqx[export]"`.
    """
    path = Path(path)
    if path.is_dir():
        return load_checkpoint(path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    return read_model(path)
