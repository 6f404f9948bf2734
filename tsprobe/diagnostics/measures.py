"""Measures over pooled features `[N, D]` of a layer, to be given in float64.

Each raises `Undefined` where its definition leaves nothing to measure. None of them needs labels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.diagnostics.catalogue import Undefined

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

HEAD, LEAST = 10, 10  # eigenvalues that `alpha_req` leaves out at the head, and that it wants to fit
DISCARDED = 0.1  # share of the samples of largest ratio that `two_nn` leaves out


def singular_values(x: Float[Tensor, "N D"]) -> Float[Tensor, " M"]:
    """Of x, M = min(N, D), ascending, from its Gram matrix; 0 where they are lost in rounding (1e-7 of the largest)."""
    return _roots(x @ x.T if len(x) < x.shape[1] else x.T @ x, max(x.shape))


def spectra(x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """`singular_values` of x less its mean, and of x as it is: the Gram matrix of many samples is made once."""
    mean = x.mean(0)
    centred = x - mean
    if len(x) < x.shape[1]:
        return singular_values(centred), singular_values(x)
    gram = centred.T @ centred
    return _roots(gram, len(x)), _roots(gram + len(x) * torch.outer(mean, mean), len(x))


def _roots(gram: Float[Tensor, "M M"], size: int) -> Float[Tensor, " M"]:
    values = torch.linalg.eigvalsh(gram)
    lost = values <= values[-1] * size * torch.finfo(gram.dtype).eps
    return torch.where(lost, 0, values).sqrt()


def effective_rank(x: Float[Tensor, "N D"]) -> float:
    """Roy and Vetterli 2007, equation 3, on centred features: between 1 and min(N - 1, D); 0 if all are equal."""
    return perplexity(singular_values(x - x.mean(0)))


def rankme(x: Float[Tensor, "N D"]) -> float:
    """Garrido et al. 2022, equation 1: the effective rank of features that are not centred; from 1 to min(N, D).

    Without the ε of 1e-7 that is added there to each share, which counts D of them even where the rank is 1. The
    authors compare runs of one method, on 25,600 samples.
    """
    return perplexity(singular_values(x))


def perplexity(weights: Float[Tensor, " M"]) -> float:
    """exp of the entropy of weights that are not normalised; 0 if all of them are 0."""
    total = weights.sum()
    return float(_entropy(weights).exp()) if total > 0 else 0.0


def _entropy(weights: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    share = weights / weights.sum()
    return -torch.xlogy(share, share).sum()


def sample_entropy(x: Float[Tensor, "N D"]) -> float:
    """Skean et al. 2025, equation 1, at α = 1, over samples ("dataset entropy"): von Neumann, of `XXᵀ / tr XXᵀ`.

    In nats, from 0 to log min(N, D); features are not centred. The kernel form is that of Giraldo et al. 2014.
    """
    return entropy_of_spectrum(singular_values(x))


def entropy_of_spectrum(singular: Float[Tensor, " M"]) -> float:
    """`sample_entropy` from the singular values."""
    if not singular.any():
        raise Undefined("all features are zero")
    return float(_entropy(singular.square()))


def alpha_req(x: Float[Tensor, "N D"]) -> float:
    """Agrawal et al. 2022, section 3: the exponent α of `λ_j ∝ j^-α`, λ the covariance's eigenvalues in falling order.

    A line through log λ against log j by least squares with weights 1 / j, which count each octave of j alike (as in
    Stringer et al. 2019, whose fit leaves out the first ten). The range matters: here j runs from 11 to half of
    M = min(N - 1, D), since the tail is bent down where samples are few; over all M where that leaves fewer than ten.
    """
    return decay_of_spectrum(singular_values(x - x.mean(0)), len(x))


def decay_of_spectrum(singular: Float[Tensor, " M"], n: int) -> float:
    """`alpha_req` from the singular values of n centred samples, ascending."""
    values = singular.square().flip(0)[: n - 1]
    first, last = HEAD, len(values) // 2
    if last - first < LEAST:
        first, last = 0, len(values)
    j = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    used = (values > 0) & (j > first) & (j <= last)
    if used.sum() < 3:
        raise Undefined("fewer than three directions with any variance")
    weight, at, height = 1 / j[used], j[used].log(), values[used].log()
    at, height = (v - (weight * v).sum() / weight.sum() for v in (at, height))
    return float(-(weight * at * height).sum() / (weight * at.square()).sum())


def two_nn(x: Float[Tensor, "N D"]) -> float:
    """Facco et al. 2017, section "Results": intrinsic dimension from the ratio µ of a sample's two nearest distances.

    The slope through the origin of -log(1 - F(µ)) against log µ, F the empirical distribution, without the tenth of
    the samples with the largest ratios. Samples with a twin at distance 0 say nothing and are left out. Costs N² D.
    """
    return dimension_of_gram(centred_gram(x))


def centred_gram(x: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Products of all pairs of samples less their mean; N² D."""
    x = x - x.mean(0)
    return x @ x.T


