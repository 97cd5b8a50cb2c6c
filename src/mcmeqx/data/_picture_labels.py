"""Which class a picture is of: by EDM's `dataset.json`, else by the folder it is in."""

import json

from mcmeqx.data._picture_store import AbstractStore

_TABLE = "dataset.json"
# ImageNet's has 45 MB.
_MOST_BYTES = 2**28
_SUFFIXES = (".png", ".jpg", ".jpeg")
# A single large label would make as many names.
_MOST_CLASSES = 100_000
_ONE_CLASS = ("all",)

Labelled = tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]


def labelled(store: AbstractStore) -> Labelled:
    """Names of the pictures in `store`, label of each, and names of the classes.

    `dataset.json` holds `{"labels": [[name, label], ...]}` with the name of every
    picture, or null for labels: then, as for pictures in no folder, all are of one
    class, called "all".

    Raises `FileNotFoundError` where there is no picture, and `ValueError` for a table
    that names other pictures than there are or a label outside [0, 100000), and
    where some pictures lie in folders and some do not, or a folder of the top level
    holds several folders of pictures and no picture.
    """
    names = tuple(name for name in store.names if is_picture(name))
    if not names:
        raise FileNotFoundError(
            f"{store.path} holds no picture, looked for names in {_SUFFIXES}"
        )
    if _TABLE in store.names:
        labels, classes = _by_table(store, names)
    else:
        labels, classes = _by_folder(store, names)
    return names, labels, classes


def tells(name: str) -> bool:
    """Whether a file of this name is a picture, or labels them."""
    return is_picture(name) or name == _TABLE


def is_picture(name: str) -> bool:
    """Whether the name of a file ends as those of PNG and JPEG pictures do."""
    return name.lower().endswith(_SUFFIXES)


def _by_folder(
    store: AbstractStore, names: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    folders = [name.split("/")[0] for name in names if "/" in name]
    if not folders:
        return (0,) * len(names), _ONE_CLASS
    if len(folders) != len(names):
        alone = next(name for name in names if "/" not in name)
        raise ValueError(
            f"{store.path}: {alone} lies in no folder, others do: "
            "move it into the folder of its class"
        )
    inside: dict[str, set[str]] = {}
    for name in names:
        # Of n01/a.png that is n01 and nothing, of train/n01/a.png train and n01.
        folder, _, place = name.rpartition("/")[0].partition("/")
        inside.setdefault(folder, set()).add(place.split("/")[0])
    for folder, places in inside.items():
        if len(places) > 1 and "" not in places:
            raise ValueError(
                f"{store.path}: {folder} holds no picture but {len(places)} folders of "
                f"them: give the folder whose folders are the classes, as {folder}"
            )
    classes = tuple(sorted(inside))
    position = {folder: label for label, folder in enumerate(classes)}
    return tuple(position[folder] for folder in folders), classes


def _by_table(
    store: AbstractStore, names: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    where = f"{_TABLE} in {store.path}"
    try:
        rows = json.loads(store.read(_TABLE, most=_MOST_BYTES))["labels"]
        if rows is None:
            return (0,) * len(names), _ONE_CLASS
        pairs = [(str(name), label) for name, label in rows]
        table = dict(pairs)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{where} is not {{"labels": [[name, label], ...]}}: {error!r}'
        ) from error
    for name, label in pairs:
        if type(label) is not int or not 0 <= label < _MOST_CLASSES:
            raise ValueError(
                f"{where}: label of {name} is {label!r:.99}, expected an integer in "
                f"[0, {_MOST_CLASSES})"
            )
    absent, extra = table.keys() - set(names), set(names) - table.keys()
    if absent or extra or len(table) != len(pairs):
        what = (
            f"names {min(absent)}, which is not there"
            if absent
            else f"lacks {min(extra)}"
            if extra
            else "names a picture twice"
        )
        raise ValueError(f"{where} {what}: write it again for these pictures")
    # A class of which there is no picture has a name all the same.
    classes = tuple(str(label) for label in range(max(table.values()) + 1))
    return tuple(table[name] for name in names), classes
