"""A place for the user's own ImageNet 64x64, which this version does not read yet."""

from pathlib import Path

from mcmeqx.data._images import Images

_STEMS = (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data")


def imagenet64(folder: Path) -> Images:
    """Refuses: says what `folder` holds of ImageNet 64x64, and what to do instead.

    Looks for `train_data_batch_1` to `_10` and `val_data`, bare or ending in `.npz`.
    Raises `FileNotFoundError` where `folder` is no folder or holds none of them, and
    `ValueError` where it holds some, for no reader of them is in this version.
    """
    folder = Path(folder)
    wanted = "train_data_batch_1 to train_data_batch_10 and val_data, bare or .npz"
    remedy = "Run without --data-dir to train on the demo's own images."
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, looked for {wanted}. {remedy}")
    names = [name for stem in _STEMS for name in (stem, f"{stem}.npz")]
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} holds none of {wanted}. {remedy}")
    raise ValueError(
        f"{folder} holds {', '.join(found)} (looked for {wanted}), "
        f"but this version of mcmeqx has no reader for these files. {remedy}"
    )
