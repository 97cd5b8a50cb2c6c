"""What a person sees of a run: a progress bar, and metrics as JSON lines."""

import json
import time
from pathlib import Path

from tqdm import tqdm

from mcmeqx._train import TrainState


class ProgressBar:
    """A `fit` callback: a bar with loss, images/s and the time left."""

    def __init__(self, name: str, *, steps: int, start: int, batch_size: int):
        self._bar = tqdm(total=steps, initial=start, desc=name, unit="step")
        self._batch_size = batch_size
        self._begun = time.perf_counter()
        self._start = start
        if start >= steps:
            self._bar.close()

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Move the bar to `step`."""
        images = (step - self._start) * self._batch_size
        rate = images / (time.perf_counter() - self._begun)
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, {rate:.0f} images/s", refresh=False
        )
        self._bar.update(step - self._bar.n)
        if step == self._bar.total:
            self._bar.close()


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """The records of a `JsonLines` file, none if there is no file.

    A last line that was cut while it was written is left out.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class JsonLines:
    """A `fit` callback: one JSON object a line, every `every` steps and at the last.

    Beside the metrics it holds `step` and `seconds`, the wall time of training so far.
    A run that goes on from step `start` takes back what it had written beyond.
    """

    def __init__(self, path: Path, *, every: int, steps: int, start: int = 0):
        if every < 1:
            raise ValueError(f"every is a number of steps, 1 or more, got {every}")
        self.path, self.every, self.steps = Path(path), every, steps
        kept = [r for r in read_metrics(self.path) if r["step"] <= start]
        if self.path.exists():
            part = self.path.with_name(self.path.name + ".part")
            part.write_text("".join(json.dumps(record) + "\n" for record in kept))
            part.replace(self.path)
        earlier = kept[-1]["seconds"] if kept else 0.0
        self._begun = time.perf_counter() - earlier

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Append the metrics of `step` if its turn has come."""
        if step % self.every == 0 or step == self.steps:
            seconds = round(time.perf_counter() - self._begun, 3)
            record = {"step": step, "seconds": seconds, **metrics}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
