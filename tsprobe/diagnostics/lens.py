"""The model's own lens: how much of its final embedding a linear map reads from an earlier layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.diagnostics.catalogue import Undefined

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

STRENGTHS = tuple(10.0**e for e in range(-6, 3))  # of the ridge, times the mean eigenvalue
HELD_OUT = 1 / 3


def held_out(groups: Int[np.ndarray, " N"], seed: int = 0) -> Bool[np.ndarray, " N"]:
    """A third of the groups (the series of each row), drawn with a seed: rows of a series are all in or all out."""
    names = np.unique(groups)
    drawn = np.random.default_rng(seed).permutation(names)[: round(len(names) * HELD_OUT)]
    return np.isin(groups, drawn)


def lens_r2(x: Float[Tensor, "N D"], final: Float[Tensor, "N E"], out: Bool[Tensor, " N"]) -> float:
    """Variance-weighted R² of ridge from a layer to the final one, on the rows that are held out; at most 1.

    After the tuned lens (Belrose et al. 2023), which learns an affine map from each layer to the last; that one is
    judged by what the model then predicts, this one by the embedding itself. The strength is the best of `STRENGTHS`
    by generalised cross-validation (Golub et al. 1979) on the other rows, one for all dimensions. Costs min(N, D)³.
    """
    if int(out.sum()) < 2 or int((~out).sum()) < 4:
        raise Undefined("too few series to hold some out")
    fit, target = x[~out], final[~out]
    middle, aim = fit.mean(0), target.mean(0)
    fit, target = fit - middle, target - aim
    spread = (final[out] - final[out].mean(0)).square().sum()
    total = target.square().sum()
    if not (spread > 0 and total > 0):
        raise Undefined("the final layer is the same in all samples")
    n = len(fit)
    wide = fit.shape[1] > n
    values, basis = torch.linalg.eigh(fit @ fit.T if wide else fit.T @ fit)
    kept = values > values[-1] * max(fit.shape) * torch.finfo(values.dtype).eps
    values, basis = values[kept], basis[:, kept]
    if not len(values):
        raise Undefined("the layer is the same in all samples")
    # the target in the left singular directions, [r, E]
    seen = basis.T @ target if wide else basis.T @ (fit.T @ target) / values.sqrt()[:, None]
    right = fit.T @ basis / values.sqrt() if wide else basis  # [D, r]
    power = seen.square().sum(1)
    strengths = values.new_tensor(STRENGTHS) * values.sum() / min(fit.shape)
    shrunk = values / (values + strengths[:, None])  # [A, r]
    residual = total - (power * (2 * shrunk - shrunk.square())).sum(1)
    best = int((residual / (1 - shrunk.sum(1) / n - 1 / n).clamp(min=1e-12).square()).argmin())
    weights = right @ (seen * (shrunk[best] / values.sqrt())[:, None])  # [D, E]
    error = final[out] - aim - (x[out] - middle) @ weights
    return float(1 - error.square().sum() / spread)
