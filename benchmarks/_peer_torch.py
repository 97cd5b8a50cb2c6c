"""PyTorch and Diffusers as a contestant: UNet2DModel, channels last, at its best.

That is eager on a CPU, and `torch.compile` on a GPU.
"""

# pyright: reportMissingImports=false

import copy
import math
import os
from typing import Any

import diffusers
import torch
from _worker import (
    BATCH_SIZE,
    EMA_DECAY,
    LEARNING_RATE,
    SEGMENTS,
    SIDE,
    STEPS,
    TEACHER_STEPS,
    Contestant,
    serve,
)

GPU = torch.cuda.is_available()


def network() -> Any:
    """The shape of `mcmeqx.nets.unet32`; attention is PyTorch's fused one."""
    model = diffusers.UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=(
            "ResnetDownsampleBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=64,
    )
    return model.to(memory_format=torch.channels_last)


def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Alpha and sigma of a batch of times."""
    angle = 0.5 * math.pi * t[:, None, None, None]
    return torch.cos(angle), torch.sin(angle)


def denoise(model: Any, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The estimates of x."""
    alpha, sigma = levels(t)
    return alpha * z - sigma * model(z, 1000.0 * t).sample


def jump(
    z: torch.Tensor, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """DDIM from t to s."""
    (alpha, sigma), (alpha_s, sigma_s) = levels(t), levels(s)
    return alpha_s * x + sigma_s * (z - alpha * x) / sigma.clamp_min(1e-6)


def target_of(
    model: Any, teacher: Any, z: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """What the student should say at z, from the teacher and its own next estimate."""
    t, s = steps / TEACHER_STEPS, (steps - 1) / TEACHER_STEPS
    r = torch.floor(s * SEGMENTS) / SEGMENTS
    z_s = jump(z, denoise(teacher, z, t), t, s)
    z_r = jump(z_s, denoise(model, z_s, s), s, r)
    (alpha, sigma), (alpha_r, sigma_r) = levels(t), levels(r)
    ratio = 1.0 / sigma.clamp_min(1e-6)
    return (z_r - sigma_r * ratio * z) / (alpha_r - alpha * sigma_r * ratio)


def contestant() -> Contestant:
    """The jobs of `versus.py`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if GPU:
        torch.set_float32_matmul_precision("high")
        torch.set_default_device("cuda")
    torch.manual_seed(0)
    model = network()
    teacher, ema = copy.deepcopy(model), copy.deepcopy(model)
    if GPU:
        model.compile()
        teacher.compile()
    adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, foreach=True)
    x = torch.randn(BATCH_SIZE, 3, SIDE, SIDE)
    x = x.to(memory_format=torch.channels_last)

    def distil() -> None:
        steps = torch.randint(1, TEACHER_STEPS + 1, (BATCH_SIZE,))
        t = steps / TEACHER_STEPS
        alpha, sigma = levels(t)
        z = alpha * x + sigma * torch.randn_like(x)
        with torch.no_grad():
            target = target_of(model, teacher, z, steps)
        difference = (target - denoise(model, z, t)) / sigma.clamp_min(1e-2)
        adam.zero_grad(set_to_none=True)
        difference.square().mean().backward()
        adam.step()
        with torch.no_grad():
            averages, parameters = list(ema.parameters()), list(model.parameters())
            torch._foreach_lerp_(averages, parameters, 1 - EMA_DECAY)

    @torch.no_grad()
    def sample(steps: int) -> None:
        z = x
        for i in range(steps, 0, -1):
            t, s = (torch.full((BATCH_SIZE,), k / steps) for k in (i, i - 1))
            z = jump(z, denoise(model, z, t), t, s)

    def waited(job: Any, *arguments: int) -> None:
        job(*arguments)
        if GPU:
            torch.cuda.synchronize()

    jobs: dict[str, Any] = {"cd": lambda: waited(distil)}
    jobs |= {f"sample{n}": lambda n=n: waited(sample, n) for n in STEPS}
    count = sum(p.numel() for p in model.parameters())
    version = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    device = torch.cuda.get_device_name() if GPU else "cpu"
    return Contestant(count, version, device, jobs)


if __name__ == "__main__":
    serve(contestant())
