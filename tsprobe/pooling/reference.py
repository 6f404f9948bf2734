"""The definition of right: pooling in plain torch, a statistic at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tsprobe.errors import EncoderError
from tsprobe.pooling.slots import Slots
from tsprobe.types import TokenMap

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def pool(
    x: Float[Tensor, "R T D"],
    tokens: TokenMap,
    slots: Slots,
    spans: Float[Tensor, "R K+1"] | None = None,
) -> tuple[Float[Tensor, "R P D"], Float[Tensor, "R P"]]:
    """Pool the real tokens of each row.

    Gives the pooled slots, in float32 (float64 for float64 input), and the weight of each, with which windows of
    one series are merged. A token counts for a segment by the steps that it shares with it; `spans` are the borders
    of the K segments in steps of this window. A row without a real token, and a segment without one, is all zeros
    and has weight 0; so is every row where T is 0. No rows give no rows. A NaN in a real token makes its own row NaN
    and no other; of infinities, extremes and single tokens stay what they are, a mean is infinite (NaN of both signs)
    and a standard deviation NaN. Integers are taken as float32. Raises `EncoderError` for complex or sparse tokens.
    """
    x = widen(x)
    mask = tokens.mask
    count = mask.sum(1, dtype=x.dtype)  # [R]
    weight = count[:, None].expand(-1, len(slots)).clone()  # [R, P]
    out = x.new_zeros(x.shape[0], len(slots), x.shape[2])  # [R, P, D]
    # A masked token may hold anything, NaN included: it is replaced, not multiplied by zero.
    kept = x if bool(mask.all()) else torch.where(mask[..., None], x, 0.0)
    mean = kept.sum(1) / count.clamp(min=1)[:, None]  # [R, D]
    for p, kind in enumerate(slots.kinds):
        if kind == "mean":
            out[:, p] = mean
        elif kind in ("max", "min"):
            out[:, p] = _extreme(x, mask, largest=kind == "max")
        elif kind == "std":
            deviation = torch.where(mask[..., None], x - mean[:, None], 0.0)
            out[:, p] = (deviation.square().sum(1) / count.clamp(min=1)[:, None]).sqrt()
        elif kind in ("first", "last"):
            out[:, p] = _end(kept, mask, first=kind == "first")
        elif kind == "cls":
            if tokens.cls is None:
                raise EncoderError("pooling 'cls' was asked for, but this encoder has no class token")
            out[:, p], weight[:, p] = x[:, tokens.cls], 1.0
    if slots.segments:
        place = next(p for name, p in slots.places.items() if name.startswith("segments"))
        out[:, place], weight[:, place] = _segments(kept, tokens, spans)
    return out, weight


def widen(x: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
    """Tokens in the type that pooling counts in: float64 as it is, all other real numbers in float32."""
    if x.layout != torch.strided or x.dtype.is_complex:
        raise EncoderError(f"tokens to be pooled must be real numbers in a dense tensor, not {x.dtype} ({x.layout})")
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _extreme(x: Tensor, mask: Tensor, *, largest: bool) -> Tensor:
    if not x.shape[1]:
        return x.new_zeros(x.shape[0], x.shape[2])
    filler = float("-inf") if largest else float("inf")
    masked = torch.where(mask[..., None], x, filler)
    value = masked.amax(1) if largest else masked.amin(1)
    return torch.where(mask.any(1)[:, None], value, 0.0)


def _end(kept: Tensor, mask: Tensor, *, first: bool) -> Tensor:
    if not kept.shape[1]:
        return kept.new_zeros(kept.shape[0], kept.shape[2])
    real = mask.to(torch.int8)
    index = real.argmax(1) if first else mask.shape[1] - 1 - real.flip(1).argmax(1)
    value = kept[torch.arange(len(kept), device=kept.device), index]
    return torch.where(mask.any(1)[:, None], value, 0.0)


def _segments(kept: Tensor, tokens: TokenMap, spans: Tensor | None) -> tuple[Tensor, Tensor]:
    if spans is None:
        raise ValueError("pooling by segments needs the borders of the segments")
    low = torch.maximum(tokens.start[:, :, None].to(kept.dtype), spans[:, None, :-1].to(kept.dtype))
    high = torch.minimum(tokens.stop[:, :, None].to(kept.dtype), spans[:, None, 1:].to(kept.dtype))
    share = (high - low).clamp(min=0) * tokens.mask[:, :, None]  # [R, T, K]
    total = share.sum(1)  # [R, K]
    mean = torch.einsum("rtk,rtd->rkd", share, kept) / torch.where(total > 0, total, 1.0)[..., None]
    return mean, total
