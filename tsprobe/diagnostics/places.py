"""Where the tokens of a row stand: in time, or on the grid of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from tsprobe.types import TokenMap

LIMIT = 256  # tokens of a row that are looked at, the first ones: what compares all pairs grows with the square


@dataclass(frozen=True)
class Places:
    """The real tokens of n rows, put in order: `order [n, t]` are their numbers in the row, `real [n, t]` which count.

    `at [n, T, k]` are the coordinates of all tokens: the middle of their steps, or row and column of their pixels.
    `near` and `far` `[n, t, t]` are pairs of tokens, as `token_locality` compares them. `sequence [n]` is True where
    the tokens follow one another in time, each at a time of its own.
    """

    order: Int[Tensor, "n t"]
    real: Bool[Tensor, "n t"]
    mask: Bool[Tensor, "n T"]
    at: Float[Tensor, "n T k"]
    near: Bool[Tensor, "n t t"]
    far: Bool[Tensor, "n t t"]
    sequence: Bool[Tensor, " n"]

    @classmethod
    def of(cls, tokens: TokenMap, rows: Int[Tensor, " n"]) -> Places:
        """Places of some rows of a batch. Costs t² a row, t at most `LIMIT`."""
        mask = tokens.mask[rows]
        middle = (tokens.start[rows] + tokens.stop[rows]).double() / 2  # [n, T]
        if tokens.grid is None:
            at = middle[..., None]
            late = middle.masked_fill(~mask, torch.inf)
            sorted_, order = late.sort(dim=1, stable=True)
            steps = (sorted_[:, 1:] > sorted_[:, :-1]) & mask.gather(1, order)[:, 1:]
            rank = torch.nn.functional.pad(steps.cumsum(1), (1, 0))[..., None]  # tokens of one time share a rank
            sequence = steps.sum(1) == mask.sum(1) - 1
        else:
            grid = tokens.grid
            number = (mask.cumsum(1) - 1).clamp(min=0)
            cell = torch.stack([number // grid.columns, number % grid.columns], -1)  # [n, T, 2]
            at = (cell + 0.5) * cell.new_tensor([grid.side / grid.rows, grid.side / grid.columns], dtype=torch.float64)
            order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
            rank = cell.gather(1, order[..., None].expand(-1, -1, 2))
            sequence = torch.zeros_like(mask[:, 0])
        order, rank = order[:, :LIMIT], rank[:, :LIMIT]
        real = mask.gather(1, order)
        pair = real[:, :, None] & real[:, None, :]
        apart = (rank[:, :, None] - rank[:, None]).abs().sum(-1).masked_fill(~pair, 0)  # [n, t, t]
        longest = apart.amax((1, 2), keepdim=True)
        far = pair & (2 * apart >= longest) & (apart > 1)
        return cls(order, real, mask, at, pair & (apart == 1), far, sequence)

    @cached_property
    def distance(self) -> Float[Tensor, "n T T"]:
        """Between all tokens, in steps or pixels. All layers of a batch ask for it."""
        return torch.cdist(self.at, self.at)

    @cached_property
    def contrast(self) -> Float[Tensor, "n t t"]:
        """Weights with which `token_locality` sums cosines: near pairs alike, less distant pairs alike."""
        near, far = (pairs / pairs.sum((1, 2), keepdim=True) for pairs in (self.near.double(), self.far.double()))
        return near - far
