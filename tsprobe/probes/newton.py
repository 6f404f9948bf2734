"""Many logistic fits on the same rows, minimised together by Newton's method.

The fits of a group differ in the rows that count and in the scale of the columns. They share one matrix of features,
so that a product with it serves all of them, and one preconditioner. A step of Newton's method solves for its
direction by conjugate gradients to a tolerance that tightens with the gradient (inexact Newton: Dembo, Eisenstat and
Steihaug 1982), and goes along it to the minimum. Directions are computed in float32, which costs nothing in the
result: gradients and objective are float64.

Features of an encoder are far from independent, and rows that are already told apart hardly bend the loss: without
help, conjugate gradients take thousands of products where the penalty is weak. The preconditioner is therefore the
inverse of the Hessian itself in the leading principal axes, class by class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32

# Of the gradient norm, relative to the reference. Probabilities are then good to 1e-5 at C = 1 and to 1e-3 at C = 100.
TOLERANCE = 5e-7
_STEPS = 60  # Newton steps; 2 to 10 a strength are usual
_DIRECTIONS = 300  # conjugate directions in a step
_TRIALS = 30  # lengths of a step
_AXES = 112  # principal axes in which the preconditioner is exact
_POWERS = 2  # passes over the features that find them
_OUTDATED = 8  # conjugate directions in a step after which the preconditioner is made anew
_BLOCK_NUMBERS = 2**23  # numbers in a temporary array


@dataclass(frozen=True)
class Fits:
    """Log losses of F fits in each of G groups, all with the same targets.

    `x [G, N, E]` holds the features, standardised, and a column of ones for the intercept. `scale [G, F, 1, E]` are
    the factors that standardise the columns for each fit: 0 where a column does not vary among its rows, 1 for the
    intercept. `y [K, N]` is 0/1, `weights [F, K or 1, N]` 1 for the rows that count. `softmax` is over K; otherwise
    there is a sigmoid for each.

    Weights w are those of the columns of `x`, so that a fit's own are w / scale: the penalty is on these.
    """

    x: Float[Tensor, "G N E"]
    scale: Float[Tensor, "G F 1 E"]
    y: Float[Tensor, "K N"]
    weights: Float[Tensor, "F k N"]
    softmax: bool

    def __getitem__(self, groups: Bool[Tensor, " G"]) -> Fits:
        return replace(self, x=self.x[groups], scale=self.scale[groups])

    @cached_property
    def single(self) -> Fits:
        """The same in float32, for directions."""
        return replace(self, **{name: getattr(self, name).float() for name in ("x", "scale", "y", "weights")})

    @cached_property
    def shrunk(self) -> Float[Tensor, "G F 1 E"]:
        """How much the penalty weighs on the square of each weight."""
        shrunk = torch.where(self.scale != 0, self.scale.square().reciprocal(), 0)
        shrunk[..., -1] = 0
        return shrunk

    @cached_property
    def free(self) -> Float[Tensor, "G F k E"] | None:
        """1 for the weights that may differ from 0: not those of constant columns, nor of classes without a row.

        None where all may.
        """
        free = self.scale != 0
        if self.softmax:
            free = free & ((self.y * self.weights).sum(2) > 0)[..., None]
        return None if free.all() else free.to(self.x.dtype)

    def logits(self, w: Float[Tensor, "G F K E"]) -> Float[Tensor, "G F K N"]:
        return (w.flatten(1, 2) @ self.x.mT).view(*w.shape[:3], -1)

    def back(self, rows: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F K E"]:
        """The adjoint of `logits`: sums over rows of their values times the features, for the weights that are free."""
        sums = (rows.flatten(1, 2) @ self.x).view(*rows.shape[:3], -1)
        return sums if self.free is None else sums.mul_(self.free)

    def project(self, w: Float[Tensor, "G F K E"]) -> Float[Tensor, "G F K E"]:
        """Onto the weights that are free, and of these on the ones that are not common to all classes of a softmax."""
        if self.softmax:
            classes = w.shape[2] if self.free is None else self.free.sum(2, keepdim=True).clamp(min=1)
            w = w - w.sum(2, keepdim=True) / classes
        return w if self.free is None else w * self.free

    def probabilities(self, z: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F K N"]:
        return z.softmax(2) if self.softmax else z.sigmoid()

    def gradient(self, p: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F K E"]:
        return self.back((p - self.y) * self.weights)

    def reference(self, z: Float[Tensor, "G F K N"]) -> Float[Tensor, "G F"]:
        """Norm of the gradient at logits z; at least that of a correlation of 1e-6, far below chance."""
        return _norm(self.gradient(self.probabilities(z))).clamp(min=1e-6 * self.x.shape[1])


@dataclass(frozen=True)
class Axes:
    """Leading principal axes of the features of each group, and that of the intercept behind them.

    `basis [G, E, q]` is orthonormal, `scores [G, N, q]` are the rows in it. `rest [G]` is a typical eigenvalue (of
    X'X / N) among the other axes.
    """

    basis: Float32[Tensor, "G E q"]
    scores: Float32[Tensor, "G N q"]
    rest: Float32[Tensor, " G"]

    @classmethod
    def of(cls, x: Float32[Tensor, "G N E"]) -> Axes:
        """By subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4)."""
        features = x[..., :-1]
        g, n, d = features.shape
        q = min(_AXES, n, d)
        start = torch.randn(d, q, generator=torch.Generator(x.device).manual_seed(0), device=x.device)
        basis = start.expand(g, d, q)
        for _ in range(_POWERS):
            basis = torch.linalg.qr(features.mT @ (features @ basis)).Q
        basis = torch.nn.functional.pad(basis, (0, 1, 0, 1))
        basis[:, -1, -1] = 1
        scores = x @ basis
        leading = scores[..., :-1]
        values = torch.linalg.eigvalsh((leading.mT @ leading).double()).clamp(min=0) / n
        others = (features.square().sum((1, 2)) / n - values.sum(1)).clamp(min=0) / max(1, d - q)
        rest = (others * values[:, 0]).sqrt()  # they fall from about the last of the leading ones to far below the mean
        return cls(basis, scores, rest.float())

    def __getitem__(self, groups: Bool[Tensor, " G"]) -> Axes:
        return Axes(self.basis[groups], self.scores[groups], self.rest[groups])


@dataclass(frozen=True)
class _Preconditioner:
    """An approximate inverse of the Hessian, alike for all fits of a group.

    Without the coupling of classes, the Hessian of class k is X'C_kX + penalty. It is inverted in the axes; for the
    other directions C_k is taken as its mean, so that the inverse is a number (`others`). `change` is what the inverse
    in the axes has beyond that number. Rows bend the loss as they do in the mean over the fits, whose scales count as
    alike. For softmax, weights common to all classes change nothing but the penalty: they are taken out before and
    after, which is most of the coupling.
    """

    basis: Float32[Tensor, "G E q"]
    change: Float32[Tensor, "G K q q"]
    others: Float32[Tensor, "G 1 K 1"]
    fits: Fits

    @classmethod
    def of(cls, fits: Fits, axes: Axes, p: Float[Tensor, "G F K N"], penalty: float) -> _Preconditioner:
        counts = fits.weights.sum(0).clamp(min=1)
        curvature = ((p * (1 - p) * fits.weights).sum(1) / counts).float()  # [G, K, N]
        scores = axes.scores[:, None]
        step = max(1, _BLOCK_NUMBERS // scores.numel())
        hessian = torch.cat([(scores * c[..., None]).mT @ scores for c in curvature.split(step, 1)], 1).double()
        diagonal = hessian.diagonal(dim1=2, dim2=3)
        diagonal += 1e-6 * (1 + diagonal.amax(2, keepdim=True))  # rounding of float32 is then too small to matter
        diagonal[..., :-1] += penalty
        change = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).float()
        others = 1 / (curvature.sum(2) * axes.rest[:, None] + penalty)
        change.diagonal(dim1=2, dim2=3).sub_(others[..., None])
        return cls(axes.basis, change, others[:, None, :, None], fits.single)

    def __call__(self, w: Float32[Tensor, "G F K E"]) -> Float32[Tensor, "G F K E"]:
        w = self.fits.project(w)
        inside = (w.flatten(1, 2) @ self.basis).view(*w.shape[:3], -1)
        changed = (inside.transpose(1, 2) @ self.change).transpose(1, 2)
        scaled = (self.others * w).flatten(1, 2)
        return self.fits.project(scaled.baddbmm_(changed.flatten(1, 2), self.basis.mT).view_as(w))


def minimise(
    fits: Fits,
    axes: Axes,
    w: Float[Tensor, "G F K E"],
    z: Float[Tensor, "G F K N"],
    penalty: float,
    reference: Float[Tensor, "G F"],
) -> tuple[Float[Tensor, "G F K E"], Float[Tensor, "G F K N"], Float[Tensor, "G F"]]:
    """Weights at the minimum of loss + penalty ||w||^2 / 2, their logits, and gradient norms relative to `reference`.

    `w` and its logits `z` are the start; intercepts are not penalised. A fit stops at `TOLERANCE`, or after a fixed
    number of steps; groups whose fits have all stopped leave the batch.
    """
    w, z = w.clone(), z.clone()
    relative = torch.full_like(reference, torch.inf)
    groups = torch.arange(len(w), device=w.device)
    p = fits.probabilities(z)
    ridge = penalty * fits.shrunk
    precondition, directions = None, 0
    for _ in range(_STEPS):
        gradient = fits.gradient(p) + ridge * w[groups]
        norm = _norm(gradient) / reference[groups]
        relative[groups] = norm
        active = (norm > TOLERANCE).any(1)
        if not active.any():
            break
        if not active.all():
            fits, axes, groups = fits[active], axes[active], groups[active]
            p, gradient, norm, ridge = (t[active] for t in (p, gradient, norm, ridge))
            precondition = None
        if precondition is None or directions > _OUTDATED:
            precondition = _Preconditioner.of(fits, axes, p, penalty)
        step, directions = _direction(fits, precondition, p, gradient, ridge, norm)
        change = fits.logits(step)
        length, p = _line(fits, w[groups], z[groups], step, change, ridge, 0.9)
        w[groups] += length * step
        z[groups] += length * change
    return w, z, relative


def follow(
    fits: Fits, intercepts: Float[Tensor, "F K"], penalties: Sequence[float]
) -> Iterator[tuple[Float[Tensor, "G F K E"], Float[Tensor, "G F K N"], Float[Tensor, "G F"]]]:
    """What `minimise` gives at each penalty, from the strongest on; the fits begin with their intercepts alone.

    Minima lie on a path, so that the last two point to the next.
    """
    axes = Axes.of(fits.single.x)
    w = fits.x.new_zeros(len(fits.x), *intercepts.shape, fits.x.shape[2])
    w[..., -1] = intercepts
    z = fits.logits(w)
    reference = fits.reference(z)
    path: list[tuple[Tensor, Tensor]] = []
    for penalty in penalties:
        if len(path) > 1:
            w, z = extrapolate(fits, path, penalty)
        w, z, norm = minimise(fits, axes, w, z, penalty, reference)
        path = [*path[-1:], (w, z)]
        yield w, z, norm


def extrapolate(
    fits: Fits,
    path: list[tuple[Float[Tensor, "G F K E"], Float[Tensor, "G F K N"]]],
    penalty: float,
) -> tuple[Float[Tensor, "G F K E"], Float[Tensor, "G F K N"]]:
    """The best point, at `penalty`, of the line through the last two minima of `path`: weights and their logits."""
    last, this = path[-2:]
    step, change = this[0] - last[0], this[1] - last[1]
    length, _ = _line(fits, *this, step, change, penalty * fits.shrunk, 0.1)
    return this[0] + length * step, this[1] + length * change


def _norm(w: Float[Tensor, "G F K D"]) -> Float[Tensor, "G F"]:
    return w.flatten(2).norm(dim=2)


def _dot(a: Float[Tensor, "G F K D"], b: Float[Tensor, "G F K D"]) -> Float[Tensor, "G F"]:
    return (a * b).sum((2, 3))


def _direction(
    fits: Fits, precondition: _Preconditioner, p: Tensor, gradient: Tensor, ridge: Tensor, norm: Tensor
) -> tuple[Float[Tensor, "G F K E"], int]:
    """Approximate Newton direction by conjugate gradients in float32, 0 for fits that have converged; their number."""
    whole, fits, p, ridge = fits, fits.single, p.float(), ridge.float()
    wp = p * fits.weights if fits.softmax else p * (1 - p) * fits.weights
    size = _norm(gradient)[..., None, None].clamp(min=torch.finfo(gradient.dtype).tiny)
    residual = -(gradient / size).float()  # of norm 1, so that float32 neither under- nor overflows
    enough = norm.sqrt().clamp(max=0.3).maximum(0.6 * TOLERANCE / norm).float()
    going = norm > TOLERANCE
    step = torch.zeros_like(residual)
    direction = preconditioned = precondition(residual)
    rz = _dot(residual, preconditioned)
    taken = 0
    while going.any() and taken < _DIRECTIONS:
        taken += 1
        u = fits.logits(direction)
        hu = wp * (u - (p * u).sum(2, keepdim=True)) if fits.softmax else wp * u
        product = torch.addcmul(fits.back(hu), ridge, direction)
        bend = _dot(direction, product)
        going = going & (bend > torch.finfo(bend.dtype).tiny)
        length = torch.where(going, rz / bend, 0)[..., None, None]
        step.addcmul_(length, direction)
        residual = torch.addcmul(residual, length, product, value=-1)
        going = going & (_norm(residual) > enough)
        preconditioned = precondition(residual)
        last, rz = rz, _dot(residual, preconditioned)
        direction = torch.addcmul(preconditioned, torch.where(going, rz / last, 0)[..., None, None], direction)
    # projected in float64: a strong penalty would blow up what float32 leaves of a weight common to all classes
    return whole.project(step.double() * size), taken


def _line(
    fits: Fits, w: Tensor, z: Tensor, step: Tensor, change: Tensor, ridge: Tensor, enough: float
) -> tuple[Float[Tensor, "G F 1 1"], Float[Tensor, "G F K N"]]:
    """Lengths, of either sign, that go down along `step`, whose logits are `change`; and probabilities there.

    The slope, which grows along a line as the objective is convex, falls to the share `enough` of what it was, by
    Newton's method within the bracket found so far. Where it never does, the largest length that is known to go down.
    """
    weighted = change * fits.weights
    start, growth = _dot(ridge * w, step), _dot(ridge * step, step)
    first = _dot(fits.probabilities(z) - fits.y, weighted) + start
    sign = -first.sign()
    low, high = torch.zeros_like(first), torch.full_like(first, torch.inf)
    length, done = torch.ones_like(first), first == 0
    for _ in range(_TRIALS):
        t = (sign * length)[..., None, None]
        p = fits.probabilities(z + t * change)
        slope = sign * (_dot(p - fits.y, weighted) + start) + length * growth
        done = done | (slope.abs() <= enough * first.abs())
        if done.all():
            return t, p
        low, high = torch.where(slope < 0, length, low), torch.where(slope < 0, high, length)
        if fits.softmax:
            bend = _dot(p * change, weighted) - ((p * change).sum(2) * (p * weighted).sum(2)).sum(2)
        else:
            bend = _dot(p * (1 - p) * change, weighted)
        longer = length - slope / (bend + growth)
        inside = (longer > low) & (longer < high) & (longer <= 4 * length)
        longer = torch.where(inside, longer, torch.where(high.isinf(), 2 * length, (low + high) / 2))
        length = torch.where(done, length, longer)
    t = (sign * torch.where(done, length, low))[..., None, None]
    return t, fits.probabilities(z + t * change)
