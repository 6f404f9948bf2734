"""An encoder whose answer was hidden on purpose, the task that asks for it, and an alignment of a few steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import tsprobe as tp
from tsprobe.alignment import AlignSpec
from tsprobe.encoders import load_encoder
from tsprobe.tasks.base import Task

STUDY = {"tasks": ["dense/planted"], "probes": ("ridge",)}


def spec(**changes: object) -> AlignSpec:
    settings = {"encoder": "planted", "recipe": "dense", "study": STUDY, "steps": 40, "batch": 16, "length": 64,
                "rate": 1e-2, "warmup": 4, "controls": (), "free": (), "sources": ("sines_and_events",)}  # fmt: skip
    return AlignSpec.model_validate(settings | changes)


class Planted(nn.Module):
    """Blocks over single steps: the first keeps the series in a channel, the last takes it away again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.noise = (torch.arange(8) > 0).float()  # of each channel
        self.blocks = nn.ModuleList(Branch() for _ in range(3))
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(8, 1))
            self.embed.bias.zero_()
            self.blocks[2].down.weight[0, 0] = -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [R, S]
        x = self.embed(x[..., None])
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.shape[1])) * self.noise
        x = x + noise
        for block in self.blocks:
            x = block(x)
        return x


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(8, 8, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(x)


def planted() -> tp.encoders.Encoder:
    torch.manual_seed(0)
    return load_encoder(Planted(), blocks="blocks.*", prepare="bs", tokens=1, name="planted")


def task(name: str = "dense/planted", *, size: int = 20) -> Task:
    """The value of each step of `size` test series is asked for, of twice as many for training."""
    x = np.random.default_rng(0).standard_normal((3 * size, 1, 64)).astype(np.float32)
    train, test = x[: 2 * size], x[2 * size :]
    return tp.Dense(name, (train, train[:, 0, :, None]), (test, test[:, 0, :, None]), kind="regression", labels=["x"])
