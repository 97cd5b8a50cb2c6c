"""ADM's way to make a photograph small and square (Dhariwal & Nichol 2021)."""

from typing import Any

# A picture a pixel thin would grow without bound where its short side is enlarged.
_MOST_PIXELS = 2**26


def cropped(picture: Any, side: int, where: str) -> Any:
    """The middle square of a Pillow image, side x side, as ADM's training set has it.

    While the shorter side is at least twice `side`, both sides are halved with a box
    filter, which rounds down; then the shorter is brought to `side` bicubically, and
    the middle cut out. `ValueError` names `where` for a picture that is too thin.
    """
    from PIL.Image import Resampling

    while min(picture.size) >= 2 * side:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Resampling.BOX)
    scale = side / min(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"{where} would be enlarged to {width}x{height} before it is cropped: "
            "take it out"
        )
    picture = picture.resize((width, height), Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))
