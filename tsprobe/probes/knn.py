"""Vote of the k nearest training samples by cosine similarity of standardised features.

Exact: all similarities are computed, in chunks of queries. The strength is k; ties go to the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.errors import SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import base

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

STRENGTHS = (1, 3, 5, 10, 20, 50)
# Votes of nearer neighbours weigh up to this much more: enough to part equal counts, and too little to overturn a
# majority as long as k is below its inverse.
_TIE_BREAK = 1e-6


def fit_predict(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """k-nearest-neighbour readout of every group.

    Predictions are class frequencies (with a tie-break of 1e-6), means of the known labels, or means of the known
    target values; where no neighbour's value is known, the mean over the training rows. The default grid leaves out
    every k above the number of training rows of the smallest fit.

    Raises DataError for features or targets that cannot be used, SpecError for an unfitting metric or grid.
    """
    vote = _class_votes if target.kind == "classification" else _means
    return by_neighbours(x, target, x_test, folds, metric, strengths, vote)


def by_neighbours(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    strengths: Sequence[float] | None,
    vote: Callable[..., Float[Tensor, "g A m K"]],
) -> base.Readout:
    """What `vote(similarity [g, m, n], y [n, K], known [n, K], ks [A], mean [K])` makes of the nearest of n rows."""
    problem = base.check(x, target, x_test, folds, metric)
    smallest = len(folds) - int(problem.folds.bincount().max())
    grid = base.check_strengths(strengths, [k for k in STRENGTHS if k <= smallest])
    if any(k > smallest or not k.is_integer() for k in grid):
        raise SpecError(f"strengths {grid} where whole numbers of neighbours from 1 to {smallest} are due")
    ks = torch.tensor(grid, device=x.device).long()
    fallback = problem.fallback

    def fit(x: Tensor, x_new: Tensor, rows: Bool[Tensor, " N"]) -> Float[Tensor, "g A m K"]:
        standardise = base.Standardiser.fit(x[:, rows])
        keys = _unit(standardise(x[:, rows]))
        queries = _unit(standardise(x_new))
        mean = problem.mean_known(rows, fallback)
        y, known = problem.y[rows], problem.known[rows]
        row_numbers = len(x) * (2 * keys.shape[1] + 4 * int(ks.max()) * y.shape[1])
        step = max(1, base.CHUNK_BYTES // 8 // row_numbers)
        return torch.cat([vote(q @ keys.mT, y, known, ks, mean) for q in queries.split(step, 1)], 2)

    (_, n, d), m, k = x.shape, x_test.shape[1], problem.y.shape[1]
    return base.readout(
        problem,
        metric,
        grid,
        lambda a, b: base.solve_by_fold(problem, fit, a, b),
        group_bytes=8 * (4 * (n + m) * d + 2 * len(grid) * (n + m) * k),
        strongest_last=True,
    )


def _unit(x: Float[Tensor, "g n D"]) -> Float[Tensor, "g n D"]:
    """Rows of length 1; zero rows stay zero and are equally far from everything."""
    norm = x.norm(dim=2, keepdim=True)
    return torch.where(norm > 0, x / norm, 0)


def _class_votes(similarity: Tensor, y: Tensor, known: Tensor, ks: Tensor, mean: Tensor) -> Float[Tensor, "g A m K"]:
    near, index = similarity.topk(int(ks.max()), dim=2)  # [g, m, k], nearest first
    votes = y[index] * (1 + _TIE_BREAK * (1 + near) / 2)[..., None]
    return (votes.cumsum(2)[:, :, ks - 1] / ks[:, None]).movedim(2, 1)


def _means(similarity: Tensor, y: Tensor, known: Tensor, ks: Tensor, mean: Tensor) -> Float[Tensor, "g A m K"]:
    index = similarity.topk(int(ks.max()), dim=2).indices
    total = y[index].cumsum(2)[:, :, ks - 1]
    count = known[index].cumsum(2)[:, :, ks - 1]
    return torch.where(count > 0, total / count.clamp(min=1), mean).movedim(2, 1)
