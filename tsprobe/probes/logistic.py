"""Logistic regression: one softmax over classes, or a sigmoid for each label, solved to convergence.

For each fit the objective is scikit-learn's, with the strength C: the sum of the log losses of the training rows
plus ||W||^2 / 2C, intercepts free. Two classes are one sigmoid, as they are there. All groups and folds are minimised
together (`newton`), from the strongest penalty to the weakest. Where there are more features than rows, each fit works
in the space that the rows span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.errors import SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import base, newton
from tsprobe.probes.moments import Rows, Spread, leave_one_out

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int

STRENGTHS = tuple(10.0**e for e in range(-5, 3))
_NEVER = -1e30  # log-odds of a class that a fit has not seen: finite, so that its product with 0 is 0
_CACHE = 2**20  # numbers in the features of a chunk; a core's cache is passed through by every product


def fit_predict(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """Logistic readout of every group; strengths are C, ties go to the smallest. Predictions are probabilities.

    A class that a fit has not seen gets probability 0; a label that it has seen only as 0 or only as 1 gets its
    smoothed frequency, for all samples alike.

    Raises DataError for features or targets that cannot be used, SpecError for regression targets, an unfitting
    metric or grid.
    """
    if target.kind == "regression":
        raise SpecError("the logistic probe needs classes or labels; for regression targets take ridge or knn")
    grid = base.check_strengths(strengths, STRENGTHS)
    problem = base.check(x, target, x_test, folds, metric)
    classes = target.kind == "classification"
    softmax = classes and target.width > 2
    link = _softmax if softmax else _both_classes if classes else torch.sigmoid
    ascending = sorted(range(len(grid)), key=grid.__getitem__)
    back = torch.tensor(ascending, device=x.device).argsort()
    rows = torch.stack([*problem.training_rows(), torch.ones_like(problem.folds, dtype=torch.bool)])  # [F + 1, N]
    weights = rows[:, None].double() if classes else _label_weights(problem, rows)  # [F + 1, K or 1, N]
    intercepts = _intercepts(problem, rows)  # [F + 1, K]
    y = problem.y.T.contiguous()  # [K, N]
    if classes and not softmax:
        y, intercepts = y[1:], (intercepts[:, 1:] - intercepts[:, :1])

    penalties = [1 / grid[a] for a in ascending]
    (_, n, d), m, k = x.shape, x_test.shape[1], len(y)

    def path(fits: newton.Fits, intercepts: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[g, A, F, K, N]`, those of the test rows by the last fit `[g, A, M, K]`, and gradient norms `[g]`."""
        found = [(z, w[:, -1], norm.amax(1)) for w, z, norm in newton.follow(fits, intercepts, penalties)]
        logits, last, norms = (torch.stack(part, 1) for part in zip(*found, strict=True))
        last = last[:, back]
        tested = (test @ last.flatten(1, 2).mT).unflatten(2, last.shape[1:3]).transpose(1, 2)
        return logits[:, back], tested, norms.amax(1)

    def solve(x: Tensor, x_test: Tensor) -> base.Solved:
        standardise, scale = _standardisers(x, problem.folds, problem.n_folds)
        x, x_test = _with_ones(x, standardise), _with_ones(x_test, standardise)
        if d <= n:
            z, tested, norms = path(newton.Fits(x, scale, y, weights, softmax), intercepts, x_test)
        else:
            parts = []
            for fit in range(len(rows)):
                own, own_test = _reduced(x, x_test, scale[:, fit])
                fits = newton.Fits(own, torch.ones_like(scale[:, :1, :, : n + 1]), y, weights[fit : fit + 1], softmax)
                parts.append(path(fits, intercepts[fit : fit + 1], own_test))
            z, tested, norms = (
                torch.cat([p[0] for p in parts], 2),
                parts[-1][1],
                torch.stack([p[2] for p in parts]).amax(0),
            )
        row = torch.arange(x.shape[1], device=x.device)
        held_out = z.movedim(4, 2)[:, :, row, problem.folds]  # [g, A, N, K]
        return base.Solved(link(held_out), link(tested), norms)

    width = min(n, d)
    group_bytes = 8 * (10 * len(rows) * k * (n + width) + 4 * (n + m) * d + 3 * len(grid) * (n + m) * target.width)
    slowest = 1 if classes else k  # labels are fits of their own, and a chunk waits for the slowest of its fits
    cached = max(1, _CACHE // (n * width * slowest)) * group_bytes if x.device.type == "cpu" else None
    return base.readout(problem, metric, grid, solve, group_bytes=group_bytes, strongest_last=False, double=False,
                        chunk_bytes=cached)  # fmt: skip


def _reduced(
    x: Float[Tensor, "g N D+1"], x_test: Float[Tensor, "g M D+1"], scale: Float[Tensor, "g 1 D+1"]
) -> tuple[Float[Tensor, "g N N+1"], Float[Tensor, "g M N+1"]]:
    """Scaled features in the space that their N rows span, which holds the best weights; the penalty is the same there.

    From the eigenvectors of XX'. Directions in which the rows differ by rounding alone are 0.
    """
    features = x[..., :-1]
    scaled = features * scale[..., :-1].square()
    values, vectors = torch.linalg.eigh(scaled @ features.mT)
    size = values.clamp(min=0).sqrt()[:, None]
    size = torch.where(size > 1e-7 * size.amax(2, keepdim=True), size, 0)
    inverse = torch.where(size > 0, 1 / size, 0)
    reduced = vectors * size, (x_test[..., :-1] @ scaled.mT) @ (vectors * inverse)
    return torch.cat([reduced[0], x[..., -1:]], 2), torch.cat([reduced[1], x_test[..., -1:]], 2)


def _softmax(logits: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    return logits.softmax(-1)


def _both_classes(logits: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 2"]:
    return torch.cat([-logits, logits], -1).sigmoid()


def _with_ones(x: Float[Tensor, "g n D"], standardise: base.Standardiser) -> Float64[Tensor, "g n D+1"]:
    """Standardised, with the column of the intercept."""
    out = x.new_ones(*x.shape[:2], x.shape[2] + 1, dtype=torch.float64)
    out[..., :-1] = x
    out[..., :-1].sub_(standardise.mean).mul_(standardise.inverse)
    return out


def _label_weights(problem: base.Problem, rows: Bool[Tensor, "F N"]) -> Float[Tensor, "F K N"]:
    """1 where a label is known in a row of a fit, and occurs there both as 0 and as 1."""
    counts = rows.double() @ problem.known.double()
    positives = rows.double() @ problem.y
    both = (positives > 0) & (positives < counts)
    return (rows[:, None] & problem.known.T & both[..., None]).double()


def _intercepts(problem: base.Problem, rows: Bool[Tensor, "F N"]) -> Float[Tensor, "F K"]:
    """Log frequencies, or log-odds of smoothed frequencies: the fit without features, or close to it."""
    positives = rows.double() @ problem.y
    if problem.target.kind == "classification":
        return (positives / rows.sum(1, keepdim=True)).log().clamp(min=_NEVER)
    negatives = rows.double() @ problem.known.double() - positives
    return ((positives + 0.5) / (negatives + 0.5)).log()


def _standardisers(
    x: Float[Tensor, "g N D"], folds: Int[Tensor, " N"], n_folds: int
) -> tuple[base.Standardiser, Float[Tensor, "g F+1 1 D+1"]]:
    """Of all rows, and the factors that turn its columns into those of each fit, with 1 for the intercept.

    Only the scale has to be that of the fit: its mean goes into the intercept, which is not penalised.
    """
    spread = Spread.empty(len(x), n_folds, x.shape[2], x.device)
    for fold in range(n_folds):
        spread.add(fold, Rows.of(x[:, folds == fold]))
    fits = [spread.standardiser(sees) for sees in leave_one_out(n_folds, x.device)]  # the last sees all rows
    inverse = torch.stack([fit.inverse for fit in fits], 1)  # [g, F + 1, 1, D]
    scale = torch.where(inverse[:, -1:] > 0, inverse / inverse[:, -1:], 0)
    return fits[-1], torch.cat([scale, torch.ones_like(scale[..., :1])], 3)
