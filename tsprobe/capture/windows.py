"""Cutting a panel into windows that fit an encoder's context, and windows into batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tsprobe.errors import DataError
from tsprobe.types import Batch

if TYPE_CHECKING:
    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Facts


BEGUN = 8  # batches filled at the same time, one for each length of windows


@dataclass(frozen=True, slots=True)  # there may be millions
class Window:
    """The steps from `start` up to `stop` of one series."""

    series: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(panel: Panel, facts: Facts, name: str) -> list[Window]:
    """Windows of about equal length, no longer than the context, without overlap, borders on whole patches.

    Equal lengths, since a full window with a stub after it would give the stub's few tokens a context of their own.
    Raises `DataError` for a series that is too short for the encoder, or with channels that it does not take.
    """
    if facts.channels is not None and panel.channels != facts.channels:
        raise DataError(f"{name} takes series of {facts.channels} channels; these have {panel.channels}")
    short = np.flatnonzero(panel.lengths < facts.min_length)
    if len(short):
        raise DataError(
            f"series {short[0]} has {panel.lengths[short[0]]} steps; {name} needs at least {facts.min_length} "
            f"({len(short)} of {len(panel)} series are too short)"
        )
    windows = []
    for i, length in enumerate(panel.lengths.tolist()):
        patches = math.ceil(length / facts.patch)
        pieces = 1 if facts.context is None else math.ceil(patches / max(1, facts.context // facts.patch))
        borders = [patches * piece // pieces * facts.patch for piece in range(pieces)] + [length]
        windows += [Window(i, start, stop) for start, stop in itertools.pairwise(borders)]
    return windows


def batches(windows: list[Window], rows: int, pads: bool) -> Iterator[list[int]]:
    """Indices of the windows of each batch, at most `rows`, alike in length (equal where padding is not taken).

    Series with short windows come first, and the windows of a series stand close together, so that few series are
    incomplete at a time.
    """
    series = np.fromiter((w.series for w in windows), np.int64, len(windows))
    longest = np.zeros(series.max(initial=-1) + 1, np.int64)
    np.maximum.at(longest, series, np.fromiter((len(w) for w in windows), np.int64, len(windows)))
    order = longest[series].argsort(kind="stable")
    begun: dict[int, list[int]] = {}  # batches that are not full, by the length of their windows where it must be equal
    for i in map(int, order):
        length = 0 if pads else len(windows[i])
        batch = begun.setdefault(length, [])
        batch.append(i)
        if len(batch) == rows:
            yield begun.pop(length)
        elif len(begun) > BEGUN:
            yield begun.pop(next(iter(begun)))
    yield from begun.values()


def load(panel: Panel, windows: list[Window], *, keep_missing: bool) -> Batch:
    """The values of some windows, padded on the right. Missing values stay unobserved, or are interpolated in time."""
    lengths = torch.tensor([len(w) for w in windows])
    values = np.zeros((len(windows), panel.channels, int(lengths.max())), np.float32)  # [B, C, S]
    observed = np.zeros(values.shape, bool)
    for i, w in enumerate(windows):
        piece = panel[w.series] if keep_missing else interpolate(panel[w.series])
        piece = piece[:, w.start : w.stop]
        finite = np.isfinite(piece)
        observed[i, :, : len(w)] = finite
        values[i, :, : len(w)] = np.where(finite, piece, 0)
    return Batch(torch.from_numpy(values), torch.from_numpy(observed), lengths)


def interpolate(series: np.ndarray) -> np.ndarray:
    """Missing values of a series `[C, S]` on a line between their neighbours; flat at the ends; 0 if none is known."""
    finite = np.isfinite(series)
    if finite.all():
        return series
    filled = np.where(finite, series, np.float32(0))
    steps = np.arange(series.shape[1])
    for c in range(len(series)):
        if finite[c].any() and not finite[c].all():
            filled[c] = np.interp(steps, steps[finite[c]], series[c, finite[c]])
    return filled
