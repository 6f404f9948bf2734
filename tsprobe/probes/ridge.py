"""Ridge regression in closed form, all strengths and targets of a fit from one Gram matrix.

With standardised features X `[n, D]` and centred targets Y, the weights at strength a solve

    min ||Y - XW||^2 + a n ||W||^2,    a n = scikit-learn's alpha,

the intercept being free: W = (X'X + a n I)^-1 X'Y, or, where D > n, X'(XX' + a n I)^-1 Y. Classes are coded -1/+1, one
against the rest, as scikit-learn's RidgeClassifier does; labels 0/1. Columns of Y with the same unknown rows share
their Gram matrices, on their known rows.

The products X'X of each fold are computed once, at 2 N D^2 operations for all of them; what the fit without a fold sees
is their sum (`moments`), and its standardising a scaling of rows and columns. XX' changes with the standardising, and
costs 2 N^2 D operations a fold. The way that costs less is taken. The strength is chosen on the fits without a fold,
and only the strength chosen is fitted again on all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.metrics import Metric
from tsprobe.probes import base, shifted
from tsprobe.probes.gram import Coded, Fits, Sums, coded, never_choose

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Per training row, so that a strength means the same on a fold and on all rows, and on data sets of unlike size. The
# mean eigenvalue of X'X/n is 1: the grid runs from nearly no penalty to nearly no weights. At 100 rows it is
# scikit-learn's alpha from 1e-3 to 1e5.
STRENGTHS = tuple(10.0**e for e in range(-5, 4))
_CACHE = 2**25  # bytes: groups whose arrays stay in a CPU's cache together are worked on together, others one by one


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
    problem, order = _sorted(base.check(x, target, x_test, folds, metric))
    y = coded(problem)
    (_, n, d), m, k, f, a = x.shape, x_test.shape[1], y.width, problem.n_folds, len(grid)
    fits = _Primal if _primal_is_quicker(n, d, f, a) else _Dual
    return base.readout(
        problem,
        metric,
        grid,
        lambda x, x_test: _solve(fits, problem, y, x[:, order], x_test, grid),
        group_bytes=8 * (4 * (n + m) * d + 3 * (f + 1) * min(n, d) ** 2 + 2 * a * (n + m) * k),
        strongest_last=True,
        double=False,
        chunk_bytes=_CACHE if x.device.type == "cpu" else None,
    )


def _sorted(problem: base.Problem) -> tuple[base.Problem, Int[Tensor, " N"]]:
    """The problem with targets in the order of the folds, a fold being a slice, and that order for its features."""
    order = problem.folds.argsort(stable=True)
    series = None if problem.target.series is None else problem.target.series.to(order.device)[order]
    target = replace(problem.target, y=problem.target.y.to(order.device)[order], series=series)
    y, known, folds = problem.y[order], problem.known[order], problem.folds[order]
    return replace(problem, target=target, y=y, known=known, folds=folds), order


def _primal_is_quicker(n: int, d: int, folds: int, strengths: int) -> bool:
    """By operations: products X'X for all folds and a solve of size D each, or XX' and a solve of size n for each."""
    primal = 2 * n * d**2 + folds * shifted.operations(d, strengths)
    return primal < folds * (2 * n**2 * d + shifted.operations(n - n // folds, strengths))


class _Primal:
    """Fits from X'X."""

    def __init__(self, problem: base.Problem, y: Coded, x: Float[Tensor, "g N D"]) -> None:
        sums = Sums(y, len(x), problem.n_folds, x.shape[2], x.device)
        rows = torch.arange(x.shape[1], device=x.device)
        for part, fold in enumerate(_slices(problem.folds)):
            sums.add(part, x[:, fold], rows[fold])
        self.predict = Fits(sums).predict


class _Dual:
    """Fits from XX'."""

    def __init__(self, problem: base.Problem, y: Coded, x: Float[Tensor, "g N D"]) -> None:
        self.folds, self.y, self.x = problem.folds, y, x.double()

    def predict(
        self, fit: int, x_new: Float[Tensor, "g m D"], strengths: Float[Tensor, "g A"]
    ) -> Float[Tensor, "g A m K"]:
        rows = self.folds != fit
        standardise = base.Standardiser.fit(self.x[:, rows])
        x, x_new = standardise(self.x), standardise(x_new)
        out = x_new.new_empty(*strengths.shape, x_new.shape[1], self.y.width)
        for columns in self.y.columns:
            seen = rows & columns.known
            if not seen.any():
                out[..., columns.place] = self.y.fallback[columns.place]
                continue
            known, y = x[:, seen], columns.y[seen]
            mean, y_mean = known.mean(1, keepdim=True), y.mean(0)
            known = known - mean
            left = (x_new - mean) @ known.mT
            right = (y - y_mean).expand(len(x), -1, -1)
            out[..., columns.place] = shifted.solve(known @ known.mT, right, strengths * len(y), left) + y_mean
        return out


def _slices(folds: Int[Tensor, " N"]) -> list[slice]:
    """Of the folds of sorted rows."""
    stops = folds.bincount().cumsum(0).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise([0, *stops])]


def _solve(
    way: type[_Primal] | type[_Dual],
    problem: base.Problem,
    y: Coded,
    x: Float[Tensor, "g N D"],
    x_test: Float[Tensor, "g M D"],
    strengths: tuple[float, ...],
) -> base.Solved:
    """Predictions of each fold by the fit without it, and of the test rows by the fit on all rows."""
    grid = torch.tensor(strengths, dtype=torch.float64, device=x.device)
    fits = way(problem, y, x)

    def predict(fit: int, x_new: Tensor, strengths: Float[Tensor, "g A"]) -> Float[Tensor, "g A m K"]:
        out = fits.predict(fit, x_new.double(), strengths)
        return out if y.present is None else never_choose(out, y.present[fit])

    everywhere = grid.expand(len(x), -1)
    held_out = torch.cat([predict(f, x[:, fold], everywhere) for f, fold in enumerate(_slices(problem.folds))], 2)
    return base.Solved(held_out, lambda chosen: predict(problem.n_folds, x_test, grid[chosen][:, None])[:, 0])
