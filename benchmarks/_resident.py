"""A contestant of `versus.py`: it lives on, and is asked a job at a time."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from _device import named


class Resident:
    """The process of `_peer_<name>.py`, with `setting` in its environment."""

    def __init__(self, name: str, setting: dict[str, str]):
        script = Path(__file__).with_name(f"_peer_{name}.py")
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | setting,
        )

    def meet(self) -> None:
        """Wait until it is ready, and for what it says of itself."""
        about = self._answer()
        self.parameters, self.version = about["parameters"], about["version"]
        self.device, self.jobs = named(about["device"]), about["jobs"]

    def ask(self, job: str) -> dict[str, float]:
        """Seconds that the job took now."""
        assert self._process.stdin is not None
        # Of one that has ended there is no answer either.
        with contextlib.suppress(BrokenPipeError):
            print(job, file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; its own words stand above")
        return json.loads(line)
