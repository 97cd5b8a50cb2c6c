"""What a person sees of a run: a bar, metrics as JSON lines and for TensorBoard.

Each is a callback of `fit`. They share one dictionary of metrics, in their order:
`Speed` comes first, and the others show what it adds.
"""

import importlib.util
import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mcmeqx._packages import optional
from mcmeqx._train import TrainState
from mcmeqx._whole import written_whole


class Speed:
    """Adds `images_per_second`, over the last 50 steps, to the metrics.

    With the `flops` of a step and the `peak` of all devices together, operations and
    operations a second, it adds their `flops_utilisation` too.
    """

    def __init__(
        self, *, batch_size: int, flops: float | int = 0, peak: float = math.inf
    ):
        self._batch_size, self._share = batch_size, flops / peak
        self._times: deque[float] = deque(maxlen=51)

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Note the time and add to `metrics`, from the second step on."""
        self._times.append(time.perf_counter())
        taken = self._times[-1] - self._times[0]
        if taken > 0:
            rate = (len(self._times) - 1) / taken
            metrics["images_per_second"] = rate * self._batch_size
            if self._share:
                metrics["flops_utilisation"] = rate * self._share


class ProgressBar:
    """A bar with loss, images/s, skipped steps if there are any, and the time left."""

    def __init__(self, name: str, *, steps: int, start: int = 0):
        self._bar = tqdm(total=steps, initial=start, desc=name, unit="step")
        if start >= steps:
            self._bar.close()

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Move the bar to `step`."""
        shown = [f"loss {metrics['loss']:.4f}"]
        if "images_per_second" in metrics:
            shown.append(f"{metrics['images_per_second']:.0f} images/s")
        if metrics.get("skipped"):
            shown.append(f"{metrics['skipped']:.0f} steps skipped")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(step - self._bar.n)
        if step == self._bar.total:
            self._bar.close()


def _check_every(every: int) -> None:
    if every < 1:
        raise ValueError(f"every is a number of steps, 1 or more, got {every}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `JsonLines` file, none if there is no file.

    A last line that was cut while it was written is left out. A metric that was not
    finite is None. Raises ValueError for a file of other lines.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_text().splitlines(keepends=True)
    try:
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all({"step", "seconds"} <= record.keys() for record in records):
            raise ValueError("a line has no step or no seconds")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no JsonLines, give another: {error}") from error
    return records


class JsonLines:
    """One JSON object a line, every `every` steps and at the last.

    Beside the metrics it holds `step` and `seconds`, the wall time of training so far.
    A run that goes on from step `start` takes back what it had written beyond.
    Raises ValueError for a file of other lines, which stays as it is.
    """

    def __init__(self, path: Path, *, every: int, steps: int, start: int = 0):
        _check_every(every)
        self.path, self.every, self.steps = Path(path), every, steps
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_metrics(self.path) if r["step"] <= start]
        if self.path.exists():
            with written_whole(self.path) as file:
                file.writelines(f"{json.dumps(record)}\n".encode() for record in kept)
        earlier = kept[-1]["seconds"] if kept else 0.0
        self._begun = time.perf_counter() - earlier

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Append the metrics of `step` if its turn has come."""
        if step % self.every == 0 or step == self.steps:
            seconds = round(time.perf_counter() - self._begun, 3)
            # JSON has no number for what is not finite.
            finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
            with self.path.open("a") as file:
                record = {"step": step, "seconds": seconds, **finite}
                file.write(json.dumps(record) + "\n")


class TensorBoard:
    """TensorBoard's event files in `folder`, every `every` steps, by tensorboardX.

    A run that goes on from step `start` hides what it had written beyond. Raises
    `ImportError` where the extra "tensorboard" is not installed: see `installed`.
    """

    def __init__(self, folder: Path, *, every: int, start: int = 0):
        library = optional("tensorboardX", "tensorboard")
        _check_every(every)
        self.every = every
        self._writer = library.SummaryWriter(
            str(folder), purge_step=start + 1, flush_secs=10
        )

    @staticmethod
    def installed() -> bool:
        """Whether there is a writer."""
        return importlib.util.find_spec("tensorboardX") is not None

    def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Write the metrics of `step` if its turn has come."""
        if step % self.every == 0:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still on its way."""
        self._writer.close()
