"""A linear head for quantile forecasts: a median regression, and quantiles of what it leaves for the other levels.

For the features x of a sample, step h and level q the forecast is

    m_h(x) + s(x) Q_q(e_h),    s(x) = exp(c z(x)),

with m_h the linear median regression of the step (`median`), z linear too, and Q_q the quantile of the standardised
residuals e = (y - m) / s of training rows, each of which a fit has predicted that did not see its fold. The levels of a
step share their weights and differ in intercept and spread, as in composite quantile regression (Zou and Yuan 2008), so
that they never cross. Residuals are those of cross-conformal prediction (Vovk 2015): the quantiles of a row in fold f
leave out all rows of that fold.

z is fitted, by least squares, to the logarithm of how far the whole row lies from the medians, and c says how much of
that is left in the residuals: the slope of the logarithm of their size on z, not below 0, over all training rows.

Where rows have units, x is multiplied by that of its row, which is a feature too: an encoder that brings every window
to one size cannot know what its forecast has to be multiplied with.

A quantile regression of its own for every level would take nine times as long as that of the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.errors import DataError, SpecError
from tsprobe.forecast_metrics import LEVELS
from tsprobe.metrics import Metric
from tsprobe.probes import base, median

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_FLOOR = 0.1  # of the median size of residuals, added to sizes before their logarithm is taken
_WIDEST = 2.0  # of the logarithm of s, at which it is cut


def fit_predict(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """Quantile head of every group: predictions `[G, M, H Q]`, for each step the levels 0.1 to 0.9 in order.

    Strengths are those of `median`, ties go to the largest. Raises DataError for features or targets that cannot be
    used, SpecError for targets that are no forecast, an unfitting metric or grid.
    """
    if target.kind != "forecast":
        raise SpecError(f"the quantile probe needs a forecast, not {target.kind} targets; take ridge")
    grid = base.check_strengths(strengths, median.STRENGTHS)
    problem = base.check(x, target, x_test, folds, metric)
    units = _units(target, x, x_test)
    y = torch.where(problem.known, problem.y, torch.nan)
    fitted = torch.cat([y, _log_size(y - y.nanmedian(0).values)[:, None]], 1)
    targets = median.Targets.of(fitted, problem, squared=[False] * y.shape[1] + [True])

    def solve(x: Tensor, x_test: Tensor) -> base.Solved:
        if units is not None:
            x, x_test = _in_units(x, units[0]), _in_units(x_test, units[1])
        solved = median.solve(targets, problem.folds, x, x_test, grid)
        spread = _Spread.of(solved.held_out, y, problem.folds, problem.n_folds)

        def refit(chosen: Int[Tensor, " g"]) -> Tensor:
            assert isinstance(solved.test, Tensor)  # given at all strengths
            at = torch.arange(len(chosen), device=chosen.device), chosen
            return spread.chosen(chosen).forecast(solved.test[at][:, None], None)[:, 0]

        return base.Solved(spread.forecast(solved.held_out, problem.folds), refit, solved.gradient_norm)

    (_, n, d), m, h, f, a = x.shape, x_test.shape[1], y.shape[1], problem.n_folds + 1, len(grid)
    return base.readout(
        problem,
        metric,
        grid,
        solve,
        group_bytes=8 * (4 * (n + m) * d + 3 * f * h * (n + d) + a * h * (n + m) * (2 * len(LEVELS) + 4)),
        strongest_last=True,
        double=False,
        chunk_bytes=1 if x.device.type == "cpu" else None,  # the arrays of one group stay in its cache
    )


def _units(target: base.Target, x: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor] | None:
    """Checked, on the device of `x` and of its type."""
    if target.units is None:
        return None
    train, test = (u.to(x.device, x.dtype) for u in target.units)
    if train.shape != x.shape[1:2] or test.shape != x_test.shape[1:2]:
        sizes = f"{x.shape[1]} and {x_test.shape[1]}"
        raise DataError(f"units of {list(train.shape)} and {list(test.shape)} rows for {sizes}")
    if not (train.isfinite().all() and test.isfinite().all()):
        raise DataError("units hold NaN or infinite values")
    return train, test


def _in_units(x: Float[Tensor, "g m D"], units: Float[Tensor, " m"]) -> Float[Tensor, "g m D1"]:
    units = units[:, None]
    return torch.cat([x * units, units.expand(len(x), -1, -1)], 2)


def _log_size(residual: Float[Tensor, "*batch N H"]) -> Float[Tensor, "*batch N"]:
    """Log of the mean size over the known steps of a row, each in units of its median over rows; NaN without a step."""
    size = residual.abs()
    unit = size.nanmedian(-2, keepdim=True).values
    unit = torch.where(unit > 0, unit, size.nanmean(-2, keepdim=True)).clamp(min=torch.finfo(size.dtype).tiny)
    return (_FLOOR + (size / unit).nanmean(-1)).log()


@dataclass(frozen=True)
class _Spread:
    """How residuals lie about the location: `quantiles [g, A, F + 1, H, Q]` of them without each fold, and with all.

    `slope` and `middle`, `[g, A, 1]`, make the logarithm of a row's spread from z.
    """

    quantiles: Float[Tensor, "g A F1 H Q"]
    slope: Float[Tensor, "g A 1"]
    middle: Float[Tensor, "g A 1"]

    @classmethod
    def of(
        cls, fitted: Float[Tensor, "g A N H1"], y: Float[Tensor, "N H"], folds: Int[Tensor, " N"], n_folds: int
    ) -> _Spread:
        location, z = fitted[..., :-1], fitted[..., -1]
        residual = y - location
        size = _log_size(residual)
        seen = ~size.isnan()
        z_seen, size = torch.where(seen, z, 0), torch.where(seen, size, 0)
        middle = z_seen.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
        about = torch.where(seen, z - middle, 0)
        bend = about.square().sum(-1, keepdim=True)
        slope = torch.where(bend > 0, (about * size).sum(-1, keepdim=True) / bend, 0).clamp(min=0)
        spread = cls(residual.new_empty(0), slope, middle)
        standard = residual / spread.scale(z)[..., None]
        return replace(spread, quantiles=_quantiles_without(standard, folds, n_folds))

    def scale(self, z: Float[Tensor, "g A m"]) -> Float[Tensor, "g A m"]:
        return (self.slope * (z - self.middle)).clamp(-_WIDEST, _WIDEST).exp()

    def chosen(self, best: Int[Tensor, " g"]) -> _Spread:
        """At one strength for each group."""
        rows = torch.arange(len(best), device=best.device)
        return _Spread(*(t[rows, best][:, None] for t in (self.quantiles, self.slope, self.middle)))

    def forecast(self, fitted: Float[Tensor, "g A m H1"], folds: Int[Tensor, " m"] | None) -> Float[Tensor, "g A m HQ"]:
        """Forecasts of rows of these folds, or of rows of none."""
        location, scale = fitted[..., :-1, None], self.scale(fitted[..., -1])[..., None, None]
        if folds is None:
            return (location + scale * self.quantiles[:, :, -1:]).flatten(-2)
        out = torch.empty(*location.shape[:-1], len(LEVELS), dtype=location.dtype, device=location.device)
        for fold in range(self.quantiles.shape[2] - 1):
            rows = folds == fold
            out[:, :, rows] = location[:, :, rows] + scale[:, :, rows] * self.quantiles[:, :, fold, None]
        return out.flatten(-2)


def _quantiles_without(
    e: Float[Tensor, "g A N H"], folds: Int[Tensor, " N"], n_folds: int
) -> Float[Tensor, "g A F1 H Q"]:
    """Quantiles over the known rows outside each fold, and over all of them; interpolated as numpy does by default.

    All are read off one sort. Where no row is left they are 0.
    """
    values, order = e.mT.contiguous().sort(-1)  # [g, A, H, N]; NaN comes last
    known, fold_of = ~values.isnan(), folds[order]
    levels = torch.tensor(LEVELS, dtype=e.dtype, device=e.device)
    found = []
    for fold in range(n_folds + 1):  # of the last there are no rows
        rank = (known & (fold_of != fold)).cumsum(-1, dtype=torch.int32)
        count = rank[..., -1:]
        place = levels * (count - 1).clamp(min=0)
        below = place.floor()
        low, high = (
            values.gather(-1, torch.searchsorted(rank, r.int().contiguous()).clamp(max=values.shape[-1] - 1))
            for r in (below + 1, torch.minimum(below + 2, count.clamp(min=1)))
        )
        found.append(torch.where(count > 0, low + (place - below) * (high - low), 0))
    return torch.stack(found, 2)
