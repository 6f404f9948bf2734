"""Linear median regression with an L2 penalty, for all groups, folds, targets and strengths at once.

For each fit and target the weights w and the free intercept b minimise

    sum_i h(y_i - b - x_i w) + a n ||w||^2 / 2,    h(r) = r^2 / 2d within d of 0, and |r| - d / 2 beyond,

the absolute error with its corner rounded (Huber 1964), over the n rows of the fit at strength a. Targets are brought
to one spread (quartile to quartile) before, of which d is a tenth, features to deviation 1; both over all training
rows, since the fits share one basis: the principal axes of the features. In these the Hessian is nearly diagonal for
every fit, so that conjugate gradients (Polak and Ribiere 1969) with that diagonal need few steps. Strengths are solved
from the strongest to the weakest, each starting from the last.

A fit stops after a few steps, which leaves the objective within 0.1 % of its minimum where there are fewer columns than
rows. Where a weak penalty lets it pass through its rows, it is stopped early; its gradient tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.probes import base

if TYPE_CHECKING:
    from jaxtyping import Float

STRENGTHS = tuple(10.0**e for e in range(-3, 2))
TOLERANCE = 1e-2  # of the gradient, in the norm of the diagonal, relative to that of the fit without features
_STEPS = 12
_ROUND = 0.1  # d
_LEAST = 0.3  # rows within d, over d, as a share of all: among normal targets it is about 1
_TRIALS = 2  # lengths tried along a direction


@dataclass(frozen=True)
class Basis:
    """Standardised features of training rows in their principal axes, and a column of ones: `rows [g, N, r + 1]`.

    `size [g, r + 1]` is the sum of squares of each column; `axes [g, D, r]` lead there.
    """

    standardise: base.Standardiser
    axes: Float[Tensor, "g D r"]
    rows: Float[Tensor, "g N r1"]
    size: Float[Tensor, "g r1"]

    @classmethod
    def of(cls, x: Float[Tensor, "g N D"]) -> Basis:
        standardise = base.Standardiser.fit(x)
        x = standardise(x)
        gram = base.gram_eigen(x)
        axes = gram.vectors
        if not gram.primal:
            kept = gram.values > 1e-10 * gram.values.amax(1, keepdim=True)  # of rows that depend on each other
            root = torch.where(kept, gram.values.clamp(min=1e-300).rsqrt(), 0)
            axes = x.mT @ axes * root[:, None]
        rows = cls._with_ones(x @ axes)
        return cls(standardise, axes, rows.float(), rows.square().sum(1))

    @staticmethod
    def _with_ones(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)

    def __call__(self, x: Float[Tensor, "g m D"]) -> Float[Tensor, "g m r1"]:
        return self._with_ones(self.standardise(x) @ self.axes)


@dataclass(frozen=True)
class Targets:
    """What is fitted: `y [K, N]` in units of `unit [K]` about `middle [K]`, 0 where `weights [Q, K, N]` are 0.

    The first Q - 1 fits leave out a fold each, the last sees all rows. `limit [K, 1]` is 1, or infinite for the targets
    that are fitted by least squares; `round [K, 1]` is d.
    """

    y: Float[Tensor, "K N"]
    weights: Float[Tensor, "Q K N"]
    middle: Float[Tensor, " K"]
    unit: Float[Tensor, " K"]
    limit: Float[Tensor, "K 1"]
    round: Float[Tensor, "K 1"]

    @classmethod
    def of(cls, y: Float[Tensor, "N K"], question: base.Question, squared: Sequence[bool]) -> Targets:
        """`y` is NaN where it is not known."""
        low, middle, high = torch.nanquantile(y, torch.tensor([0.25, 0.5, 0.75], dtype=y.dtype, device=y.device), dim=0)
        spread = high - low
        unit = torch.where(spread > 0, spread, (y - middle).abs().nanmean(0))
        scaled = ((y - middle) / unit).nan_to_num(nan=0).float().T.contiguous()  # 0 / 0 where all values are equal
        rows = torch.stack([*question.training_rows(), torch.ones_like(question.folds, dtype=torch.bool)])
        weights = (rows[:, None] & ~y.isnan().T).float()
        square = torch.tensor(squared, device=y.device)[:, None]
        limit = torch.where(square, torch.inf, 1.0)
        return cls(scaled, weights, middle, unit, limit, torch.where(square, 1.0, _ROUND))

    def score(self, z: Float[Tensor, "g Q K N"]) -> Float[Tensor, "g Q K N"]:
        """Minus the derivative of the loss by the prediction."""
        return torch.clamp((self.y - z).div_(self.round), -self.limit, self.limit).mul_(self.weights)

    def back(self, z: Float[Tensor, "*batch m K"]) -> Float[Tensor, "*batch m K"]:
        """Predictions in the unit of the targets."""
        return z.double() * self.unit + self.middle


def solve(
    targets: Targets, folds: Tensor, x: Float[Tensor, "g N D"], x_test: Float[Tensor, "g M D"], grid: Sequence[float]
) -> base.Solved:
    """Predictions of each training row by the fit without its fold, and of the test rows, at strengths `grid`."""
    basis = Basis.of(x.double())
    test = basis(x_test.double())
    q, k, n = targets.weights.shape
    w = basis.rows.new_zeros(len(x), q, k, basis.rows.shape[2])
    problem = _Problem(targets, basis)
    z = problem.predict(w)
    reference = problem.norm(problem.gradient(w, z, 0.0)[..., :-1], problem.diagonal(0.0, z)[..., :-1])
    rows = torch.arange(n, device=x.device)
    held_out: dict[int, Tensor] = {}
    tested: dict[int, Tensor] = {}
    worst = reference.new_zeros(len(x))
    for a in sorted(range(len(grid)), key=lambda a: -grid[a]):
        w, relative = problem.minimise(w, grid[a], reference.clamp(min=1e-6 * n**0.5))
        worst = torch.maximum(worst, relative.amax((1, 2)))
        held_out[a] = targets.back(problem.predict(w).movedim(3, 1)[:, rows, folds])
        tested[a] = targets.back(test @ w[:, -1].double().mT)
    order = range(len(grid))
    return base.Solved(torch.stack([held_out[a] for a in order], 1), torch.stack([tested[a] for a in order], 1), worst)


@dataclass(frozen=True)
class _Problem:
    targets: Targets
    basis: Basis

    def predict(self, w: Float[Tensor, "g Q K r1"]) -> Float[Tensor, "g Q K N"]:
        return (w.flatten(1, 2) @ self.basis.rows.mT).view(*w.shape[:3], -1)

    def penalty(self, strength: float) -> Float[Tensor, "Q K r1"]:
        """By the number of rows of the fit; none for the intercept."""
        penalty = (strength * self.targets.weights.sum(2, keepdim=True)).repeat(1, 1, self.basis.rows.shape[2])
        penalty[..., -1] = 0
        return penalty

    def gradient(
        self, w: Float[Tensor, "g Q K r1"], z: Float[Tensor, "g Q K N"], strength: float
    ) -> Float[Tensor, "g Q K r1"]:
        pull = (self.targets.score(z).flatten(1, 2) @ self.basis.rows).view(w.shape)
        return self.penalty(strength) * w - pull

    def diagonal(self, strength: float, z: Float[Tensor, "g Q K N"]) -> Float[Tensor, "g Q K r1"]:
        """About that of the Hessian: as if the rows within d of their predictions were drawn at random."""
        t = self.targets
        bent = ((t.y - z).abs() < t.round * t.limit).float().mul_(t.weights).sum(-1) / t.round[:, 0]
        share = bent.clamp(min=_LEAST * z.shape[-1])[..., None] / z.shape[-1]
        return share * self.basis.size.float()[:, None, None] + self.penalty(strength) + 1e-6

    @staticmethod
    def norm(gradient: Tensor, diagonal: Tensor) -> Float[Tensor, "g Q K"]:
        return (gradient.square() / diagonal).sum(-1).sqrt()

    def minimise(
        self, w: Float[Tensor, "g Q K r1"], strength: float, reference: Float[Tensor, "g Q K"]
    ) -> tuple[Float[Tensor, "g Q K r1"], Float[Tensor, "g Q K"]]:
        """Weights from the start `w`, and the norms of their gradients relative to `reference`."""
        penalty, z = self.penalty(strength), self.predict(w)
        diagonal = self.diagonal(strength, z)
        gradient = self.gradient(w, z, strength)
        relative = self.norm(gradient, diagonal) / reference
        ready = gradient / diagonal
        direction, length = -ready, torch.ones_like(relative)
        for _ in range(_STEPS):
            if not (relative > TOLERANCE).any():
                break
            change = self.predict(direction)
            length = self._length(w, z, direction, change, penalty, gradient, length)
            w, z = w + length[..., None] * direction, z + length[..., None] * change
            before, gradient = gradient, self.gradient(w, z, strength)
            relative = self.norm(gradient, diagonal) / reference
            last = (before * ready).sum(-1)
            ready = gradient / diagonal
            turn = ((gradient - before) * ready).sum(-1) / last.clamp(min=torch.finfo(last.dtype).tiny)
            direction = turn.clamp(min=0)[..., None] * direction - ready
            uphill = (direction * gradient).sum(-1, keepdim=True) >= 0
            direction = torch.where(uphill, -ready, direction)
        return w, relative

    def _length(
        self, w: Tensor, z: Tensor, direction: Tensor, change: Tensor, penalty: Tensor, gradient: Tensor, guess: Tensor
    ) -> Float[Tensor, "g Q K"]:
        """How far to go: where the slope, which grows along the way, is about 0, by regula falsi from a guess on."""
        bend = (penalty * direction * direction).sum(-1)
        start = (penalty * w * direction).sum(-1)
        low, high = torch.zeros_like(guess), torch.full_like(guess, torch.inf)
        low_slope, high_slope = (gradient * direction).sum(-1), torch.zeros_like(guess)
        length = guess
        for _ in range(_TRIALS):
            slope = start + length * bend
            slope = slope - (self.targets.score(z + length[..., None] * change) * change).sum(-1)
            under = slope < 0
            low, low_slope = torch.where(under, length, low), torch.where(under, slope, low_slope)
            high, high_slope = torch.where(under, high, length), torch.where(under, high_slope, slope)
            between = low + (high - low) * low_slope / (low_slope - high_slope)
            length = torch.where(high.isinf(), 3 * length, between).nan_to_num(nan=0.0)
        return torch.where(high.isinf(), low, length)
