"""A run's folder belongs to one configuration."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def claim(out: Path, config: Any) -> Path:
    """The run folder `out`, with the config.json of this dataclass less its `out`.

    Raises ValueError if the folder is another run's, naming the field that differs, or
    holds files that are no run's.
    """
    wanted = asdict(config)
    wanted.pop("out", None)
    wanted = json.loads(json.dumps(wanted, default=str))
    path = out / "config.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name in sorted(wanted | found):
            if found.get(name, "nothing") != wanted.get(name, "nothing"):
                raise ValueError(
                    f"{out} holds a run with {name}={found.get(name)}, and "
                    f"{name}={wanted.get(name)} is asked for; give that value back, or "
                    "another --out"
                )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} has files in it but no config.json of this recipe; "
            "give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(wanted, indent=1) + "\n")
    part.replace(path)
    print(f"run folder: {out}", flush=True)
    return out
