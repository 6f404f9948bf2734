"""The gradient of pooling, in two steps: coefficients of each row, then one read of the tokens.

Where several tokens share the largest or smallest value, they share its gradient evenly, as `torch.amax` does. Where a
standard deviation is 0 (one real token, or all alike) its gradient is taken as 0; plain autograd gives NaN there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tsprobe.pooling.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor


def coefficients(
    grad: Float[Tensor, "R P D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    pooled: Float[Tensor, "R P D"],
    kinds: Sequence[int],
) -> dict[str, Tensor]:
    """What each row adds to the gradient of its real tokens, in float32, contiguous.

    A token x gets `constant + slope * (x - center)`, plus `to_largest` where it is `largest` (over the number of such
    tokens), the same for the smallest, and its shares of `to_segments [R, K, D]`.
    """

    def of(kind: Kind, source: Tensor) -> Tensor:
        return source[:, kinds.index(kind)].contiguous()

    count = mask.sum(1, dtype=grad.dtype).clamp(min=1)[:, None]
    found = {"constant": torch.zeros_like(grad[:, 0])}
    if Kind.MEAN in kinds:
        found["constant"] = of(Kind.MEAN, grad) / count
    if Kind.STD in kinds:
        std = of(Kind.STD, pooled)
        found["slope"] = torch.where(std > 0, of(Kind.STD, grad) / (std * count), 0.0)
        found["center"] = of(Kind.MEAN, pooled)
    if Kind.MAX in kinds or Kind.MIN in kinds:
        for kind, name in ((Kind.MAX, "largest"), (Kind.MIN, "smallest")):
            there = kind in kinds
            found[name] = of(kind, pooled) if there else torch.full_like(found["constant"], float("nan"))
            found[f"to_{name}"] = of(kind, grad) if there else torch.zeros_like(found["constant"])
    if share is not None and Kind.SEGMENT in kinds:
        place = kinds.index(Kind.SEGMENT)
        steps = share.sum(1).to(grad.dtype)
        part = grad[:, place : place + share.shape[2]]
        found["to_segments"] = (part / torch.where(steps > 0, steps, 1.0)[..., None]).contiguous()
    return found


def tokens(
    x: Float[Tensor, "R T D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    found: dict[str, Tensor],
) -> Float[Tensor, "R T D"]:
    """The gradient of the tokens in plain torch, a row at a time."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for r in range(x.shape[0]):
        row, real = x[r].to(torch.float32), mask[r][:, None]
        g = found["constant"][r].expand_as(row)
        if "slope" in found:
            g = g + found["slope"][r] * (row - found["center"][r])
        if "largest" in found:
            for name in ("largest", "smallest"):
                same = (row == found[name][r]) & real
                g = g + same * (found[f"to_{name}"][r] / same.sum(0).clamp(min=1))
        if "to_segments" in found and share is not None:
            g = g + share[r].to(torch.float32) @ found["to_segments"][r]
        out[r] = torch.where(real, g, 0.0)
    return out


def add_single_tokens(
    out: Float[Tensor, "R T D"],
    grad: Float[Tensor, "R P D"],
    mask: Bool[Tensor, "R T"],
    kinds: Sequence[int],
    cls: int,
) -> Float[Tensor, "R T D"]:
    """Add the gradients of first, last and class token to `out`, in place."""
    rows = torch.arange(len(out), device=out.device)
    real = mask.to(torch.int8)
    any_real = mask.any(1)[:, None]
    for kind in (Kind.FIRST, Kind.LAST, Kind.CLS):
        if kind not in kinds or not out.numel():
            continue
        value = grad[:, kinds.index(kind)]
        if kind == Kind.CLS:
            out[:, cls] += value.to(out.dtype)
            continue
        at = real.argmax(1) if kind == Kind.FIRST else mask.shape[1] - 1 - real.flip(1).argmax(1)
        out[rows, at] += torch.where(any_real, value, 0.0).to(out.dtype)
    return out
