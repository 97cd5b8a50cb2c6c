"""Packs a labelled image set into one file, which `mcmeqx.data.packed` maps.

python -m mcmeqx.data.pack imagenet downloads/imagenet64 imagenet64.images
python -m mcmeqx.data.pack pictures edm-imagenet.zip --side 64 imagenet64.images
python -m mcmeqx.data.pack check imagenet64.images
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mcmeqx._whole import check_absent
from mcmeqx.data._cifar10 import cifar10
from mcmeqx.data._emoji64 import emoji64
from mcmeqx.data._fashion_mnist import fashion_mnist
from mcmeqx.data._imagenet_batches import ImageNetBatches
from mcmeqx.data._openmoji import openmoji
from mcmeqx.data._pack import check_packed, packed, save_packed
from mcmeqx.data._pictures import Pictures
from mcmeqx.data._source import AbstractSource


class _Kind(NamedTuple):
    """A kind of source: a subcommand that packs it."""

    name: str
    what: str
    read: Callable[[argparse.Namespace], AbstractSource]
    source: dict[str, Any] | None
    """Of the argument that says where the source is, if there is one."""
    options: tuple[tuple[str, dict[str, Any]], ...] = ()


def _split(*splits: str) -> tuple[str, dict[str, Any]]:
    help_text = f"part of the set; default: {splits[0]}"
    return "--split", {"choices": splits, "default": splits[0], "help": help_text}


_KINDS = (
    _Kind(
        "imagenet",
        "the official downsampled archives train_data_batch_1 to _10, val_data",
        lambda o: ImageNetBatches(o.source, side=o.side, split=o.split),
        {"help": "folder with the files, bare or .npz"},
        (
            (
                "--side",
                {
                    "type": int,
                    "default": 64,
                    "choices": (64, 32, 16, 8),
                    "help": "of the images in these files; default: 64",
                },
            ),
            _split("train", "val"),
        ),
    ),
    _Kind(
        "cifar10",
        "CIFAR-10 in its version for Python",
        lambda o: cifar10(o.source, split=o.split),
        {"help": "folder cifar-10-batches-py, or cifar-10-python.tar.gz"},
        (_split("train", "test"),),
    ),
    _Kind(
        "fashion-mnist",
        "Fashion-MNIST in its idx files, padded to 32x32",
        lambda o: fashion_mnist(o.folder, split=o.split),
        None,
        (
            (
                "--folder",
                {
                    "type": Path,
                    "help": "default: that of Debian's dataset-fashion-mnist",
                },
            ),
            _split("train", "test"),
        ),
    ),
    _Kind(
        "pictures",
        "PNG and JPEG files, labelled by dataset.json or a folder per class",
        lambda o: Pictures(o.source, side=o.side),
        {"help": "folder, or zip"},
        (("--side", {"type": int, "help": "shrink and crop to it, as ADM does"}),),
    ),
    _Kind(
        "emoji64",
        "emoji of five vendors at 64x64",
        lambda o: emoji64(o.source, split=o.split),
        {"help": "folder with the npm packages' tarballs"},
        (_split("all", "train", "test"),),
    ),
    _Kind("openmoji", "OpenMoji at 64x64", lambda _: openmoji(), None),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 2 and one line for what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        images = packed(options.file)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(
        f"{options.file}: {images.name}, {len(images)} images of shape "
        f"{images.shape}, {len(images.classes)} classes"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mcmeqx.data.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="kind")
    for kind in _KINDS:
        command = commands.add_parser(
            kind.name, help=kind.what, description=f"Packs {kind.what}."
        )
        if kind.source is not None:
            command.add_argument("source", type=Path, **kind.source)
        command.add_argument("file", type=Path, help="file to write; must not exist")
        for flag, settings in kind.options:
            command.add_argument(flag, **settings)
        command.set_defaults(run=partial(_pack, kind))
    what = "compare a packed file with the hash in its header"
    command = commands.add_parser("check", help=what, description=what)
    command.add_argument("file", type=Path, help="packed file")
    command.set_defaults(run=lambda options: check_packed(options.file))
    return parser


def _pack(kind: _Kind, options: argparse.Namespace) -> None:
    # Before the source is read, which may take long.
    check_absent(options.file)
    source = kind.read(options)
    name = options.source.name if vars(options).get("source") else ""
    save_packed(source, options.file, made_from=f"{kind.name} {name}".strip())


if __name__ == "__main__":
    main()
