"""Logistic regression: one softmax over classes, or a sigmoid for each label, solved to convergence.

For each fit the objective is scikit-learn's, with the strength C: the sum of the log losses of the training rows
plus ||W||^2 / 2C, intercepts free. All groups and folds are minimised together, from the strongest penalty to the
weakest, each strength starting where the last one ended.

The method is Newton's, on the whole batch. Each step solves for its direction by preconditioned conjugate gradients
to a tolerance that tightens with the gradient (inexact Newton: Dembo, Eisenstat and Steihaug 1982), then is halved
until the objective falls. Directions are computed in float32, which costs nothing in the result: gradients and
objective are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tsprobe.errors import SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import base

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

STRENGTHS = tuple(10.0**e for e in range(-5, 3))
_NEVER = -1e30  # log-odds of a class that a fit has not seen: finite, so that its product with 0 is 0
_RANK = 1e-13  # directions with less than this share of the largest eigenvalue are rounding, and dropped
TOLERANCE = 1e-7  # of the gradient norm, relative to the reference; at C = 100 probabilities are then good to 1e-4
_STEPS = 60  # Newton steps; about 5 a strength are usual
_DIRECTIONS = 300  # conjugate directions in a step
_HALVINGS = 30


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
    softmax = target.kind == "classification"
    ascending = sorted(range(len(grid)), key=grid.__getitem__)
    back = torch.tensor(ascending, device=x.device).argsort()
    fits = torch.stack([*problem.training_rows(), torch.ones_like(problem.folds, dtype=torch.bool)])  # [F + 1, N]
    y = problem.y.T.contiguous()  # [K, N]
    weights = _row_weights(problem, fits, softmax)  # [F + 1, K or 1, N]
    intercepts = _intercepts(problem, fits, softmax)  # [F + 1, K]

    def solve(x: Tensor, x_test: Tensor) -> base.Solved:
        features = _rotate(x, x_test, fits)
        loss = _Loss(features.x, features.transform, features.squares, y, weights, softmax)
        solution = x.new_zeros(len(x), len(fits), len(y), features.transform.shape[-1])  # [g, F + 1, K, r + 1]
        solution[..., -1] = intercepts
        reference = _gradient_norm(loss, solution)
        held_out, tested, norms = [], [], []
        for c in (grid[a] for a in ascending):
            solution, norm = _minimise(loss, solution, 1 / c, reference)
            logits = loss.logits(solution).movedim(3, 1)  # [g, N, F + 1, K]
            held_out.append(logits[:, torch.arange(x.shape[1], device=x.device), problem.folds])
            tested.append(features.test @ solution[:, -1].mT)  # [g, M, K]
            norms.append(norm.amax(1))
        link = _softmax if softmax else torch.sigmoid
        return base.Solved(
            link(torch.stack(held_out, 1)[:, back]), link(torch.stack(tested, 1)[:, back]), torch.stack(norms).amax(0)
        )

    (_, n, d), m, k = x.shape, x_test.shape[1], len(y)
    per_fit = n * (2 * (min(n, d) + 1) + 10 * k)
    group_bytes = 8 * (len(fits) * per_fit + 5 * (n + m) * d + 3 * len(grid) * (n + m) * k)
    return base.readout(problem, metric, grid, solve, group_bytes=group_bytes, strongest_last=False)


def _softmax(logits: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    return logits.softmax(-1)


def _both(problem: base.Problem, fits: Bool[Tensor, "F N"]) -> Bool[Tensor, "F K"]:
    """Where a fit has seen a label both as 0 and as 1."""
    counts = fits.double() @ problem.known.double()
    positives = fits.double() @ problem.y
    return (positives > 0) & (positives < counts)


def _row_weights(problem: base.Problem, fits: Bool[Tensor, "F N"], softmax: bool) -> Float[Tensor, "F k N"]:
    """1 where a row enters the loss of a fit (and, for labels, where the label is known and worth fitting)."""
    if softmax:
        return fits[:, None].double()
    return (fits[:, None] & problem.known.T & _both(problem, fits)[..., None]).double()


def _intercepts(problem: base.Problem, fits: Bool[Tensor, "F N"], softmax: bool) -> Float[Tensor, "F K"]:
    """Log frequencies, or log-odds of smoothed frequencies: the fit without features, or close to it."""
    positives = fits.double() @ problem.y
    if softmax:
        return (positives / fits.sum(1, keepdim=True)).log().clamp(min=_NEVER)
    negatives = fits.double() @ problem.known.double() - positives
    return ((positives + 0.5) / (negatives + 0.5)).log()


class _Features(NamedTuple):
    x: Float[Tensor, "g N E"]
    transform: Float[Tensor, "g F E r+1"]
    squares: Float[Tensor, "g F N r+1"]
    test: Float[Tensor, "g M r+1"]


def _rotate(x: Float[Tensor, "g N D"], x_test: Float[Tensor, "g M D"], fits: Bool[Tensor, "F N"]) -> _Features:
    """The features of each fit in the principal axes of its own rows, as a product; test rows as in the last fit.

    The penalty does not see a rotation, and weights outside the row space are 0 at the optimum, so this is exact. It
    leaves r = min(N, D) columns, and makes the Hessian near diagonal. The shared factor holds all rows, standardised
    together, in coordinates of their row space, and a column of ones (E = r + 1).
    """
    whole = base.Standardiser.fit(x)
    shared, size = whole(x), torch.where(whole.inverse > 0, 1 / whole.inverse, 0)
    span = None if shared.shape[2] <= shared.shape[1] else _axes(shared)  # [g, D, r]
    coordinates = shared if span is None else shared @ span
    r = coordinates.shape[2]
    transform = x.new_zeros(len(x), len(fits), r + 1, r + 1)
    transform[..., -1, -1] = 1
    for f, rows in enumerate(fits):
        standardise = base.Standardiser.fit(x[:, rows])
        axes = _axes(standardise(x[:, rows]))  # [g, D, r_f]
        stretched = (standardise.inverse * size).mT * axes
        width = axes.shape[2]
        transform[:, f, :-1, :width] = stretched if span is None else span.mT @ stretched
        transform[:, f, -1:, :width] = standardise(whole.mean) @ axes
    test = torch.cat([standardise(x_test) @ axes, x_test.new_ones(*x_test.shape[:2], 1)], 2)
    ones = x.new_ones(*x.shape[:2], 1)
    product = torch.cat([coordinates, ones], 2)
    squares = (product.float()[:, None] @ transform.float()).square()
    return _Features(product, transform, squares, test)


def _axes(x: Float[Tensor, "g n D"]) -> Float[Tensor, "g D r"]:
    """Orthonormal principal axes of the row space, r = min(n, D); 0 for those in which the rows do not vary."""
    gram = base.gram_eigen(x)
    if gram.primal:
        return gram.vectors
    large = gram.values > _RANK * gram.values.amax(1, keepdim=True)
    return (x.mT @ gram.vectors) * torch.where(large, gram.values.rsqrt(), 0)[:, None]


@dataclass(frozen=True)
class _Loss:
    """Log losses of F fits (on different rows) in each of G groups, all with the same targets.

    The features of a fit are `x [G, N, E]` times its `transform [G, F, E, D]`; the last of the D is 1, for the
    intercept, which is not penalised. Fits of one group thus share the large matrix. `y [K, N]` is 0/1, `weights
    [F, K or 1, N]` 1 for the rows that count, `squares [G, F, N, D]` the squared features in float32. `softmax`
    is over K; otherwise there is a sigmoid for each.
    """

    x: Float[Tensor, "G N E"]
    transform: Float[Tensor, "G F E D"]
    squares: Float[Tensor, "G F N D"]
    y: Float[Tensor, "K N"]
    weights: Float[Tensor, "F k N"]
    softmax: bool

    def __getitem__(self, groups: Bool[Tensor, " G"]) -> _Loss:
        return replace(self, x=self.x[groups], transform=self.transform[groups], squares=self.squares[groups])

    @cached_property
    def single(self) -> _Loss:
        """The same in float32, for directions."""
        parts = {name: getattr(self, name).float() for name in ("x", "transform", "y", "weights")}
        return replace(self, **parts)

    def logits(self, w: Float[Tensor, "G F K D"]) -> Float[Tensor, "G F K N"]:
        return ((w @ self.transform.mT).flatten(1, 2) @ self.x.mT).view(*w.shape[:3], -1)

    def back(self, rows: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F K D"]:
        """The adjoint of `logits`: sums over rows of their values times the features."""
        return (rows.flatten(1, 2) @ self.x).view(*rows.shape[:3], -1) @ self.transform

    def value(self, z: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F"]:
        """Sum of the log losses at logits z."""
        if self.softmax:
            losses = z.logsumexp(2, keepdim=True) - (z * self.y).sum(2, keepdim=True)
        else:
            losses = torch.nn.functional.softplus(z) - z * self.y
        return (losses * self.weights).sum((2, 3))

    def probabilities(self, z: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F K N"]:
        return z.softmax(2) if self.softmax else z.sigmoid()

    def gradient(self, p: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F K D"]:
        return self.back((p - self.y) * self.weights)


def _gradient_norm(loss: _Loss, w: Float[Tensor, "G F K D"]) -> Float[Tensor, "G F"]:
    """Norm of the gradient of the losses alone; at least that of a correlation of 1e-6, far below chance."""
    return _norm(loss.gradient(loss.probabilities(loss.logits(w)))).clamp(min=1e-6 * loss.x.shape[1])


def _minimise(
    loss: _Loss, start: Float[Tensor, "G F K D"], penalty: float, reference: Float[Tensor, "G F"]
) -> tuple[Float[Tensor, "G F K D"], Float[Tensor, "G F"]]:
    """Weights at the minimum, and the gradient norms there relative to `reference`.

    A fit stops at `TOLERANCE`, or after a fixed number of steps; groups whose fits have all stopped leave the batch.
    """
    w = start.clone()
    ridge = torch.full_like(w[0, 0, 0], penalty)
    ridge[-1] = 0
    relative = torch.full_like(reference, torch.inf)
    groups = torch.arange(len(w), device=w.device)
    z = loss.logits(w)
    for _ in range(_STEPS):
        p = loss.probabilities(z)
        gradient = loss.gradient(p) + ridge * w[groups]
        norm = _norm(gradient) / reference[groups]
        relative[groups] = norm
        active = (norm > TOLERANCE).any(1)
        if not active.any():
            break
        if not active.all():
            loss, groups = loss[active], groups[active]
            p, z, gradient, norm = (t[active] for t in (p, z, gradient, norm))
        step = _direction(loss, p, gradient, ridge, norm)
        w[groups], z = _line_search(loss, w[groups], z, gradient, step, ridge)
    return w, relative


def _norm(w: Float[Tensor, "G F K D"]) -> Float[Tensor, "G F"]:
    return w.flatten(2).norm(dim=2)


def _direction(loss: _Loss, p: Tensor, gradient: Tensor, ridge: Tensor, norm: Tensor) -> Float[Tensor, "G F K D"]:
    """Approximate Newton direction by conjugate gradients in float32; 0 for fits that have converged.

    The preconditioner is the inverse diagonal of the Hessian, for softmax averaged over the classes: scaling classes
    alike keeps the coupling between them, and takes fewer directions than each class's own diagonal.
    """
    loss, p, ridge = loss.single, p.float(), ridge.float()
    curvature = p * (1 - p) * loss.weights
    diagonal = (curvature.mean(2, keepdim=True) if loss.softmax else curvature) @ loss.squares + ridge
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0)
    wp = p * loss.weights if loss.softmax else curvature
    size = _norm(gradient)[..., None, None].clamp(min=torch.finfo(gradient.dtype).tiny)
    residual = -(gradient / size).float()  # of norm 1, so that float32 neither under- nor overflows
    enough = norm.sqrt().clamp(max=0.3).maximum(0.3 * TOLERANCE / norm).float()
    going = norm > TOLERANCE
    step = torch.zeros_like(residual)
    preconditioned = inverse * residual
    direction = preconditioned
    rz = (residual * preconditioned).sum((2, 3))
    for _ in range(_DIRECTIONS):
        u = loss.logits(direction)
        hu = wp * (u - (p * u).sum(2, keepdim=True)) if loss.softmax else wp * u
        product = loss.back(hu) + ridge * direction
        bend = (direction * product).sum((2, 3))
        going = going & (bend > 0)
        length = torch.where(going, rz / bend, 0)[..., None, None]
        step += length * direction
        residual = residual - length * product
        going = going & (_norm(residual) > enough)
        if not going.any():
            break
        preconditioned = inverse * residual
        last, rz = rz, (residual * preconditioned).sum((2, 3))
        direction = preconditioned + torch.where(going, rz / last, 0)[..., None, None] * direction
    return step.double() * size


def _line_search(
    loss: _Loss, w: Tensor, z: Tensor, gradient: Tensor, step: Tensor, ridge: Tensor
) -> tuple[Float[Tensor, "G F K D"], Float[Tensor, "G F K N"]]:
    """Halve each fit's step until its objective falls enough; where it never does, stay."""
    dz = loss.logits(step)
    slope = (gradient * step).sum((2, 3))

    def objective(z: Tensor, w: Tensor) -> Tensor:
        return loss.value(z) + (ridge * w * w).sum((2, 3)) / 2

    before = objective(z, w)
    slack = 1e-14 * before.abs()  # near the optimum the fall is below the rounding of the sum
    length = torch.ones_like(before)
    for _ in range(_HALVINGS):
        t = length[..., None, None]
        accepted = objective(z + t * dz, w + t * step) <= before + 1e-4 * length * slope + slack
        if accepted.all():
            break
        length = torch.where(accepted, length, length / 2)
    t = torch.where(accepted, length, 0)[..., None, None]
    return w + t * step, z + t * dz
