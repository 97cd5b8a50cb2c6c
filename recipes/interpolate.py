"""One image turned into another through noise, along the teacher's probability flow.

    python recipes/interpolate.py
    python recipes/interpolate.py --emoji64-dir . --out emoji.png

Two images of one class are encoded to the noise that makes them, the noise is turned
from the one to the other along a great circle, and every step of the turn is decoded.
A row of the picture is an image, its code decoded, the steps to the other one's, and
the other image. Prints how far decoding lands from the images: 0.018 root mean square
for the second command, seed 0, which takes 5 minutes of CPU time. Where that is too
far, a smaller `--tolerance` brings them closer, in more time.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from _given import start_from
from _machine import keep_programs
from _pictures import check_new, draw
from _runs import at_least
from _stages import DEMO, load

import mcmeqx as mc


@dataclass(frozen=True)
class Config:
    """Options of the picture."""

    teacher: Path = mc.EMOJI_TEACHER
    """The teacher.eqx whose flow is followed; the package's own without it."""
    emoji64_dir: Path | None = None
    """Folder of five vendors' npm tarballs, as teacher_imagenet64.py takes it; without
    it the images are OpenMoji's, which may be shown under CC BY-SA 4.0 only."""
    out: Path = Path("interpolation.png")
    """The picture."""
    rows: int = 6
    """Pairs of images, each of another class."""
    frames: int = 9
    """Decoded images a row, both ends among them."""
    tolerance: float = 1e-5
    """Error of the ODE solver."""
    seed: int = 0
    """Seed of the choice of images."""


def slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """The point at `share` of the great circle from `a` to `b`, its norm in between.

    Of two independent normal samples it is again one, where a straight mix shrinks.
    """
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    angle = np.arccos(np.clip(np.vdot(a / lengths[0], b / lengths[1]), -1.0, 1.0))
    if np.sin(angle) < 1e-6:
        return (1 - share) * a + share * b
    first, second = np.sin((1 - share) * angle), np.sin(share * angle)
    return (first * a + second * b) / np.sin(angle)


def pairs(images: mc.data.Images, rows: int, seed: int) -> np.ndarray:
    """Indices of two images of each of `rows` classes, chosen at random: (rows, 2)."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(images.labels, minlength=len(images.classes))
    usable = np.flatnonzero(counts > 1)
    if rows > len(usable):
        raise ValueError(
            f"rows is at most {len(usable)}, the classes with two images in "
            f"{images.name}, got {rows}"
        )
    classes = rng.permutation(usable)[:rows]
    return np.stack(
        [rng.choice(np.flatnonzero(images.labels == c), 2, False) for c in classes]
    )


def main(config: Config) -> Path:
    """Encode, turn, decode and draw; return the picture's path."""
    at_least(1, rows=config.rows)
    at_least(2, frames=config.frames)
    at_least(0, seed=config.seed)
    flow = mc.ProbabilityFlow(stepsize_controller=mc.adaptive_steps(config.tolerance))
    check_new(config.out)
    keep_programs()
    # One without a null class follows its flow as well.
    model = start_from(config.teacher, DEMO)
    _, images = load(None, config.emoji64_dir)
    chosen = images.take(pairs(images, config.rows, config.seed).ravel())
    x, labels = np.asarray(chosen.x), np.asarray(chosen.label)

    def carried(grid, z, labels, describe):
        key = jax.random.key(0)
        options = {"key": key, "batch_size": 16, "describe": describe}
        return mc.generate(model, flow, grid, z, labels, **options)

    codes = carried(mc.uniform_grid(1)[::-1], x, labels, "encode")
    shares = np.linspace(0.0, 1.0, config.frames)
    ends = zip(codes[::2], codes[1::2], strict=True)
    turned = [slerp(a, b, share) for a, b in ends for share in shares]
    steps = np.stack(turned).astype(np.float32)
    decoded = carried(
        mc.uniform_grid(1), steps, np.repeat(labels[::2], config.frames), "decode"
    )
    decoded = decoded.reshape(config.rows, config.frames, *x.shape[1:])
    error = np.sqrt(np.mean((decoded[:, [0, -1]].reshape(x.shape) - x) ** 2))
    print(f"decoded codes lie {error:.2g} from their images, root mean square")
    strips = {
        images.classes[labels[2 * i]]: np.concatenate(
            [x[2 * i : 2 * i + 1], row, x[2 * i + 1 : 2 * i + 2]]
        )
        for i, row in enumerate(decoded)
    }
    draw(strips, config.out, f"{images.name}: through noise and back")
    print(f"picture: {config.out}")
    return config.out


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
