"""What a model is, as JSON: enough to build it again without its training code.

An object is `{"Class": {field: value, ...}}`, a tuple is a list, and the classes that
can come back are those of `CONFIGS`, `SCHEDULES` and `Stage`. A network is described by
its configuration. Arrays are no part of a description; whoever keeps one keeps them
beside it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mcmeqx._denoiser import Denoiser, eps_prediction, v_prediction, x_prediction
from mcmeqx._schedule import Cosine, Shifted
from mcmeqx._structure import stable_repr
from mcmeqx.nets import MLPConfig, Stage, UNetConfig, UViTConfig
from mcmeqx.nets._network import network_shapes

CONFIGS = (MLPConfig, UNetConfig, UViTConfig)
SCHEDULES = (Cosine, Shifted)
PREDICTIONS = {f.__name__: f for f in (x_prediction, eps_prediction, v_prediction)}
PARTS = ("network", "schedule", "prediction", "dtype")

# Fields on which neither the arrays nor a call without a key depend.
TRAINING_ONLY = ("dropout", "remat")


def describe(model: Denoiser) -> dict[str, Any]:
    """JSON of the network's configuration, the schedule, prediction and precision.

    A part of a class that is not the library's own is described by its name alone, or
    by its `repr` without addresses for a schedule: enough to compare, and refused by
    `rebuild`.
    """
    network: Any = model.network
    stated = network if network.config is None else network.config
    return {
        "network": _encode(stated, {type(stated).__name__: None}),
        "schedule": _encode(model.schedule, stable_repr(model.schedule)),
        "prediction": _prediction(model.to_x),
        "dtype": jnp.dtype(model.dtype).name,
    }


def _prediction(to_x: Any) -> str:
    name = getattr(to_x, "__name__", stable_repr(to_x))
    return name if PREDICTIONS.get(name, to_x) is to_x else f"your own {name}"


def _encode(value: Any, unknown: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, tuple | list):
        return [_encode(each, stable_repr(each)) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) not in (*CONFIGS, *SCHEDULES, Stage):
        return unknown
    names = [field.name for field in dataclasses.fields(value)]
    values = {name: getattr(value, name) for name in names}
    fields = {n: _encode(v, stable_repr(v)) for n, v in values.items()}
    return {type(value).__name__: fields}


def rebuild(about: dict[str, Any]) -> Denoiser:
    """The model that `describe` described, with shapes for arrays.

    Raises ValueError that names the part which is missing, or which this version of the
    library does not know.
    """
    _check_parts(about)
    prediction = about["prediction"]
    if prediction not in PREDICTIONS:
        raise _unknown("prediction", prediction, PREDICTIONS)
    config = _decode("network", about["network"], CONFIGS)
    schedule = _decode("schedule", about["schedule"], SCHEDULES)
    try:
        network, dtype = network_shapes(config), jnp.dtype(about["dtype"])
    except TypeError as error:
        raise ValueError(f"its description is of no model: {error}") from error
    return Denoiser(network, schedule, PREDICTIONS[prediction], dtype)


def _check_parts(about: dict[str, Any]) -> None:
    """ValueError if a description lacks a part."""
    missing = [part for part in PARTS if part not in about]
    if missing:
        raise ValueError(f"its description lacks {', '.join(missing)}")


def _decode(part: str, value: Any, classes: tuple[type, ...]) -> Any:
    """The object of one of `classes` that `value` encodes."""
    known = {cls.__name__: cls for cls in classes}
    pairs: Any = value.items() if isinstance(value, dict) else [(value, None)]
    name, fields = next(iter(pairs), ("nothing", None))
    if name not in known or not isinstance(fields, dict):
        raise _unknown(part, name, known)
    try:
        return known[name](**{n: _decode_field(part, v) for n, v in fields.items()})
    except TypeError as error:
        raise ValueError(f"its {part} is no {name}: {error}") from error


def _decode_field(part: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode_field(part, each) for each in value)
    if isinstance(value, dict):
        return _decode(part, value, (Stage, *SCHEDULES))
    return value


def _unknown(part: str, name: Any, known: dict[str, Any]) -> ValueError:
    return ValueError(
        f"its {part} is {name}, which is none of {', '.join(known)}: save_model and "
        "load_model(path, like) keep one of your own"
    )


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """How one description differs from another, a clause for each field.

    Less the fields of `TRAINING_ONLY` and the precision, which a reader may choose.
    Raises ValueError if `found` lacks a part.
    """
    _check_parts(found)
    for part, classes in (("network", CONFIGS), ("schedule", SCHEDULES)):
        stated = _with_defaults(part, found[part], classes)
        for path, a, b in _unequal("", stated, wanted[part]):
            field = f"{next(iter(stated))} with {path} " if path else ""
            yield f"its {part} is {field}{a}, not {b}"
    if found["prediction"] != wanted["prediction"]:
        yield f"its prediction is {found['prediction']}, not {wanted['prediction']}"


def _with_defaults(part: str, value: Any, classes: tuple[type, ...]) -> Any:
    """`value` with the fields that the version which wrote it did not have yet."""
    known = {cls.__name__ for cls in classes}
    if not isinstance(value, dict) or not known & set(value):
        return value
    return _encode(_decode(part, value, classes), None)


def _unequal(path: str, found: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    """Path, value there and value here of each field that differs."""
    if isinstance(found, list) and isinstance(wanted, list):
        found, wanted = _by_index(found), _by_index(wanted)
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        if found != wanted:
            yield path, found, wanted
    elif set(found) != set(wanted):
        yield path, ", ".join(found), ", ".join(wanted)
    else:
        for name in [name for name in wanted if name not in TRAINING_ONLY]:
            # A class within a field is no step of the path to it.
            step = path if name[0].isupper() else f"{path}.{name}".strip(".")
            yield from _unequal(step, found[name], wanted[name])


def _by_index(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}
