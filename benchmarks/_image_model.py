"""A model file that draws images, checked against the data it is measured by."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _recipes import at_least

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


def guided(model: Any, scale: float | None) -> tuple[Any, float | None]:
    """What is sampled, and the scale that it takes as an input.

    Raises ValueError for a scale that `model` cannot heed, or for one that it lacks.
    """
    about, shape = model.network.config, image_shape(model)
    guidance = None if scale is None else mc.Guidance(scale)
    if guidance is not None and not about.guidance_input:
        model, scale = mc.Guided(model, guidance), None
    elif scale is not None:
        at_least(0, guidance=scale)
    label = None if about.classes is None else 0
    z = jax.ShapeDtypeStruct(shape, jnp.float32)
    eqx.filter_eval_shape(lambda z: model(z, 0.5, label, guidance=scale), z)
    return model, scale


def image_shape(model: Any) -> tuple[int, int, int]:
    """Shape (channel, height, width) of the images that `model` draws."""
    about = model.network.config
    return about.channels, about.image_size, about.image_size
