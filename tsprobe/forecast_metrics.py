"""Scores of quantile forecasts, higher is better: the scaled error of the median, and losses over all quantiles.

A forecast of H steps has Q = 9 columns a step, one for each of `LEVELS`, step after step: `[..., N, H Q]`. Targets
`y [N, H]` are in units of the MASE scale of their series, about its last value (`tsprobe.tasks.forecasting`), NaN where
the future is not known. Means go over all known steps of all samples, as those of `gluonts.ev` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Num

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEDIAN = LEVELS.index(0.5)


def neg_mase(
    y: Num[Tensor, "N H"], prediction: Float[Tensor, "*batch N HQ"], weights: Num[Tensor, "R N"] | None = None
) -> Float[Tensor, "*R_batch"]:
    """Minus the mean absolute scaled error (Hyndman and Koehler 2006) of the median.

    The scale is in `y` already, so that it is the mean absolute error. 0 is perfect, -1 is what the seasonal naive
    forecast did one step ahead in the history, on the average.
    """
    w, p, known = _check(y, prediction, weights)
    error = torch.where(known, (p[..., MEDIAN].double() - y).abs(), 0).sum(-1)  # [P, N]
    return _shape(-(w @ error.T) / (w @ known.double().sum(1, keepdim=True)), prediction, weights)


def neg_sql(
    y: Num[Tensor, "N H"], prediction: Float[Tensor, "*batch N HQ"], weights: Num[Tensor, "R N"] | None = None
) -> Float[Tensor, "*R_batch"]:
    """Minus the scaled quantile loss: twice the pinball loss, averaged over the levels, in units of the MASE scale.

    With ever more levels it becomes the scaled CRPS. A forecast whose quantiles are all alike scores its `neg_mase`.
    """
    w, p, known = _check(y, prediction, weights)
    return _shape(-(w @ _pinball(y, p, known).T) / (w @ known.double().sum(1, keepdim=True)), prediction, weights)


def neg_wql(
    y: Num[Tensor, "N H"], prediction: Float[Tensor, "*batch N HQ"], weights: Num[Tensor, "R N"] | None = None
) -> Float[Tensor, "*R_batch"]:
    """Minus the weighted quantile loss: sums of twice the pinball loss over the sum of |y|, averaged over the levels.

    As `y` is scaled, series of all sizes count alike, and as it is told from the last value, -1 is what a forecast
    gets that repeats it. Published values, of targets as they are, cannot be compared.
    """
    w, p, known = _check(y, prediction, weights)
    size = torch.where(known, y.double().abs(), 0).sum(1, keepdim=True)
    return _shape(-(w @ _pinball(y, p, known).T) / (w @ size), prediction, weights)


def _pinball(y: Tensor, p: Float[Tensor, "P N H Q"], known: Tensor) -> Float[Tensor, "P N"]:
    """Twice the pinball loss, averaged over the levels, summed over the known steps."""
    total = torch.zeros(p.shape[:2], dtype=torch.float64, device=p.device)
    for q, level in enumerate(LEVELS):
        error = y - p[..., q].double()
        total += torch.where(known, torch.maximum(level * error, (level - 1) * error), 0).sum(-1)
    return total * (2 / len(LEVELS))


def _check(
    y: Tensor, prediction: Tensor, weights: Tensor | None
) -> tuple[Float[Tensor, "R N"], Float[Tensor, "P N H Q"], Tensor]:
    if y.ndim != 2 or len(y) == 0:
        raise DataError(f"targets of shape {list(y.shape)} where [N, H] are due")
    (n, h), q = y.shape, len(LEVELS)
    if prediction.ndim < 2 or prediction.shape[-2:] != (n, h * q):
        raise DataError(f"forecasts of shape {list(prediction.shape)} where [..., {n}, {h} steps x {q} levels] is due")
    if prediction.isnan().any():
        raise DataError("forecasts hold NaN; only targets may be masked")
    if weights is None:
        w = torch.ones(1, n, dtype=torch.float64, device=y.device)
    elif weights.ndim != 2 or weights.shape[1] != n or bool((weights < 0).any()):
        raise DataError(f"weights of shape {list(weights.shape)} where non-negative counts [R, {n}] are due")
    else:
        w = weights.double()
    return w, prediction.reshape(-1, n, h, q), ~y.isnan()


def _shape(score: Float[Tensor, "R P"], prediction: Tensor, weights: Tensor | None) -> Tensor:
    lead = prediction.shape[:-2]
    return score.view(lead) if weights is None else score.view(len(score), *lead)
