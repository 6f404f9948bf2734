"""A tiny encoder that takes any series and loses nothing of a short one, for checks that fit hundreds of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.rows import token_map
from tsprobe.types import Batch, Inputs


class Turns(nn.Module):
    """A token a step, its value times fixed waves: `[R, S]` to `[R, S, D]`, whose mean is a Fourier transform."""

    def __init__(self, width: int = 32, period: int = 32) -> None:
        super().__init__()
        self.angle = nn.Parameter(2 * math.pi * torch.arange(width // 2) / period)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] * self.angle  # [S, D / 2]
        return x[..., None] * torch.cat([angle.cos(), angle.sin()], -1)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class Waves(Encoder):
    def __init__(self) -> None:
        module = nn.Sequential(Turns(), Scale())
        super().__init__("waves", module, {"block.0": Tap("0"), "block.1": Tap("1")}, "block.1", Facts())

    def prepare(self, batch: Batch) -> Inputs:
        values = batch.values.flatten(0, 1)
        steps = torch.arange(values.shape[1]).expand(len(batch.lengths), -1)
        return Inputs({"input": values}, token_map(batch, steps, 1, joint=False), batch.values.shape[1])
