"""A norm that is applied to every token before it is pooled, and the pool that attends by a query: plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from tsprobe.pooling.reference import widen

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm over the width, as an encoder's head would apply it. No weight means ones, no bias 0."""

    kind: Literal["layer", "rms"]
    weight: Float[Tensor, " D"] | None = None
    bias: Float[Tensor, " D"] | None = None
    eps: float = 1e-5

    def __call__(self, x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        """Normalised tokens, in float32 (float64 for float64)."""
        x = widen(x)
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            x = x * self.weight.to(x.dtype)
        return x if self.bias is None else x + self.bias.to(x.dtype)


def attend(x: Float[Tensor, "R T D"], mask: Bool[Tensor, "R T"], query: Float[Tensor, " D"]) -> Float[Tensor, "R D"]:
    """Mean of the real tokens weighted by the softmax of their product with the query; 0 for a row without one.

    The products are not scaled: put 1 / sqrt(D) into the query where it is wanted.
    """
    x = widen(x)
    kept = torch.where(mask[..., None], x, 0.0)
    score = (kept @ query.to(x.dtype)).masked_fill(~mask, float("-inf"))
    score = torch.where(mask.any(1)[:, None], score, 0.0)  # a softmax over nothing would be NaN
    return torch.einsum("rt,rtd->rd", score.softmax(1) * mask, kept)
