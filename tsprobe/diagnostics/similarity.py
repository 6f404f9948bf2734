"""Linear CKA between sets of features of the same samples, unbiased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tsprobe.diagnostics.measures import centred_gram

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def cka_matrix(features: Sequence[Float[Tensor, "N ?"]]) -> Float[Tensor, "L L"]:
    """Linear CKA (Kornblith et al. 2019, section 3) of all pairs, with the unbiased HSIC of Song et al. 2012, eq. 5.

    Up to 1; of features that have nothing to do with each other 0 on average, and at times below. NaN for features
    that are equal in all samples, or of fewer than four samples. Costs N² D a layer and N² a pair.
    """
    grams = torch.stack([centred_gram(x.double()) for x in features])
    return cka_of_grams(grams, torch.tensor([is_constant(x.double()) for x in features]))


def is_constant(x: Float[Tensor, "N D"]) -> bool:
    """Whether what is left without the mean is rounding."""
    return bool((x - x.mean(0)).square().sum() <= 1e-24 * x.square().sum())


def cka_of_grams(k: Float[Tensor, "L N N"], constant: Bool[Tensor, " L"]) -> Float[Tensor, "L L"]:
    """`cka_matrix` from the products of centred samples, and which features are equal in all of them."""
    n = k.shape[1]
    if n < 4:
        return k.new_full((len(k), len(k)), torch.nan)
    own_products = k.diagonal(dim1=1, dim2=2)  # [L, N], which the estimate leaves out
    sums = k.sum(1) - own_products
    whole = sums.sum(1)
    flat = k.flatten(1)
    pairs = flat @ flat.T - own_products @ own_products.T
    hsic = (pairs + whole[:, None] * whole / ((n - 1) * (n - 2)) - 2 * (sums @ sums.T) / (n - 2)) / (n * (n - 3))
    own = hsic.diagonal().clamp(min=0)
    scale = (own[:, None] * own).sqrt()
    unknown = (scale <= 0) | constant[:, None] | constant
    return torch.where(unknown, torch.nan, hsic / torch.where(unknown, 1, scale))


def linear_cka(x: Float[Tensor, "N D"], y: Float[Tensor, "N E"]) -> float:
    """`cka_matrix` of two."""
    return float(cka_matrix([x, y])[0, 1])
