"""A model file that draws images, checked against the data it is measured by."""

from pathlib import Path
from typing import Any

import mcmeqx as mc


def image_model(source: Path, images: mc.data.Images | None) -> Any:
    """The model in `source`.

    Raises ValueError if it draws no images, or none such as `images` (None: any).
    """
    model: Any = mc.load(source)
    about = model.network.config
    if not hasattr(about, "image_size"):
        raise ValueError(
            f"{source} holds a {type(about).__name__}, which draws no images"
        )
    if images is None:
        return model
    shape = image_shape(model)
    if images.shape != shape:
        raise ValueError(f"{images.name} has images {images.shape}, the model {shape}")
    if about.classes not in (None, len(images.classes)):
        raise ValueError(
            f"{images.name} has {len(images.classes)} classes, the model "
            f"{about.classes}"
        )
    return model


def image_shape(model: Any) -> tuple[int, int, int]:
    """Shape (channel, height, width) of the images that `model` draws."""
    about = model.network.config
    return about.channels, about.image_size, about.image_size
