"""Scores of quantile forecasts, higher is better: the scaled error of the median, and losses over all quantiles.

They take checked input: forecasts `p [P, N, H, Q]` of H steps at the Q = 9 `LEVELS`, weights `w [R, N]`, and give
`[R, P]`. `metrics` registers them, and says what they have in common with all other scores. Targets `y [N, H]` are in
units of the MASE scale of their series, about its last value (`tsprobe.tasks.forecasting`), NaN where the future is not
known. Means go over all known steps of all samples, as those of `gluonts.ev` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Num

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEDIAN = LEVELS.index(0.5)


def neg_mase(y: Num[Tensor, "N H"], p: Float[Tensor, "P N H Q"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Minus the mean absolute scaled error (Hyndman and Koehler 2006) of the median.

    The scale is in `y` already, so that it is the mean absolute error. 0 is perfect, -1 is what the seasonal naive
    forecast did one step ahead in the history, on the average.
    """
    known = ~y.isnan()
    error = torch.where(known, (p[..., MEDIAN].double() - y).abs(), 0).sum(-1)  # [P, N]
    return -(w @ error.T) / (w @ known.double().sum(1, keepdim=True))


def neg_sql(y: Num[Tensor, "N H"], p: Float[Tensor, "P N H Q"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Minus the scaled quantile loss: twice the pinball loss, averaged over the levels, in units of the MASE scale.

    With ever more levels it becomes the scaled CRPS. A forecast whose quantiles are all alike scores its `neg_mase`.
    """
    return -(w @ _pinball(y, p).T) / (w @ (~y.isnan()).double().sum(1, keepdim=True))


def neg_wql(y: Num[Tensor, "N H"], p: Float[Tensor, "P N H Q"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Minus the weighted quantile loss: sums of twice the pinball loss over the sum of |y|, averaged over the levels.

    As `y` is scaled, series of all sizes count alike, and as it is told from the last value, -1 is what a forecast
    gets that repeats it. Published values, of targets as they are, cannot be compared.
    """
    return -(w @ _pinball(y, p).T) / (w @ y.double().abs().nan_to_num(nan=0.0).sum(1, keepdim=True))


def _pinball(y: Tensor, p: Float[Tensor, "P N H Q"]) -> Float[Tensor, "P N"]:
    """Twice the pinball loss, averaged over the levels, summed over the known steps."""
    known = ~y.isnan()
    total = torch.zeros(p.shape[:2], dtype=torch.float64, device=p.device)
    for q, level in enumerate(LEVELS):
        error = y - p[..., q].double()
        total += torch.where(known, torch.maximum(level * error, (level - 1) * error), 0).sum(-1)
    return total * (2 / len(LEVELS))
