"""An encoder in which a label is readable up to a block and removed after it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import tsprobe as tp
from tsprobe.tasks.base import Task

WIDTH, PATCH, BLOCKS = 8, 8, 5


class Rotate(nn.Module):
    """A fixed rotation; `forget` removes one direction of its input for good."""

    def __init__(self, seed: int, forget: Tensor | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
        self.weight = nn.Parameter(rotation)
        self.register_buffer("forget", forget)

    def forward(self, x: Tensor) -> Tensor:
        if self.forget is not None:
            x = x - (x @ self.forget)[..., None] * self.forget
        return x @ self.weight

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)


class Planted(nn.Module):
    """`[R, S]` to tokens of eight steps. The label is the first step of a patch; the block after `at` drops it."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        direction = torch.eye(WIDTH)[0]
        blocks = []
        for i in range(BLOCKS):
            blocks.append(Rotate(i, direction if at is not None and i == at + 1 else None))
            direction = direction @ blocks[-1].weight.detach()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, PATCH)
        for block in self.blocks:
            x = block(x)
        return x


def planted_encoder(at: int | None, name: str = "planted"):
    return tp.load_encoder(Planted(at), blocks="blocks.*", prepare="bs", tokens=PATCH, name=name)


def planted_task(n: int = 120, seed: int = 0, *, noise_labels: bool = False, name: str = "planted-task") -> Task:
    """Noise, with the class added to the first step of every patch (or to nothing)."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(2 * n) % 2)
    x = rng.standard_normal((2 * n, 1, 4 * PATCH))
    if not noise_labels:
        x[:, 0, ::PATCH] += 2 * (y[:, None] - 0.5)
    return tp.Classification(name, train=(x[:n], y[:n]), test=(x[n:], y[n:]))


def build() -> nn.Module:
    """For configs: `source: python:planted:build`."""
    return Planted(2)


def build_badly() -> Planted:
    return Planted(1 // 0)


def build_random() -> nn.Module:
    """Weights from the global generator, as most modules draw them."""
    module = Planted(None)
    for block in module.blocks:
        block.reset_parameters()
    return module
