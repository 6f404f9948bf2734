"""Measures over pooled features `[N, D]` of a layer, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

DIAGNOSTICS = {
    "effective_rank": "exp of the entropy of the normalised singular values (Roy and Vetterli 2007), in dimensions",
    "anisotropy": "mean cosine between two different samples (Ethayarajh 2019), in [-1, 1]",
    "cka_final": "linear CKA with the final layer, unbiased (Kornblith et al. 2019), up to 1",
}


def effective_rank(x: Float[Tensor, "N D"]) -> float:
    """Roy and Vetterli 2007, equation 3, on centred features: between 1 and min(N - 1, D); 0 if all are equal."""
    singular = torch.linalg.svdvals(x - x.mean(0))
    total = singular.sum()
    if total <= 0:
        return 0.0
    share = singular / total
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def anisotropy(x: Float[Tensor, "N D"]) -> float:
    """Ethayarajh 2019, section 4.1: the mean cosine over all pairs of different samples, uncentred."""
    unit = torch.nn.functional.normalize(x, dim=1)
    n = len(x)
    diagonal = float(unit.square().sum())
    return float((unit.sum(0).square().sum() - diagonal) / (n * (n - 1)))


def linear_cka(x: Float[Tensor, "N D"], y: Float[Tensor, "N E"]) -> float:
    """Linear CKA (Kornblith et al. 2019, section 3) with the unbiased HSIC of Song et al. 2012, equation 5."""
    k, m = (_zero_diagonal(a @ a.T) for a in (x, y))
    scale = (_hsic(k, k) * _hsic(m, m)).clamp(min=0).sqrt()
    return float(_hsic(k, m) / scale) if scale > 0 else float("nan")


def _zero_diagonal(gram: Tensor) -> Tensor:
    return gram - torch.diag(gram.diag())


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    n = len(k)
    ones = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return ((k * m).sum() + ones - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)) / (n * (n - 3))


def measure(x: Float[Tensor, "N D"], final: Float[Tensor, "N E"]) -> dict[str, float]:
    """All of `DIAGNOSTICS` for one layer, on columns scaled to their spread; NaN where N < 4."""
    if len(x) < 4:
        return dict.fromkeys(DIAGNOSTICS, float("nan"))
    x, final = x.double(), final.double()
    centred, target = x - x.mean(0), final - final.mean(0)
    return {
        "effective_rank": effective_rank(x),
        "anisotropy": anisotropy(x),
        "cka_final": linear_cka(centred, target),
    }
