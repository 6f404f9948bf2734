"""From a right-padded batch of series to the rows that an encoder reads, and from its tokens back to the steps.

Forecasters read a window that ends "now", so series of unlike length are aligned at their last step and padded on
the left. Token maps are always told in the steps of the batch as it came, padded on the right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tsprobe.errors import EncoderError
from tsprobe.types import Batch, TokenMap

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def right_aligned(batch: Batch, width: int | None = None) -> tuple[Float[Tensor, "R W"], Bool[Tensor, "R W"]]:
    """Values and observed mask of each channel as a row whose last step is the last step of the series.

    R = B * C rows of `width` steps (default: S), in the order of series and, within each, channels. Values are 0
    where nothing was observed.
    """
    size = batch.values.shape[-1]
    width = width or size
    source = torch.arange(width, device=batch.lengths.device) - width + batch.lengths[:, None]  # [B, W]
    index = source.clamp(0, size - 1)[:, None].expand(-1, batch.values.shape[1], -1)  # [B, C, W]
    observed = batch.observed.gather(-1, index) & (source >= 0)[:, None]
    values = torch.where(observed, batch.values.gather(-1, index), 0)
    return values.flatten(0, 1), observed.flatten(0, 1)


def standardised(
    values: Float[Tensor, "R W"], observed: Bool[Tensor, "R W"], correction: int, eps: float = 0
) -> Float[Tensor, "R W"]:
    """(x - mean) / (std + eps) over the observed steps of each row, 0 elsewhere; x - mean in a series of no spread, for
    which the models' own callers give NaN where eps is 0."""
    count = observed.sum(-1, keepdim=True)
    mean = values.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(observed, values - mean, 0)
    scale = (centred.square().sum(-1, keepdim=True) / (count - correction).clamp(min=1)).sqrt() + eps
    return centred / torch.where(scale > 0, scale, 1)


def with_nan(batch: Batch) -> Float[Tensor, "R W"]:
    """Right-aligned rows in float32, NaN where nothing was observed: the form in which Chronos takes a context."""
    values, observed = right_aligned(batch)
    return torch.where(observed, values.float(), torch.nan)


def refuse_longer(batch: Batch, context: int, name: str) -> None:
    """Raise `EncoderError` for a window past the context: the models would drop its beginning without a word."""
    if batch.values.shape[-1] > context:
        raise EncoderError(
            f"{name} reads at most {context} steps and this window has {batch.values.shape[-1]}: "
            "cut the series into windows"
        )


def refuse_missing(batch: Batch, name: str) -> None:
    """Raise `EncoderError` where a value is missing inside a series, for models that cannot mask it."""
    if not bool((batch.observed | ~batch.inside[:, None]).all()):
        raise EncoderError(f"{name} cannot mask missing values: interpolate them")


def refuse_shorter(batch: Batch, least: int, name: str) -> None:
    """Raise `EncoderError` for a series of fewer steps than make a token."""
    shortest = int(batch.lengths.min())
    if shortest < least:
        raise EncoderError(f"{name} needs at least {least} steps and a series has {shortest}")


def patch_starts(batch: Batch, patch: int) -> Int[Tensor, "B P"]:
    """Where patches side by side start when the last of them ends with the series and the first may hang over."""
    width = math.ceil(batch.values.shape[-1] / patch) * patch
    return before_end(batch, torch.arange(width, 0, -patch))


def before_end(batch: Batch, steps: Int[Tensor, " T"]) -> Int[Tensor, "B T"]:
    """Where tokens start that lie so many steps before the end of each series."""
    return batch.lengths[:, None] - steps.to(batch.lengths.device)


def token_map(
    batch: Batch,
    start: Int[Tensor, "B T"],
    size: int,
    *,
    joint: bool = False,
    prefix: int = 0,
    suffix: int = 0,
    cls: int | None = None,
) -> TokenMap:
    """The map of tokens that cover `size` steps from `start`, cut to the series, with special tokens around them.

    A token is real where it covers a step that was observed: in its own channel, or in any (`joint`, one row a
    series). The `prefix` tokens before and `suffix` tokens after are special. Start may be negative or past the end.
    """
    channels = batch.values.shape[1]
    observed = batch.observed.any(1) if joint else batch.observed.flatten(0, 1)  # [R, S]
    rows = 1 if joint else channels
    length = batch.lengths[:, None]
    first = torch.minimum(start.clamp(min=0), length).repeat_interleave(rows, 0)  # [R, T]
    last = torch.minimum((start + size).clamp(min=0), length).repeat_interleave(rows, 0)
    seen = F.pad(observed.long().cumsum(-1), (1, 0))  # [R, S + 1]
    mask = seen.gather(1, last) > seen.gather(1, first)
    around = (prefix, suffix)
    return TokenMap(
        F.pad(mask, around),
        F.pad(torch.where(mask, first, 0), around),
        F.pad(torch.where(mask, last, 0), around),
        cls,
    )
