"""A run's folder belongs to one configuration."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def claim(output: Path, config: Any) -> Path:
    """The folder `output`, holding the config.json of this dataclass, less `output`.

    Raises ValueError if the folder is another run's, naming the field that differs, or
    holds files that are no run's.
    """
    wanted = asdict(config)
    wanted.pop("output", None)
    wanted = json.loads(json.dumps(wanted))
    path = output / "config.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name in sorted(wanted | found):
            if found.get(name, "nothing") != wanted.get(name, "nothing"):
                raise ValueError(
                    f"{output} holds a run with {name}={found.get(name)}, and "
                    f"{name}={wanted.get(name)} is asked for; give that value back, or "
                    "another --output"
                )
    elif output.exists() and any(output.iterdir()):
        raise ValueError(
            f"{output} has files in it but no config.json of this recipe; "
            "give another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2))
    return output
