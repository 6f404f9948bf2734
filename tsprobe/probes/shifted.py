"""Solutions of (M + s I) X = R for many shifts s of one symmetric positive semidefinite matrix M.

A Cholesky factor a shift costs r^3 / 3 operations. From some size and number of shifts on, a CPU is quicker with one
orthogonal reduction of M to a band of width b (successive blocks of Householder reflections, 2 r^3 operations, nearly
all of them matrix products; Golub and Van Loan 2013, section 8.3, by blocks), after which a shift costs r b^2: the
shift commutes with the reflections. An eigendecomposition, which would serve too, costs about four times as much as
the reduction. On a GPU the factors of all shifts are computed at once, since its reflections are slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

if TYPE_CHECKING:
    from jaxtyping import Float

_WIDTHS = (48, 64, 32)  # of the band, the quickest first; the one that pads the matrix least is taken
_BAND_SIZE = 256  # from this size and number of shifts on, the band is quicker (measured on two cores)
_BAND_SHIFTS = 4
_CACHE = 2**23  # bytes of the factors that a CPU computes together
_DEVICE = 2**30  # and another device


def solve(
    matrix: Float[Tensor, "q r r"],
    right: Float[Tensor, "q r K"],
    shifts: Float[Tensor, "q A"],
    left: Float[Tensor, "q m r"] | None = None,
) -> Float[Tensor, "q A m K"]:
    """`left (matrix + shift I)^-1 right` for every shift; without `left`, the solutions themselves (m = r).

    Shifts are positive; `matrix` is symmetric, of eigenvalues not below 0 but for rounding. `matrix` and `left` may be
    overwritten.
    """
    by_band = matrix.device.type == "cpu" and matrix.shape[1] >= _BAND_SIZE and shifts.shape[1] >= _BAND_SHIFTS
    return (_by_band if by_band else _by_cholesky)(matrix, right, shifts, left)


def operations(size: int, shifts: int) -> float:
    """About how many operations of a matrix product `solve` takes as long as, for one matrix."""
    return size**3 * min(shifts, 5)


def _by_cholesky(matrix: Tensor, right: Tensor, shifts: Tensor, left: Tensor | None) -> Tensor:
    (q, r, _), a = matrix.shape, shifts.shape[1]
    step = max(1, (_CACHE if matrix.device.type == "cpu" else _DEVICE) // (8 * r * r))
    which = torch.arange(q, device=matrix.device).repeat_interleave(a)
    found = []
    for part, shift in zip(which.split(step), shifts.flatten().split(step), strict=True):
        shifted = matrix[part]
        shifted.diagonal(dim1=1, dim2=2).add_(shift[:, None])
        solution = torch.cholesky_solve(right[part], cholesky_ex(shifted)[0])
        found.append(solution if left is None else left[part] @ solution)
    return torch.cat(found).unflatten(0, (q, a))


def _by_band(matrix: Tensor, right: Tensor, shifts: Tensor, left: Tensor | None) -> Tensor:
    """One matrix after the other, so that each stays in the cache."""
    r = matrix.shape[1]
    width = min(_WIDTHS, key=lambda b: -r % b)

    def padded(x: Tensor, *sides: int) -> Tensor:
        """With zeros at the end: the shift keeps rows and columns of zeros regular."""
        return torch.nn.functional.pad(x, sides) if any(sides) else x

    pad, found = -r % width, []
    for i in range(len(matrix)):
        x = None if left is None else padded(left[i], 0, pad)
        solution = _one_by_band(
            padded(matrix[i], 0, pad, 0, pad), padded(right[i], 0, 0, 0, pad).clone(), shifts[i], x, width
        )
        found.append(solution[:, :r] if left is None else solution)
    return torch.stack(found)


def _one_by_band(
    matrix: Float[Tensor, "r r"],
    right: Float[Tensor, "r K"],
    shifts: Float[Tensor, " A"],
    left: Float[Tensor, "m r"] | None,
    width: int,
) -> Float[Tensor, "A m K"]:
    """M = Q B Q': the solution is Q (B + s I)^-1 Q'R. `right` and `left` are overwritten, r is n blocks of `width`."""
    band = _reduce(matrix, width)
    for start, v, t in band.reflections:
        right[start:].addmm_(v, t.mT @ (v.mT @ right[start:]), alpha=-1)
    solution = _solve_band(band, right, shifts)  # [A, r, K]
    a, r, k = solution.shape
    if left is not None and len(left) < a * k:  # reflect whichever is smaller, the rows or the solutions
        for start, v, t in band.reflections:
            left[:, start:].addmm_(left[:, start:] @ v @ t, v.mT, alpha=-1)
        return left @ solution
    solution = solution.transpose(0, 1).reshape(r, a * k)
    for start, v, t in reversed(band.reflections):
        solution[start:].addmm_(v, t @ (v.mT @ solution[start:]), alpha=-1)
    if left is not None:
        solution = left @ solution
    return solution.view(-1, a, k).transpose(0, 1)


class _Reflections(NamedTuple):
    """The product I - V T V' of `b` Householder reflections (Schreiber and Van Loan 1989), from row `start` on."""

    start: int
    v: Float[Tensor, "m b"]
    t: Float[Tensor, "b b"]


