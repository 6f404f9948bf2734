"""Pooling in torch where no compiled path serves: a few tokens at a time, so that what is read stays in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tsprobe.pooling.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

VALUES = 3 << 17  # read at a time by each thread: a core's own cache holds most of them, and fewer cost more in calls


def pool(
    x: Float[Tensor, "R T D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    kinds: Sequence[int],
    cls: int,
) -> Float[Tensor, "R P D"]:
    """Slots of the given kinds (numbers of `Kind`) in float32, for any strides and device."""
    rows, tokens, width = x.shape
    out = torch.empty(rows, len(kinds), width, dtype=torch.float32, device=x.device)
    if not x.numel():
        return out.zero_()
    # At least a row a thread: torch gives each thread the same rows in every operation, but of a single row its
    # tokens in one and its columns in another, and what one has written the other then reads.
    threads = torch.get_num_threads()
    group = min(rows, threads * max(1, VALUES // (tokens * width)))
    step = min(tokens, max(1, threads * VALUES // (group * width)))
    whole = bool(mask.all())
    parts = _Parts(x, mask, share, kinds, group, step)
    for r in range(0, rows, group):
        for n, t in enumerate(range(0, tokens, step)):
            parts.read(slice(r, r + group), slice(t, t + step), n, None if whole else mask)
    parts.write(out, mask)
    _copy_single_tokens(x, mask, kinds, cls, out, whole=whole)
    return out


def _copy_single_tokens(x: Tensor, mask: Tensor, kinds: Sequence[int], cls: int, out: Tensor, *, whole: bool) -> None:
    real, rows = mask.to(torch.int8), torch.arange(len(x), device=x.device)
    for kind in (Kind.CLS, Kind.FIRST, Kind.LAST):
        if kind not in kinds:
            continue
        slot = out[:, kinds.index(kind)]
        if kind == Kind.CLS or whole:
            slot.copy_(x[:, {Kind.CLS: cls, Kind.FIRST: 0, Kind.LAST: -1}[kind]])
        else:
            at = real.argmax(1) if kind == Kind.FIRST else mask.shape[1] - 1 - real.flip(1).argmax(1)
            slot.copy_(torch.where(mask.any(1)[:, None], x[rows, at].to(out.dtype), 0.0))


class _Parts:
    """Statistics of each part of each row, `[R, N, D]`, which are merged when all are read."""

    def __init__(
        self, x: Tensor, mask: Tensor, share: Tensor | None, kinds: Sequence[int], group: int, step: int
    ) -> None:
        rows, tokens, width = x.shape
        self.x, self.share, self.kinds = x, share, kinds
        shape = (rows, (tokens + step - 1) // step, width)
        like: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        # One buffer for all parts: fresh memory each time would cost more than the arithmetic.
        self.buffer = torch.empty(group * step * width, **like)
        self.size = torch.stack([part.sum(1, dtype=torch.float32) for part in mask.split(step, 1)], 1)[..., None]
        self.divisor = self.size.clamp(min=1)
        self.sum = torch.empty(shape, **like)
        self.m2 = torch.empty(shape, **like) if Kind.STD in kinds else None
        self.largest = torch.empty(shape, **like) if Kind.MAX in kinds else None
        self.smallest = torch.empty(shape, **like) if Kind.MIN in kinds else None
        self.segments = None if share is None else torch.zeros(rows, share.shape[2], width, **like)

    def read(self, rows: slice, tokens: slice, n: int, mask: Tensor | None) -> None:
        """Take some tokens of some rows, the n-th part of each; without a mask all of them are real."""
        x = self.x[rows, tokens]
        kept = self.buffer[: x.numel()].view(x.shape)
        # Copied though it may be float32 already: a copy reads memory in order, a sum over tokens does not.
        kept.copy_(x)
        dropped = None if mask is None else ~mask[rows, tokens, None]
        for extreme, reduce, filler in ((self.largest, torch.amax, "-inf"), (self.smallest, torch.amin, "inf")):
            if extreme is not None:
                if dropped is not None:
                    kept.masked_fill_(dropped, float(filler))
                reduce(kept, 1, out=extreme[rows, n])
        if dropped is not None:
            kept.masked_fill_(dropped, 0.0)
        total = torch.sum(kept, 1, out=self.sum[rows, n])
        if self.segments is not None and self.share is not None:
            self.segments[rows] += self.share[rows, tokens].to(torch.float32).transpose(1, 2) @ kept
        if self.m2 is not None:
            mean = (total / self.divisor[rows, n])[:, None].expand_as(kept)
            torch.ops.aten.mse_loss.out(kept, mean, 0, out=kept)  # squares of deviations: one pass where two would do
            if dropped is not None:
                kept.masked_fill_(dropped, 0.0)
            torch.sum(kept, 1, out=self.m2[rows, n])

    def write(self, out: Tensor, mask: Tensor) -> None:
        """Merge the parts by the parallel variance formula (Chan, Golub and LeVeque 1983), in float64: they are few."""
        if self.sum.shape[1] == 1:
            mean = self.sum[:, 0] / self.divisor[:, 0]
            variance = None if self.m2 is None else self.m2[:, 0] / self.divisor[:, 0]
        else:
            size = self.size.double()
            count = size.sum(1).clamp(min=1)
            mean = self.sum.double().sum(1) / count
            apart = torch.where(size > 0, self.sum / self.divisor - mean[:, None], 0.0)
            variance = None if self.m2 is None else (self.m2 + size * apart.square()).sum(1) / count
        found = {Kind.MEAN: mean}
        if variance is not None:
            found[Kind.STD] = variance.sqrt()
        real = mask.any(1)[:, None]
        if self.largest is not None:
            found[Kind.MAX] = torch.where(real, self.largest.amax(1), 0.0)
        if self.smallest is not None:
            found[Kind.MIN] = torch.where(real, self.smallest.amin(1), 0.0)
        for kind, value in found.items():
            if kind in self.kinds:
                out[:, self.kinds.index(kind)] = value
        if self.segments is not None and self.share is not None:
            steps = self.share.sum(1)[..., None]
            place = self.kinds.index(Kind.SEGMENT)
            out[:, place : place + self.segments.shape[1]] = self.segments / torch.where(steps > 0, steps, 1.0)
