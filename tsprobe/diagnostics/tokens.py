"""Measures over the tokens of a row, for some rows of a batch at once, in float64.

All look at real tokens only, in their order of time (of a picture: line by line), and at the first `places.LIMIT` of
them. A row for which a measure is not defined has NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tsprobe.diagnostics.places import Places

ENTROPY_LIMIT = 256  # tokens of a row that enter its entropy, evenly spaced: it grows with the cube


@dataclass(frozen=True)
class Rows:
    """Tokens `x [n, t, D]` in order, zero where `places.real` is False; what several measures need is made once."""

    x: Float[Tensor, "n t D"]
    places: Places

    @classmethod
    def of(cls, x: Float[Tensor, "n T D"], places: Places) -> Rows:
        picked = x.gather(1, places.order[..., None].expand(-1, -1, x.shape[2])).double()
        return cls(picked * places.real[..., None], places)

    @cached_property
    def norms(self) -> Float[Tensor, "n t"]:
        return self.x.norm(dim=2)

    @cached_property
    def gram(self) -> Float[Tensor, "n t t"]:
        return self.x @ self.x.transpose(1, 2)

    @cached_property
    def cosines(self) -> Float[Tensor, "n t t"]:
        """0 for a token of norm zero."""
        inverse = torch.where(self.norms > 0, 1 / self.norms, 0)
        return self.gram * inverse[:, :, None] * inverse[:, None, :]


def token_entropy(rows: Rows) -> Float[Tensor, " n"]:
    """Skean et al. 2025, equation 1, at α = 1: the von Neumann entropy of `XXᵀ / tr XXᵀ`, X the tokens as they are.

    In nats, from 0 (all tokens on one line through the origin) to log min(t, D). Giraldo et al. 2014 define it for any
    kernel that is divided by its trace. Rows longer than `ENTROPY_LIMIT` are thinned out evenly.
    """
    x, gram = rows.x, rows.gram
    if x.shape[1] > ENTROPY_LIMIT:
        kept = torch.linspace(0, 1, ENTROPY_LIMIT, device=x.device, dtype=x.dtype)
        number = (kept * (rows.places.real.sum(1, keepdim=True) - 1)).round().long().clamp(min=0)  # [n, limit]
        x = x.gather(1, number[..., None].expand(-1, -1, x.shape[2]))
        gram = x @ x.transpose(1, 2)
    if x.shape[1] > x.shape[2]:
        gram = x.transpose(1, 2) @ x  # of the same eigenvalues but for zeros
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    # float32 loses eigenvalues below 1e-7 of the largest, which are nothing to the entropy, and takes half the time
    share = torch.linalg.eigvalsh((gram / torch.where(trace > 0, trace, 1)).float()).clamp(min=0).double()
    share = share / share.sum(1, keepdim=True)
    entropy = -torch.xlogy(share, share).sum(1)
    return torch.where(rows.places.real.sum(1) > 1, entropy, torch.nan)


def curvature(rows: Rows) -> Float[Tensor, " n"]:
    """Hosseini and Fedorenko 2023, section 3: the mean angle between `x_{t+1} - x_t` and `x_{t+2} - x_{t+1}`.

    In radians, 0 (a straight line) to π. Only for rows of at least three tokens that follow one another in time;
    tokens that do not move have no angle and are left out. (The code published with Skean et al. 2025 takes the
    angle between tokens instead of their differences.)
    """
    x, real = rows.x, rows.places.real
    if x.shape[1] < 3:
        return x.new_full((len(x),), torch.nan)
    moves = x[:, 1:] - x[:, :-1]
    length = moves.norm(dim=2)
    both = length[:, 1:] * length[:, :-1]
    defined = real[:, 2:] & (both > 0)
    cosine = (moves[:, 1:] * moves[:, :-1]).sum(2) / torch.where(defined, both, 1)
    angle = torch.where(defined, cosine.clamp(-1, 1).arccos(), 0)
    mean = angle.sum(1) / defined.sum(1)  # 0 / 0 is NaN
    return torch.where(rows.places.sequence, mean, torch.nan)


def token_locality(rows: Rows) -> Float[Tensor, " n"]:
    """Singh et al. 2025 (arXiv 2512.10794), LDS: mean cosine of near pairs of tokens less that of distant pairs.

    Near are next neighbours in time, or on the grid (those who share a side); distant are pairs at least half as far
    apart as the most distant ones, in tokens (on the grid |Δrow| + |Δcolumn|). From -2 to 2; near 0 where a token
    tells no more of its surroundings than of any other place, as where tokens have become global.
    """
    return (rows.cosines * rows.places.contrast).sum((1, 2))


def token_norm_ratio(rows: Rows) -> Float[Tensor, " n"]:
    """The largest norm of a token over the median norm of its row; at least 1.

    Darcet et al. 2023, section 2.1, find by their norm the patch tokens that a network uses as global ones; as a ratio
    it needs no threshold of its own for each network.
    """
    count = rows.places.real.sum(1, keepdim=True)
    ordered = rows.norms.masked_fill(~rows.places.real, torch.inf).sort(dim=1).values
    middle = torch.cat([(count - 1).clamp(min=0) // 2, count // 2], 1).clamp(max=ordered.shape[1] - 1)
    median = ordered.gather(1, middle).mean(1)  # of the one or two in the middle
    ratio = rows.norms.amax(1) / median
    return torch.where((count[:, 0] > 1) & (median > 0), ratio, torch.nan)


MEASURES: dict[str, Callable[[Rows], Tensor]] = {
    "token_entropy": token_entropy,
    "curvature": curvature,
    "token_locality": token_locality,
    "token_norm_ratio": token_norm_ratio,
}


def measure_tokens(x: Float[Tensor, "n T D"], places: Places, names: Sequence[str]) -> Float[Tensor, "n M"]:
    """A column for each name; rows with a value that is not finite have NaN in all."""
    finite = x.isfinite().all(2).all(1)
    rows = Rows.of(torch.where(finite[:, None, None], x, 0), places)
    values = torch.stack([MEASURES[name](rows) for name in names], 1)
    return torch.where(finite[:, None], values, torch.nan)
