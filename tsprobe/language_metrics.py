"""Scores of answers in words, on checked input: predictions `p [P, N, K]` of N questions, weights `w [R, N]`.

They give `[R, P]`. `metrics` registers them under their names, and says what they have in common with all other scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num


def exact_match(y: Int[Tensor, " N"], p: Float[Tensor, "P N 1"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Share of questions whose answer is the right one, by number; -1 stands for a text that is the answer to none."""
    return w @ (p[..., 0] == y).double().T / w.sum(1, keepdim=True)


def interval_iou(y: Num[Tensor, "N 2"], p: Float[Tensor, "P N 2"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Mean over questions of the intersection over the union of two half-open spans; 0 for a span of no length."""
    y = y.double()
    both = torch.minimum(p[..., 1], y[:, 1]) - torch.maximum(p[..., 0], y[:, 0])
    both = both.clamp(min=0)
    either = (p[..., 1] - p[..., 0]).clamp(min=0) + (y[:, 1] - y[:, 0]) - both
    return w @ (both / either).T / w.sum(1, keepdim=True)
