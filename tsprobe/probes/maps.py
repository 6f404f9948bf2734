"""Pixels that were asked about as maps: which cell of a grid each of them lies in, and where in it.

Tasks at pixels ask at one pixel in each cell of a grid, which a step of a series, `row * W + column`, does not tell.
Both the width of the pictures and the grid follow from all steps together: the smallest picture that holds every step,
and the coarsest grid, with no two steps of a series in one cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tsprobe.errors import DataError
from tsprobe.probes import heads

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from tsprobe.probes.base import Steps


@dataclass(frozen=True)
class Maps:
    """The rows of a split on maps of `grid` x `grid` cells, P in all.

    `index [S, P]` is the row of each cell of each of S pictures, -1 where none was asked about. `offset [S, P, 2]` is
    where its pixel lies in its cell, downwards and to the right, from -0.5 to 0.5; 0 where there is none.
    """

    grid: int
    index: Int[Tensor, "S P"]
    offset: Float[Tensor, "S P 2"]

    def among(self, rows: Bool[Tensor, " N"]) -> Maps:
        """The pictures that have some of these rows."""
        return self.take(heads.having(self.index, rows))

    def take(self, pictures: Int[Tensor, " s"]) -> Maps:
        return Maps(self.grid, self.index[pictures], self.offset[pictures])


def both(steps: Steps, device: torch.device) -> tuple[Maps, Maps]:
    """Of the training and of the test rows. Raises `DataError` for steps that are no pixels of square pictures."""
    width, grid = _layout(steps)
    found = []
    for series, time in zip(steps.series, steps.time, strict=True):
        found.append(_maps(series.cpu().long(), time.cpu().long(), width, grid, device))
    return found[0], found[1]


def single(n: int, device: torch.device) -> Maps:
    """Of n rows that are no pixels: each is a map of one cell."""
    return Maps(1, torch.arange(n, device=device)[:, None], torch.zeros(n, 1, 2, device=device))


def _layout(steps: Steps) -> tuple[int, int]:
    """Pixels a side of a picture, and cells a side of the grid."""
    series = torch.cat([steps.series[0].cpu(), steps.series[1].cpu() + int(steps.series[0].max()) + 1]).long()
    time = torch.cat([part.cpu() for part in steps.time]).long()
    most = int(series.bincount().max())
    least = math.isqrt(int(time.max())) + 1
    for width in range(least, 2 * least):
        for grid in range(math.isqrt(most - 1) + 1, min(width, 2 * math.isqrt(most) + 2) + 1):
            cell = series * grid * grid + _cells(time, width, grid)
            if len(cell.unique()) == len(cell):
                return width, grid
    raise DataError("steps are no pixels of square pictures, one in each cell of a grid: the dpt probe reads maps")


def _cells(time: Int[Tensor, " n"], width: int, grid: int) -> Int[Tensor, " n"]:
    edges = torch.arange(1, grid) * width // grid
    row, column = (torch.bucketize(part, edges, right=True) for part in (time // width, time % width))
    return row * grid + column


def _maps(series: Tensor, time: Tensor, width: int, grid: int, device: torch.device) -> Maps:
    pictures, number = series.unique(return_inverse=True)
    cell = _cells(time, width, grid)
    index = torch.full((len(pictures), grid * grid), -1)
    index[number, cell] = torch.arange(len(time))
    at = torch.stack([time // width, time % width], 1)
    middle = torch.stack([cell // grid, cell % grid], 1) + 0.5
    offset = torch.zeros(*index.shape, 2)
    offset[number, cell] = (at + 0.5) * grid / width - middle
    return Maps(grid, index.to(device), offset.to(device))