def dimension_of_gram(gram: Float[Tensor, "N N"]) -> float:
    """`two_nn` from the products of centred samples."""
    square = gram.diagonal()
    distance = torch.add(square[:, None] + square, gram, alpha=-2).fill_diagonal_(torch.inf)
    first, second = distance.topk(2, largest=False).values.clamp(min=0).T if len(gram) > 2 else (square, square)
    known = first > 1e-12 * square.max()  # below, it is rounding
    mu = (second[known] / first[known]).sqrt().sort().values
    kept = int(len(mu) * (1 - DISCARDED))
    share = torch.arange(1, kept + 1, dtype=mu.dtype, device=mu.device) / len(mu)
    along = mu[:kept].log()
    if kept < 3 or not along.square().sum() > 0:
        raise Undefined("too few samples with two neighbours at different distances")
    return float(-(along * (1 - share).log()).sum() / along.square().sum())


def anisotropy(x: Float[Tensor, "N D"]) -> float:
    """Ethayarajh 2019, section 4.1: the mean cosine over all pairs of different samples, uncentred."""
    unit = F.normalize(x, dim=1)
    n = len(x)
    diagonal = float(unit.square().sum())
    if diagonal == 0:
        raise Undefined("all features are zero")
    return float((unit.sum(0).square().sum() - diagonal) / (n * (n - 1)))


def uniformity(x: Float[Tensor, "N D"]) -> float:
    """Wang and Isola 2020, equation 2, t = 2: log of the mean over pairs of `exp(-2 |u - v|²)`, unit vectors u and v.

    0 where all point one way, at the least -4 (pairs at right angles; less only for few samples). Costs N² D.
    """
    return uniformity_of_gram(x, centred_gram(x))


def uniformity_of_gram(x: Float[Tensor, "N D"], gram: Float[Tensor, "N N"]) -> float:
    """`uniformity` from the products of centred samples, to which those with the mean are added."""
    mean = x.mean(0)
    along = x @ mean - mean @ mean / 2
    length = x.norm(dim=1)
    if not length.any():
        raise Undefined("all features are zero")
    n, inverse = len(x), torch.where(length > 0, 1 / length, 0)
    cosine = (gram + along[:, None] + along) * inverse[:, None] * inverse
    close = (4 * cosine - 4).exp()  # |u - v|² = 2 - 2 uv
    return math.log((float(close.sum()) - float(close.diagonal().sum())) / (n * (n - 1)))


def displacement(x: Float[Tensor, "N D"], before: Float[Tensor, "N D"]) -> float:
    """Men et al. 2024 (ShortGPT), equation 1, Block Influence: 1 less the mean cosine of output and input of a layer.

    There over tokens, here over pooled features.
    """
    length = x.norm(dim=1) * before.norm(dim=1)
    known = length > 0
    if not known.any():
        raise Undefined("all features are zero")
    return float(1 - ((x * before).sum(1)[known] / length[known]).mean())


def relative_change(x: Float[Tensor, "N D"], before: Float[Tensor, "N D"]) -> float:
    """Csordás et al. 2025 (arXiv 2505.13898), section 3: the mean of |x_l - x_{l-1}| / |x_{l-1}|, what the layer adds.

    There over tokens, here over pooled features.
    """
    length = before.norm(dim=1)
    known = length > 0
    if not known.any():
        raise Undefined("all features of the layer before are zero")
    return float(((x - before).norm(dim=1)[known] / length[known]).mean())
