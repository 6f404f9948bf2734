"""Ridge fits from Gram matrices X'X: sums over each fold, and from them the fits without a fold and on all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tsprobe.probes import base, shifted
from tsprobe.probes.moments import Moments, Rows, Spread, leave_one_out

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_ROWS = 1024  # that are summed together at the least, for quick products
_NUMBERS = 2**19  # and at the most, where rows are short: few enough to stay in a CPU's cache


class Columns(NamedTuple):
    """Targets that are known on the same rows."""

    place: Int[Tensor, " k"]
    known: Bool[Tensor, " N"]
    y: Float[Tensor, "N k"]


@dataclass(frozen=True)
class Coded:
    """Targets as ridge fits them."""

    columns: tuple[Columns, ...]
    width: int
    present: Bool[Tensor, "F+1 K"] | None  # the classes that each fit has seen, the last on all rows; None for values
    fallback: Float[Tensor, " K"]  # what is predicted where a fit sees no value of a target


def coded(question: base.Question) -> Coded:
    """Classes as -1/+1, and the targets by the rows on which they are known."""
    classes = question.target.kind == "classification"
    y = question.y * 2 - 1 if classes else question.y
    masks, mask_of = question.known.unique(dim=1, return_inverse=True)  # [N, masks], [K]
    columns = []
    for i in range(masks.shape[1]):
        place = (mask_of == i).nonzero().flatten()
        columns.append(Columns(place, masks[:, i], y[:, place]))
    fits = [*question.training_rows(), torch.ones_like(question.folds, dtype=torch.bool)]
    present = torch.stack([question.y[rows].any(0) for rows in fits]) if classes else None
    return Coded(tuple(columns), y.shape[1], present, question.fallback)


def never_choose(scores: Float[Tensor, "*batch m K"], present: Bool[Tensor, " K"]) -> Float[Tensor, "*batch m K"]:
    """Put classes that the fit has not seen below all others: their constant -1 could else win far from the data."""
    lowest = scores[..., present].amin(-1, keepdim=True)
    return torch.where(present, scores, lowest - 1)


class Sums:
    """Moments of the rows of each fold: of all of them for the standardising, of the known ones for each `Columns`."""

    def __init__(self, y: Coded, groups: int, parts: int, width: int, device: torch.device | str = "cpu") -> None:
        self.y = y
        self.spread = Spread.empty(groups, parts, width, device)
        self.moments = [Moments.empty(groups, parts, width, c.y.shape[1], device) for c in y.columns]

    def add(self, part: int, x: Float[Tensor, "g n D"], rows: Int[Tensor, " n"]) -> None:
        """Take in features of training rows of one fold."""
        step = max(_ROWS, _NUMBERS // (len(x) * x.shape[2]))
        for some, values in zip(rows.split(step), x.split(step, 1), strict=True):
            taken = Rows.of(values)
            self.spread.add(part, taken)
            for columns, moments in zip(self.y.columns, self.moments, strict=True):
                known = columns.known[some]
                if known.all():
                    moments.add(part, taken, columns.y[some])
                elif known.any():
                    moments.add(part, taken.take(known), columns.y[some[known]])

    def merge(self, other: Sums) -> None:
        """Take in the rows that another has seen."""
        self.spread.merge(other.spread)
        for mine, theirs in zip(self.moments, other.moments, strict=True):
            mine.merge(theirs)


class Fits:
    """The fits that a group of sums allows: number f without fold f, number F on all rows."""

    def __init__(self, sums: Sums, groups: slice = slice(None)) -> None:
        self.y, self.spread = sums.y, sums.spread[groups]
        self.n_folds = len(sums.spread.count)
        self.sees = leave_one_out(self.n_folds, sums.spread.mean.device)
        self.parts = [moments[groups] for moments in sums.moments]
        self.pooled = [moments.pooled(self.sees) for moments in self.parts]

    def predict(
        self, fit: int, x_new: Float[Tensor, "g m D"], strengths: Float[Tensor, "g A"]
    ) -> Float[Tensor, "g A m K"]:
        """Predictions of float64 features, at strengths that multiply the number of rows."""
        inverse = self.inverse(fit)
        out = x_new.new_empty(*strengths.shape, x_new.shape[1], self.y.width)
        for columns, m in zip(self.y.columns, self.pooled, strict=True):
            if m.count[fit] == 0:
                out[..., columns.place] = self.y.fallback[columns.place]
            else:
                left = (x_new - m.mean[:, fit, None]).mul_(inverse)
                out[..., columns.place] = _solve(m, fit, inverse, strengths, left) + m.y_mean[fit]
        return out

    def weights(
        self, fit: int, strengths: Float[Tensor, "g A"]
    ) -> tuple[Float[Tensor, "g A D K"], Float[Tensor, "g A K"]]:
        """Weights and intercepts for features as they are."""
        inverse = self.inverse(fit)
        g, _, d = inverse.shape
        w = inverse.new_zeros(g, strengths.shape[1], d, self.y.width)
        b = self.y.fallback.expand(g, strengths.shape[1], -1).clone()
        for columns, m in zip(self.y.columns, self.pooled, strict=True):
            if m.count[fit] > 0:
                found = _solve(m, fit, inverse, strengths) * inverse.mT[:, None]
                w[..., columns.place] = found
                b[..., columns.place] = m.y_mean[fit] - (m.mean[:, fit, None, None] @ found)[:, :, 0]
        return w, b

    def squared_errors(self, strengths: Float[Tensor, "g A"]) -> Float[Tensor, "g A K"]:
        """Sums over the known rows of every fold of the squared error of the fit without it.

        With r the difference of the mean target and the mean prediction, that is |Y|^2 - 2 W.(X'Y) + W.(X'X W) + n r^2
        for X and Y about their means in the fold.
        """
        out = strengths.new_zeros(*strengths.shape, self.y.width)
        for fit in range(self.n_folds):
            inverse = self.inverse(fit)
            for columns, part, m in zip(self.y.columns, self.parts, self.pooled, strict=True):
                n = part.count[fit]
                if n == 0:
                    continue
                if m.count[fit] == 0:
                    rest = part.y_mean[fit] - self.y.fallback[columns.place]
                    out[..., columns.place] += part.y_square[fit] + n * rest.square()
                    continue
                w = _solve(m, fit, inverse, strengths) * inverse.mT[:, None]  # [g, A, D, k]
                product, cross = part.whole(fit)[:, None], part.cross[:, fit, None]
                rest = part.y_mean[fit] - m.y_mean[fit]
                rest = rest - ((part.mean[:, fit] - m.mean[:, fit])[:, None, None] @ w)[:, :, 0]
                error = (w * (product @ w - 2 * cross)).sum(2) + part.y_square[fit] + n * rest.square()
                out[..., columns.place] += error.clamp(min=0)  # a perfect fit is 0 but for rounding
        return out

    def inverse(self, fit: int) -> Float[Tensor, "g 1 D"]:
        """Inverse deviations of the columns, over all rows of the fit whether their targets are known or not."""
        return self.spread.standardiser(self.sees[fit]).inverse


def _solve(
    m: Moments,
    fit: int,
    inverse: Float[Tensor, "g 1 D"],
    strengths: Float[Tensor, "g A"],
    left: Float[Tensor, "g m D"] | None = None,
) -> Float[Tensor, "g A m k"]:
    """Weights of standardised features, or their products with `left`."""
    matrix = (m.product[:, fit] * inverse.mT).mul_(inverse)
    return shifted.solve(matrix, m.cross[:, fit] * inverse.mT, strengths * m.count[fit], left)
