"""The optional packages: a module, a folder or the versions of what may be missing."""

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any


def optional(module: str, extra: str) -> Any:
    """The module of that dotted name, which the extra of mcmeqx brings.

    Raises `ImportError` that names the command to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(_missing(module, extra)) from error


def package_folder(package: str, extra: str) -> Path:
    """The folder of the importable `package`, found without importing it.

    Raises `ImportError` that names the command to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(_missing(package, extra))
    return Path(spec.submodule_search_locations[0])


def versions(distributions: tuple[str, ...], extra: str) -> str:
    """`name-version` of each distribution as pip calls it, joined by underscores.

    Raises `ImportError` that names the command to install the first one missing.
    """
    try:
        return "_".join(f"{d}-{importlib.metadata.version(d)}" for d in distributions)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(_missing(str(error.name), extra)) from error


def _missing(package: str, extra: str) -> str:
    return f'{package} is not installed: pip install "mcmeqx[{extra}]"'
