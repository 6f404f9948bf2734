"""Where a patch is: a learned grid that is added once, and rotations in every block (PE, section 2.1; its rope.py).

Rotations use the raw integer row and column of a patch, whatever the size of the image. They start at 1 where there is
a CLS token, which is not rotated. Pairs of neighbouring features are turned; the first half of a head tells the
column (x), the second half the row (y).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Complex, Float
    from torch import Tensor

BASE = 10_000.0  # of the rotary wavelengths, in patches


def rotation(rows: int, columns: int, size: int, *, cls: bool) -> Complex[Tensor, "T d/2"]:
    """Unit numbers for the tokens of a grid, row by row; `size` is the width of a head, a multiple of 4."""
    axis = size // 2
    rate = BASE ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis)  # [d/4]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angle = torch.cat([(place.flatten()[:, None] + int(cls)) * rate for place in (x, y)], 1)  # [T, d/2]
    if cls:
        angle = torch.cat([angle.new_zeros(1, axis), angle])
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x: Float[Tensor, "B H T d"], turn: Complex[Tensor, "T d/2"]) -> Float[Tensor, "B H T d"]:
    """Turn each pair of neighbouring features by the angle of its token."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def resized(grid: Float[Tensor, "T D"], rows: int, columns: int, *, cls: bool) -> Float[Tensor, "U D"]:
    """A learned square grid for another number of rows and columns, bilinearly; the row of the CLS token is kept."""
    first, rest = grid[: int(cls)], grid[int(cls) :]
    side = round(len(rest) ** 0.5)
    if (rows, columns) == (side, side):
        return grid
    image = rest.T.unflatten(1, (side, side))[None]
    other = F.interpolate(image, (rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([first, other[0].flatten(1).T])
