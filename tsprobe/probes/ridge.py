"""Ridge regression in closed form: one eigendecomposition a fit gives all strengths and targets.

With standardised features X `[n, D]` and centred targets Y, the weights at strength a solve

    min ||Y - XW||^2 + a n ||W||^2,    a n = scikit-learn's alpha,

the intercept being free. X'X = V diag(s) V' gives W = V (s + a n)^-1 V'X'Y; where D > n, XX' = U diag(s) U' gives
the same W = X'U (s + a n)^-1 U'Y. Classes are coded -1/+1, one against the rest, as scikit-learn's RidgeClassifier
does; labels 0/1. Columns of Y with the same unknown rows share a decomposition, on their known rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.metrics import Metric
from tsprobe.probes import base

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# Per training row, so that a strength means the same on a fold and on all rows, and on data sets of unlike size. The
# mean eigenvalue of X'X/n is 1: the grid runs from nearly no penalty to nearly no weights. At 100 rows it is
# scikit-learn's alpha from 1e-3 to 1e5.
STRENGTHS = tuple(10.0**e for e in range(-5, 4))


def fit_predict(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """Ridge readout of every group; strengths multiply the number of rows of a fit, ties go to the largest.

    Raises DataError for features or targets that cannot be used, SpecError for an unfitting metric or grid.
    """
    grid = base.check_strengths(strengths, STRENGTHS)
    problem = base.check(x, target, x_test, folds, metric)
    _, n, d = x.shape
    masks, mask_of = problem.known.unique(dim=1, return_inverse=True)  # [N, masks], [K]
    y = problem.y * 2 - 1 if target.kind == "classification" else problem.y
    fallback = problem.fallback

    def fit(x: Tensor, x_new: Tensor, rows: Bool[Tensor, " N"]) -> Float[Tensor, "g A m K"]:
        standardise = base.Standardiser.fit(x[:, rows])
        x, x_new = standardise(x), standardise(x_new)
        out = x.new_empty(len(x), len(grid), x_new.shape[1], problem.y.shape[1])
        for i in range(masks.shape[1]):
            columns, seen = mask_of == i, rows & masks[:, i]
            if seen.any():
                out[..., columns] = solve(x[:, seen], y[seen][:, columns], x_new, grid)
            else:
                out[..., columns] = fallback[columns]
        return _never_choose(out, problem.y[rows].any(0)) if target.kind == "classification" else out

    r, k, m = min(n, d), problem.y.shape[1], x_test.shape[1]
    group_bytes = 8 * (4 * (n + m) * d + 4 * r * r + 2 * len(grid) * (n + m) * k)
    return base.readout(
        problem,
        metric,
        grid,
        lambda a, b: base.solve_by_fold(problem, fit, a, b),
        group_bytes=group_bytes,
        strongest_last=True,
    )


def solve(
    x: Float[Tensor, "g n D"], y: Float[Tensor, "n K"], x_new: Float[Tensor, "g m D"], strengths: Sequence[float]
) -> Float[Tensor, "g A m K"]:
    """Predictions at `x_new` of the ridge fits of `y` on `x`, for all strengths (per row; sklearn's alpha / n)."""
    n = x.shape[1]
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = base.gram_eigen(x)
    basis = gram.vectors if gram.primal else x.mT @ gram.vectors  # [g, D, r]
    projected = (x @ basis).mT @ y if gram.primal else gram.vectors.mT @ y  # [g, r, K]
    penalty = n * torch.tensor(strengths, dtype=x.dtype, device=x.device)
    weights = projected[:, None] / (gram.values[:, None] + penalty[:, None])[..., None]  # [g, A, r, K]
    return ((x_new - x_mean) @ basis)[:, None] @ weights + y_mean


def _never_choose(scores: Float[Tensor, "g A m K"], present: Bool[Tensor, " K"]) -> Float[Tensor, "g A m K"]:
    """Put classes that the fit has not seen below all others: their constant -1 could else win far from the data."""
    lowest = scores[..., present].amin(-1, keepdim=True)
    return torch.where(present, scores, lowest - 1)
