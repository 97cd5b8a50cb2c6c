"""Models that need not be trained: the package's, or those of a file."""

import hashlib
from pathlib import Path

from _stages import Preset, denoiser_shapes, with_label_dropout
from _training import Trained

import mcmeqx as mc


def _with_the_other_null_class(path: Path, preset: Preset) -> mc.Denoiser | None:
    """The model in `path` if all that it has or lacks against the preset is that."""
    other = with_label_dropout(preset, 0.0 if preset.network.null_class else 1.0)
    try:
        return mc.load_model(path, denoiser_shapes(other))
    except ValueError:
        return None


def start_from(path: Path, preset: Preset) -> mc.Denoiser:
    """A teacher to train further; one without a null class gains it if it is needed."""
    other = _with_the_other_null_class(path, preset)
    if other is not None and preset.network.null_class:
        return mc.with_null_class(other)
    return given(path, preset)


def given(path: Path, preset: Preset) -> mc.Denoiser:
    """The teacher in a file; ValueError, and why, if it is not of this preset."""
    if _with_the_other_null_class(path, preset) is None:
        return mc.load_model(path, denoiser_shapes(preset))
    if preset.network.null_class:
        raise ValueError(
            f"{path} has no null class: give a label dropout of 0, or train it on with "
            "teacher_imagenet64.py --start-from"
        )
    raise ValueError(f"{path} has a null class: give a label dropout above 0")


def given_teacher(name: str, preset: Preset) -> tuple[Trained | None, str | None]:
    """A teacher that need not be trained, and the hash of its file."""
    if name == "scratch":
        return None, None
    path = _path(name, mc.EMOJI_TEACHER, "--teacher", "scratch", preset)
    return Trained(given(path, preset), name, None, None), file_sha256(path)


def given_student(name: str, preset: Preset) -> tuple[mc.Denoiser | None, str | None]:
    """What a student starts from if not from its teacher, and the hash of its file."""
    if name == "teacher":
        return None, None
    path = _path(name, mc.EMOJI_STUDENT, "--start-from", "teacher", preset)
    return given(path, preset), file_sha256(path)


def _path(name: str, embedded: Path, option: str, other: str, preset: Preset) -> Path:
    if name == "embedded" and preset.teacher != "embedded":
        raise ValueError(
            f"{option} embedded is the demo's emoji model; with --data-dir give "
            f"`{other}` or the path of a model file"
        )
    return embedded if name == "embedded" else Path(name)


def file_sha256(path: Path) -> str:
    """SHA-256 of what is in the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
