"""Token maps of pictures: which segments a token belongs to, and which pixels it covers.

For poolings by segments the tokens lie along a Z-order curve (Morton 1966): the square is halved into four squares, and
each of these again. A quarter of the curve is a quarter of the picture, so that `segments4`, `segments16` and
`segments64` are means over the cells of 2 x 2, 4 x 4 and 8 x 8, and `segments2` over the upper and the lower half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.types import Grid, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

HALVINGS = 4  # at most, to 16 x 16 cells


def picture_tokens(
    batch: int, rows: int, columns: int, side: int, *, prefix: int = 0, cls: int | None = None
) -> TokenMap:
    """The map of `prefix` special tokens, of which `cls` is the class token, and then `rows` x `columns` patches.

    A token (r, c) belongs to the cell floor(r * n / rows), floor(c * n / columns) of n x n, where n is 16, or the
    largest power of 2 that leaves no cell without a token or (in the smallest pictures) without whole steps. With more
    segments than cells, those of a cell have its mean.
    """
    steps, halvings = side * side, _halvings(rows, columns, side * side)
    cells = 2**halvings
    code = interleave(
        (torch.arange(rows) * cells // rows)[:, None], (torch.arange(columns) * cells // columns)[None], halvings
    ).flatten()
    start = -(-code * steps // cells**2)  # rounded up
    stop = start + _length(steps, cells**2)  # of equal length for all tokens, so that they count alike
    mask = torch.ones_like(code, dtype=torch.bool)
    mask, start, stop = (F.pad(part, (prefix, 0)).expand(batch, -1).contiguous() for part in (mask, start, stop))
    return TokenMap(mask, start, stop, cls, Grid(rows, columns, side))


def single_token(batch: int, side: int, *, cls: bool = False) -> TokenMap:
    """The map of a layer with one token for the whole picture, which stands for the class token too with `cls`."""
    start = torch.zeros(batch, 1, dtype=torch.int64)
    return TokenMap(torch.ones_like(start, dtype=torch.bool), start, start + side * side, 0 if cls else None)


def interleave(row: Int[Tensor, "R 1"], column: Int[Tensor, "1 C"], bits: int) -> Int[Tensor, "R C"]:
    """The place along the Z-order curve of a cell among 2 ** bits x 2 ** bits: the bits of row and column in turn."""
    code = torch.zeros_like(row + column)
    for bit in range(bits):
        code += (row >> bit & 1) << 2 * bit + 1 | (column >> bit & 1) << 2 * bit
    return code


def _halvings(rows: int, columns: int, steps: int) -> int:
    fine = min(HALVINGS, min(rows, columns).bit_length() - 1)
    return next(n for n in range(fine, -1, -1) if _length(steps, 4**n) > 0)


def _length(steps: int, cells: int) -> int:
    """Whole steps that lie within a cell wherever it begins, rounded up."""
    return steps // cells - (steps % cells > 0)
