"""Measures over views of the same samples: features `[V, N, D]` of V views, in float64.

What they say depends on how the views are made (`augment`), which is why that is declared with every result. Each
raises `Undefined` where its definition leaves nothing to measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.diagnostics.catalogue import CATALOGUE, Undefined, Value
from tsprobe.diagnostics.measures import perplexity

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

DELTA = 1e-4  # of LiDAR, added to the scatter within samples
TEMPERATURE = 0.1  # of InfoNCE
PERMUTATIONS = 5  # of DiME


def lidar(views: Float[Tensor, "V N D"]) -> float:
    """Thilak et al. 2023, section 4: the effective rank of `Σ_w^-1/2 Σ_b Σ_w^-1/2`, whose classes are the samples.

    Σ_b is the covariance of the samples' means over views, Σ_w that of views around these, plus δI with δ = 1e-4 as
    there; from 1 to min(N - 1, D). The paper takes 50 views of 1,000 samples: few views leave Σ_w thin. Costs D³.
    """
    means = views.mean(0)
    between, within = means - means.mean(0), (views - means).flatten(0, 1)
    if not between.any():
        raise Undefined("all samples are alike")
    scatter = within.T @ within / len(within)
    values, basis = torch.linalg.eigh(scatter)
    whitened = between @ basis / (values.clamp(min=0) + DELTA).sqrt()
    return perplexity(torch.linalg.eigvalsh(whitened.T @ whitened / (len(means) - 1)).clamp(min=0))


def dime(views: Float[Tensor, "V N D"]) -> float:
    """Skean et al. 2023, equation 8: `E_Π S(A ∘ ΠBΠᵀ) - S(A ∘ B)` of the first two views, in nats, about 0 to log N.

    S is the von Neumann entropy, A and B are Gaussian kernels over samples whose squared bandwidth is half of the mean
    squared distance, divided by their trace; five permutations with a seed. (Skean et al. 2025 take linear kernels,
    and of more samples than dimensions the covariances of dimensions, which pair no samples.) Costs N³.
    """
    a, b = (_kernel(view) for view in views[:2])
    generator = torch.Generator().manual_seed(0)
    permuted = 0.0
    for _ in range(PERMUTATIONS):
        order = torch.randperm(len(a), generator=generator).to(b.device)
        permuted += _joint_entropy(a, b[order][:, order]) / PERMUTATIONS
    return permuted - _joint_entropy(a, b)


def _kernel(x: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    x = x - x.mean(0)
    square = x.square().sum(1)
    distance = (square[:, None] + square - 2 * x @ x.T).clamp(min=0).fill_diagonal_(0)
    mean = distance.sum() / (len(x) * (len(x) - 1))
    if not mean > 0:
        raise Undefined("all samples are alike")
    return (-distance / mean).exp()


def _joint_entropy(a: Float[Tensor, "N N"], b: Float[Tensor, "N N"]) -> float:
    share = torch.linalg.eigvalsh(a * b / len(a)).clamp(min=0)
    return float(-torch.xlogy(share, share).sum())


def infonce(views: Float[Tensor, "V N D"]) -> float:
    """van den Oord et al. 2018, section 2.3: log N less the InfoNCE loss, a bound on the information that views share.

    Of the first two views, by the cosine over a temperature of 0.1, the mean of both directions; in nats, to log N.
    """
    a, b = (_unit(view) for view in views[:2])
    scores = a @ b.T / TEMPERATURE
    pairs = torch.arange(len(a), device=a.device)
    loss = (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2
    return math.log(len(a)) - float(loss)


def alignment(views: Float[Tensor, "V N D"]) -> float:
    """Wang and Isola 2020, equation 1, α = 2: the mean of `|u - u⁺|²` of the first two views, unit vectors; 0 to 4."""
    a, b = (_unit(view) for view in views[:2])
    return float((a - b).square().sum(1).mean())


def _unit(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    if not x.any():
        raise Undefined("all features are zero")
    return F.normalize(x, dim=1)


MEASURES: dict[str, Callable[[Tensor], float]] = {
    "lidar": lidar,
    "dime": dime,
    "infonce": infonce,
    "alignment": alignment,
}


def measure_views(views: Float[Tensor, "V N D"], names: tuple[str, ...]) -> dict[str, Value]:
    """The measures of kind "views" among `names`; NaN and the reason where one is not defined."""
    found = {}
    for name in names:
        try:
            if views.shape[1] < 4:
                raise Undefined(f"{views.shape[1]} samples; at least 4 are needed")
            if not views.isfinite().all():
                raise Undefined("features that are not finite")
            found[name] = Value(MEASURES[name](views.double()))
        except Undefined as reason:
            found[name] = Value(math.nan, str(reason))
        if math.isnan(found[name].value) and not found[name].note:
            found[name] = Value(math.nan, CATALOGUE[name].missing)
    return found
