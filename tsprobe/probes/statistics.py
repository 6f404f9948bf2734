"""Ridge from additive statistics: features are seen once, block after block, and never kept.

What is kept of the training rows are the moments of each fold (`moments`), G F D^2 numbers for any N. They add up:
shards of the rows may be taken in apart and merged. From them come the fits without each fold, their squared error on
that fold, the choice of the strength, and the weights of the fit on all rows, as `ridge` has them from kept features.

A score that needs predictions of single rows (accuracy, balanced accuracy, AUROC) cannot be had of moments. For
classes and labels the strength is therefore chosen by the R2 of the coded targets (-1/+1, or 0/1) out of fold, and that
is the inner score, whatever the metric. For regression the inner score is the metric itself, as with kept features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsprobe.errors import DAMAGE, DataError, StorageError, reason
from tsprobe.files import read_arrays, replace_file
from tsprobe.metrics import Metric
from tsprobe.probes import base
from tsprobe.probes.gram import Fits, Sums, coded, never_choose
from tsprobe.probes.ridge import STRENGTHS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

BUFFERED = 2048  # rows that wait to be summed together: products of many rows are quick, those of a few are not
CODED_R2 = "r2 of the coded targets"


@dataclass(frozen=True)
class Solution:
    """What statistics say of each group.

    `inner [G, A]` is out of fold: `criterion` names the score. `weights [G, D, K]` and `intercept [G, K]` are of the
    refit on all rows at the strength chosen; `present [K]` are the classes among them, None for values and labels.
    """

    strengths: tuple[float, ...]
    criterion: str
    inner: Float[Tensor, "G A"]
    chosen: Int[Tensor, " G"]
    weights: Float[Tensor, "G D K"]
    intercept: Float[Tensor, "G K"]
    present: Bool[Tensor, " K"] | None

    def predict(self, x: Float[Tensor, "G m D"]) -> Float[Tensor, "G m K"]:
        """Class scores, label scores or target values, in float64."""
        out = x.double() @ self.weights + self.intercept[:, None]
        return out if self.present is None else never_choose(out, self.present)

    def to(self, device: torch.device | str) -> Solution:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass
class RidgeStatistics:
    """Sums over training rows for G groups of width D. `seen [N]` are the rows that have been taken in.

    Make one with `of`. Targets that are unknown on other rows have products of their own: memory is that of G F D^2
    numbers for each set of targets with the same unknown rows, beside the targets themselves.
    """

    question: base.Question
    sums: Sums
    seen: Bool[np.ndarray, " N"]
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        target: base.Target,
        folds: Int[Tensor, " N"],
        *,
        groups: int,
        width: int,
        device: torch.device | str = "cpu",
    ) -> RidgeStatistics:
        """Empty ones for these targets and folds of the N training rows; raises DataError as `ridge` does."""
        question = base.check_question(target, folds, len(target.y), device)
        sums = Sums(coded(question), groups, question.n_folds, width, device)
        return cls(question, sums, np.zeros(len(folds), bool))

    def update(self, x: Float[Tensor, "G b D"], rows: Int[Tensor, " b"]) -> None:
        """Take in features of some training rows. Raises DataError for a row that was taken in already."""
        groups, _, width = self.sums.spread.mean.shape
        if x.ndim != 3 or x.shape != (groups, len(rows), width):
            raise DataError(f"features {list(x.shape)} where [{groups}, {len(rows)}, {width}] are due")
        if not torch.stack(x.aminmax()).isfinite().all():
            raise DataError("training features hold NaN or infinite values")
        places = rows.cpu().numpy()
        if self.seen[places].any() or len(np.unique(places)) < len(places):
            raise DataError(f"training row {places[self.seen[places]].min(initial=places.min())} was taken in before")
        self.seen[places] = True
        self._waiting.append((x, rows))
        if sum(len(r) for _, r in self._waiting) >= BUFFERED:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        device = self.sums.spread.mean.device
        x = torch.cat([x for x, _ in self._waiting], 1).to(device)
        rows = torch.cat([rows for _, rows in self._waiting]).to(device)
        self._waiting.clear()
        for part in range(self.question.n_folds):
            here = self.question.folds[rows] == part
            if here.any():
                self.sums.add(part, x[:, here], rows[here])

    def merge(self, other: RidgeStatistics) -> None:
        """Take in what another has seen. Raises DataError unless both are of one question and no row is in both."""
        mine, theirs = self.question, other.question
        same = mine.folds.equal(theirs.folds) and mine.y.equal(theirs.y) and mine.known.equal(theirs.known)
        if not same or self.sums.spread.mean.shape != other.sums.spread.mean.shape:
            raise DataError("statistics of other targets, folds or widths cannot be merged")
        if (self.seen & other.seen).any():
            raise DataError(f"training row {np.flatnonzero(self.seen & other.seen)[0]} is in both statistics")
        self._flush()
        other._flush()
        self.sums.merge(other.sums)
        self.seen |= other.seen

    def solve(self, metric: Metric, *, strengths: Sequence[float] | None = None) -> Solution:
        """Choose the strength of each group out of fold, and fit it on all rows; ties go to the largest.

        Raises DataError where training rows are still to come or no target varies, SpecError for an unfitting metric
        or grid.
        """
        base.check_metric(self.question.target, metric)
        grid = base.check_strengths(strengths, STRENGTHS)
        if not self.seen.all():
            raise DataError(f"statistics hold {self.seen.sum()} of {len(self.seen)} training rows")
        self._flush()
        device = self.sums.spread.mean.device
        values = torch.tensor(grid, dtype=torch.float64, device=device)
        score = _SCORES.get(metric.name, _r2)
        found = []
        for group in range(len(self.sums.spread.mean)):  # one by one: fits take as much memory as the sums of a group
            fits = Fits(self.sums, slice(group, group + 1))
            inner = score(fits.squared_errors(values[None]), self._totals(fits))
            best = base.choose(inner, grid, metric.name, strongest_last=True)
            weights, intercept = fits.weights(self.question.n_folds, values[best][:, None])
            found.append((inner, best, weights[:, 0], intercept[:, 0]))
        inner, best, weights, intercept = (torch.cat(column) for column in zip(*found, strict=True))
        present = self.sums.y.present
        criterion = metric.name if metric.name in _SCORES else CODED_R2
        return Solution(grid, criterion, inner, best, weights, intercept, None if present is None else present[-1])

    def _totals(self, fits: Fits) -> _Totals:
        """Of the targets on all their known rows."""
        size, squares = torch.zeros(2, self.sums.y.width, dtype=torch.float64, device=self.question.y.device)
        for columns, moments in zip(self.sums.y.columns, fits.pooled, strict=True):
            size[columns.place], squares[columns.place] = moments.count[-1], moments.y_square[-1]
        y, known = self.question.y, self.question.known
        low, high = torch.where(known, y, torch.inf).amin(0), torch.where(known, y, -torch.inf).amax(0)
        return _Totals(size, squares, low < high)

    def arrays(self) -> dict[str, np.ndarray]:
        """All sums by name, and `seen`: what `from_arrays` needs, beside the question."""
        return {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()} | {"seen": self.seen}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        target: base.Target,
        folds: Int[Tensor, " N"],
        device: torch.device | str = "cpu",
    ) -> RidgeStatistics:
        """Those that `arrays` are of, for the same targets and folds. Raises KeyError or RuntimeError for others."""
        groups, _, width = arrays["spread.mean"].shape
        found = cls.of(target, folds, groups=groups, width=width, device=device)
        found.seen |= arrays["seen"]
        for name, tensor in found.tensors().items():
            tensor.copy_(torch.tensor(arrays[name]))
        return found

    def save(self, path: Path) -> None:
        """Write one file, wholly or not at all."""
        target = self.question.target
        meta = json.dumps({"kind": target.kind, "n_classes": target.n_classes})
        arrays: dict[str, Any] = {"y": target.y.cpu().numpy(), "folds": self.question.folds.cpu().numpy()}
        arrays |= self.arrays()
        replace_file(path, lambda handle: np.savez(handle, meta=np.array(meta), **arrays))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> RidgeStatistics:
        """Read a saved file. Raises `StorageError` for one that is damaged."""
        try:
            data = read_arrays(path)
            meta = json.loads(str(data["meta"]))
            target = base.Target(meta["kind"], torch.from_numpy(data["y"]), meta["n_classes"])
            return cls.from_arrays(data, target, torch.from_numpy(data["folds"]), device)
        except (OSError, *DAMAGE) as error:
            raise StorageError(f"{path} is damaged ({reason(error)}); remove it and run again") from error

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name."""
        self._flush()
        parts = {"spread": self.sums.spread} | {f"moments{i}": m for i, m in enumerate(self.sums.moments)}
        return {f"{part}.{name}": tensor for part, sums in parts.items() for name, tensor in vars(sums).items()}


class _Totals(NamedTuple):
    """Known rows, sum of squares about the mean, and whether there are two values, of each target."""

    known: Float[Tensor, " K"]
    squares: Float[Tensor, " K"]
    varies: Bool[Tensor, " K"]


def _r2(errors: Float[Tensor, "g A K"], totals: _Totals) -> Float[Tensor, "g A"]:
    """As `metrics.r2`: the mean over the targets that vary."""
    score = torch.where(totals.varies, 1 - errors / totals.squares, 0)
    return score.sum(-1) / totals.varies.sum()


def _neg_rmse(errors: Float[Tensor, "g A K"], totals: _Totals) -> Float[Tensor, "g A"]:
    """As `metrics.neg_rmse`."""
    return -(errors / totals.known).sqrt().mean(-1)


_SCORES: dict[str, Callable[[Tensor, _Totals], Tensor]] = {"r2": _r2, "neg_rmse": _neg_rmse}  # sums of squares suffice
