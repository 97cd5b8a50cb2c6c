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


class JsonLines:
    """A `fit` callback: one JSON object a line, every `every` steps, appended."""

    def __init__(self, path: Path, *, every: int):
        if every < 1:
            raise ValueError(f"every is a number of steps, 1 or more, got {every}")
        self.path, self.every = Path(path), every

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Append the metrics of `step` if its turn has come."""
        if step % self.every == 0:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
