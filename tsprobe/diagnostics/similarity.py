"""Linear CKA between sets of features of the same samples, unbiased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def cka_matrix(features: Sequence[Float[Tensor, "N ?"]]) -> Float[Tensor, "L L"]:
    """Linear CKA (Kornblith et al. 2019, section 3) of all pairs, with the unbiased HSIC of Song et al. 2012, eq. 5.

    Up to 1; of features that have nothing to do with each other 0 on average, and at times below. NaN for features
    that are equal in all samples, or of fewer than four samples. Costs N² D a layer and N² a pair.
    """
    n = len(features[0])
    nothing = features[0].new_full((len(features), len(features)), torch.nan, dtype=torch.float64)
    if n < 4:
        return nothing
    grams, alike = [], []
    for raw in features:
        raw = raw.double()
        x = raw - raw.mean(0)
        alike.append(bool(x.square().sum() <= 1e-24 * raw.square().sum()))  # what is left is rounding
        grams.append((x @ x.T).fill_diagonal_(0))
    k = torch.stack(grams)  # [L, N, N]
    sums, whole = k.sum(1), k.sum((1, 2))
    flat = k.flatten(1)
    hsic = (flat @ flat.T + whole[:, None] * whole / ((n - 1) * (n - 2)) - 2 * (sums @ sums.T) / (n - 2)) / (
        n * (n - 3)
    )
    own = hsic.diagonal().clamp(min=0)
    scale = (own[:, None] * own).sqrt()
    constant = torch.tensor(alike, device=k.device)
    unknown = (scale <= 0) | constant[:, None] | constant
    return torch.where(unknown, torch.nan, hsic / torch.where(unknown, 1, scale))


def linear_cka(x: Float[Tensor, "N D"], y: Float[Tensor, "N E"]) -> float:
    """`cka_matrix` of two."""
    return float(cka_matrix([x, y])[0, 1])