class _Band(NamedTuple):
    """A symmetric matrix of blocks on and below the diagonal, and the reflections that made it."""

    diagonal: list[Float[Tensor, "b b"]]
    below: list[Float[Tensor, "b b"]]
    reflections: list[_Reflections]


def _reduce(a: Float[Tensor, "r r"], b: int) -> _Band:
    """Reflect everything below the first block of each block column into that block; `a` is overwritten.

    With S the rows and columns from `start` on, Z = S V T and W = Z - V (T'V'Z) / 2, the two-sided product is
    S - V W' - W V'.
    """
    r = len(a)
    eye = torch.eye(b, dtype=a.dtype, device=a.device)
    both = a.new_empty(3 * b, r)
    below, reflections = [], []
    for start in range(b, r - b, b):
        packed, tau = torch.geqrf(a[start - b : start, start:].mT)
        below.append(packed[:b].triu())
        v = packed
        v[:b].tril_(-1).diagonal().fill_(1)
        inverse = (v.mT @ v).triu_(1)
        inverse.diagonal().copy_(1 / tau)  # infinite, and T then 0, where a column is zero already
        t = solve_triangular(inverse, eye, upper=True)
        vt, s = v @ t, a[start:, start:]
        z = s @ vt
        vwv = both[:, : len(s)]
        vwv[:b], vwv[b : 2 * b], vwv[2 * b :] = v.mT, torch.addmm(z, v, vt.mT @ z, alpha=-0.5).mT, v.mT
        s.addmm_(vwv[: 2 * b].mT, vwv[b:], alpha=-1)
        reflections.append(_Reflections(start, v, t))
    if r > b:
        below.append(a[r - 2 * b : r - b, r - b :].mT)
    return _Band([a[i : i + b, i : i + b] for i in range(0, r, b)], below, reflections)


def _solve_band(band: _Band, right: Float[Tensor, "r K"], shifts: Float[Tensor, " A"]) -> Float[Tensor, "A r K"]:
    """Block Cholesky of the shifted band, all shifts at once, and both substitutions."""
    b, a = len(band.diagonal[0]), len(shifts)
    eye = torch.eye(b, dtype=right.dtype, device=right.device)
    shift = shifts[:, None, None] * eye
    inverses: list[Tensor] = []  # of the factor's blocks on the diagonal
    below: list[Tensor] = []  # the factor's blocks below it
    found: list[Tensor] = []
    for i, (diagonal, rhs) in enumerate(zip(band.diagonal, right.split(b), strict=True)):
        block, u = diagonal + shift, rhs.expand(a, -1, -1)  # [A, b, b], [A, b, K]
        if i:
            block.baddbmm_(below[-1], below[-1].mT, alpha=-1)
            u = torch.baddbmm(u, below[-1], found[-1], alpha=-1)
        inverses.append(solve_triangular(cholesky_ex(block)[0], eye.expand_as(block), upper=False))
        found.append(inverses[-1] @ u)
        if i < len(band.below):
            below.append(band.below[i] @ inverses[-1].mT)
    for i in reversed(range(len(found))):
        if i < len(below):
            found[i].baddbmm_(below[i].mT, found[i + 1], alpha=-1)
        found[i] = inverses[i].mT @ found[i]
    return torch.cat(found, 1)
