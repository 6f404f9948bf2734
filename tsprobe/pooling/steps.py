"""Tokens at single steps: what a layer says about the moment asked for, through the map of tokens to steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tsprobe.errors import EncoderError
from tsprobe.pooling.reference import widen
from tsprobe.types import Grid, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class StepMap:
    """How much of each token the reading of a step takes, `share [R, M, T]`, and the `weight [R, M]` of that reading.

    Of several windows of a series, the one with the largest weight is the one that answers; 0 is no answer.
    """

    share: Float[Tensor, "R M T"]
    weight: Float[Tensor, "R M"]
    mask: Bool[Tensor, "R T"] | None  # None: all tokens are real

    @classmethod
    def of(
        cls, tokens: TokenMap, steps: Int[Tensor, "R M"], lengths: Int[Tensor, " R"], *, causal: bool = False
    ) -> StepMap:
        """For M steps of each row, counted from the start of its window, which has `lengths` steps.

        A step inside the window is read between the centres of the real tokens on both sides of it, linearly, and flat
        before the first and after the last centre: where tokens cover a step each, that is the token of the step. Steps
        outside the window are left to other windows. With `causal`, a step is read from the last token that covers
        nothing after it; steps after the window may be read from its last token too, and a step before the end of the
        first token has no reading. Tokens with the same centre (end), as of several channels, are averaged.

        In a picture a step is a pixel, read bilinearly between the centres of the four tokens around it, and flat
        beyond the outer ones. Raises `EncoderError` for a picture that is to be read with `causal`, or whose tokens
        are not those of its grid.
        """
        asked = steps[:, :, None]  # [R, M, 1]
        real = tokens.mask[:, None]  # [R, 1, T]
        inside = (steps >= 0) & (steps < lengths[:, None])
        if tokens.grid is not None:
            if causal:
                raise EncoderError("a picture has no before and after: its steps cannot be read causally")
            weight = inside.double()
            share = _in_picture(tokens, tokens.grid, asked) * weight[..., None]
        elif causal:
            place = tokens.stop[:, None].double()
            last = torch.where(real & (place <= asked + 1), place, -torch.inf).amax(-1, keepdim=True)  # [R, M, 1]
            share = _alike(real, place, last)
            weight = 1 / (2 + asked - last)[..., 0]  # the nearer the end of the token, the better; of none it is 0
        else:
            place = (tokens.start[:, None] + tokens.stop[:, None] - 1).double() / 2
            left = torch.where(real & (place <= asked), place, -torch.inf).amax(-1, keepdim=True)
            right = torch.where(real & (place > asked), place, torch.inf).amin(-1, keepdim=True)
            left, right = torch.where(left.isinf(), right, left), torch.where(right.isinf(), left, right)
            part = torch.where(right > left, (asked - left) / (right - left), 0)
            share = (1 - part) * _alike(real, place, left) + part * _alike(real, place, right)
            weight = (inside & tokens.mask.any(1, keepdim=True)).double()
            share = share * weight[..., None]
        return cls(share.float(), weight.float(), None if bool(tokens.mask.all()) else tokens.mask)

    def read(self, x: Float[Tensor, "R T D"]) -> tuple[Float[Tensor, "R M D"], Float[Tensor, "R M"]]:
        """The reading of each step, zeros where there is none, and its weight; in float32 or float64."""
        x = widen(x)
        if self.mask is not None:  # a masked token may hold anything, NaN included
            x = torch.where(self.mask[..., None], x, 0)
        return torch.bmm(self.share.to(x.dtype), x), self.weight


def _in_picture(tokens: TokenMap, grid: Grid, asked: Int[Tensor, "R M 1"]) -> Float[Tensor, "R M T"]:
    """Bilinear shares, of sum 1, of the tokens whose centres are around each pixel."""
    count = tokens.mask.sum(1)
    if bool((count != grid.rows * grid.columns).any()):
        raise EncoderError(f"a picture of {grid.rows} x {grid.columns} tokens has rows of {count.unique().tolist()}")
    order = (tokens.mask.cumsum(1) - 1)[:, None]  # [R, 1, T]
    share = tokens.mask[:, None].double()
    for pixel, token, size in (
        (asked // grid.side, order // grid.columns, grid.rows),
        (asked % grid.side, order % grid.columns, grid.columns),
    ):
        place = ((pixel + 0.5) * size / grid.side - 0.5).clamp(0, size - 1)  # in tokens, 0 at the centre of the first
        share = share * (1 - (place - token).abs()).clamp(min=0)
    return share


def _alike(real: Tensor, place: Tensor, wanted: Tensor) -> Float[Tensor, "R M T"]:
    """Equal shares, of sum 1, of the real tokens at the place wanted; zeros where there is none."""
    same = (real & (place == wanted)).double()
    return same / same.sum(-1, keepdim=True).clamp(min=1)
