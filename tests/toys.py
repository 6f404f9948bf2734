"""Small encoders with known answers, shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.types import Batch, Inputs, TokenMap

PATCH = 4


class Steps(nn.Module):
    """One token a patch of four steps, CLS in front; blocks that look at one token at a time."""

    def __init__(self, blocks: int = 3, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH, width)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.cls)

    def forward(self, patches: Tensor) -> Tensor:  # [R, T, 4] -> [R, 1 + T, D]
        x = self.embed(patches)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class StepsEncoder(Encoder):
    """Reads channel by channel; a token is real where its patch has an observed step."""

    def __init__(self, **facts: object) -> None:
        torch.manual_seed(0)
        module = Steps()
        taps = {f"block.{i}": Tap(f"blocks.{i}") for i in range(len(module.blocks))}
        declared = {"patch": PATCH, "masks_missing": True, **facts}
        super().__init__("toy", module, taps, "block.2", Facts(**declared))  # type: ignore[arg-type]

    def prepare(self, batch: Batch) -> Inputs:
        b, c, s = batch.values.shape
        pad = -s % PATCH
        values = nn.functional.pad(batch.values, (0, pad)).reshape(b * c, -1, PATCH)
        real = nn.functional.pad(batch.observed, (0, pad)).reshape(b * c, -1, PATCH).any(-1)
        real = nn.functional.pad(real, (1, 0))  # the class token is not real
        index = torch.arange(real.shape[1]) - 1
        ends = batch.lengths.repeat_interleave(c)[:, None]
        start = (index * PATCH).clamp(min=0).expand(b * c, -1)
        stop = torch.minimum(((index + 1) * PATCH).expand(b * c, -1), ends)
        stop = torch.where(real, stop, start)  # a masked token covers nothing
        return Inputs({"patches": values}, TokenMap(real, start, torch.maximum(stop, start), cls=0), rows=c)


class Causal(nn.Module):
    """A residual block that sees a token and the one before it: `[R, T, D]` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(nn.functional.pad(x.transpose(1, 2), (1, 0))).transpose(1, 2).tanh()
