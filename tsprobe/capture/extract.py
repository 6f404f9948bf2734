"""One forward pass over a panel: every layer, every pooling."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tsprobe.capture.features import Features
from tsprobe.capture.hooks import read_layers
from tsprobe.capture.windows import Window, batches, cut, load
from tsprobe.errors import DataError, EncoderError, UnknownNameError
from tsprobe.pooling import Slots, merge_windows, pool

if TYPE_CHECKING:
    from torch import Tensor

    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder

ROWS = 16  # rows of a batch: larger ones leave the processor's cache and gain little on a CPU


@dataclass(frozen=True)
class Reading:
    """How a panel is read: which poolings, how channels join, what is done about missing values."""

    poolings: tuple[str, ...] = ("mean",)
    channels: Literal["concat", "mean"] = "concat"
    missing: Literal["handle", "error"] = "handle"
    rows: int = ROWS


def extract(
    encoder: Encoder,
    panel: Panel,
    reading: Reading | None = None,
    *,
    layers: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Pooled features `[N, P, D]` of each layer, from one pass over the panel.

    Series longer than the context are read in windows and merged as if pooled once. Missing values are masked where
    the encoder can and interpolated otherwise, and counted in the notes; with `missing="error"` they are refused.
    `progress` is called with the number of windows done. Raises `DataError` for series that the encoder cannot take
    and `EncoderError` for a layer that gives a value that is not finite.
    """
    reading = reading or Reading()
    names = tuple(layers) if layers is not None else tuple(encoder.taps)
    for name in names:
        if name not in encoder.taps:
            raise UnknownNameError(f"layer of {encoder.name}", name, encoder.taps)
    slots = Slots.parse(reading.poolings)
    notes = _notes(encoder, panel, reading)
    windows = cut(panel, encoder.facts, encoder.name)
    notes["windows"] = len(windows)
    begin = time.perf_counter()
    kept: dict[str, list[Any]] = {name: [None] * len(windows) for name in names}
    for batch in batches(windows, max(1, reading.rows // panel.channels), encoder.facts.pads):
        pooled = _read_batch(encoder, panel, [windows[i] for i in batch], names, slots)
        for name in names:
            for j, i in enumerate(batch):
                kept[name][i] = pooled[name][j]
        if progress is not None:
            progress(len(batch))
    owner = np.array([w.series for w in windows])
    arrays = {}
    for name in names:
        arrays[name] = _join(np.stack(kept.pop(name)), owner, slots, reading.channels)
        _check_finite(arrays[name], encoder.name, name)
    notes["seconds"] = round(time.perf_counter() - begin, 3)
    return Features(arrays, slots.names, notes)


def _read_batch(
    encoder: Encoder, panel: Panel, windows: list[Window], names: Sequence[str], slots: Slots
) -> dict[str, np.ndarray]:
    """Pooled slots of each layer, `[B, rows, P, D + 1]`: behind the D dimensions stands the weight of the slot."""
    batch = load(panel, windows, keep_missing=encoder.facts.masks_missing).to(encoder.device)
    pooled: dict[str, Tensor] = {}
    with torch.inference_mode():
        inputs = encoder.prepare(batch)
        spans = _spans(panel, windows, slots.segments, inputs.rows).to(encoder.device) if slots.segments else None

        def visit(name: str, x: Tensor) -> None:
            tokens = inputs.tokens_of(name)
            if x.shape[:2] != tokens.mask.shape:
                raise EncoderError(
                    f"{encoder.name}: layer {name!r} has {x.shape[0]} rows of {x.shape[1]} tokens, its token map "
                    f"{tokens.mask.shape[0]} of {tokens.mask.shape[1]}"
                )
            value, weight = pool(x, tokens, slots, spans)
            pooled[name] = torch.cat([value, weight[..., None]], -1)

        read_layers(encoder, inputs, names, visit)
    shape = (len(windows), inputs.rows)
    return {name: value.cpu().numpy().reshape(*shape, *value.shape[1:]) for name, value in pooled.items()}


def _spans(panel: Panel, windows: list[Window], segments: int, rows: int) -> Tensor:
    """Borders of the K equal spans of each whole series, in steps of its window: `[R, K + 1]`."""
    lengths = torch.tensor([float(panel.lengths[w.series]) for w in windows])
    starts = torch.tensor([float(w.start) for w in windows])
    borders = lengths[:, None] * torch.linspace(0, 1, segments + 1) - starts[:, None]
    return borders.repeat_interleave(rows, 0)


def _join(pooled: np.ndarray, owner: np.ndarray, slots: Slots, channels: str) -> np.ndarray:
    """Windows `[W, rows, P, D + 1]` to series `[N, P, D]`: windows of a channel are merged, then channels joined."""
    value, weight = pooled[..., :-1], pooled[..., -1]
    merged = [merge_windows(value[:, c], weight[:, c], owner, slots) for c in range(value.shape[1])]
    joined = np.concatenate(merged, axis=-1) if channels == "concat" else np.mean(merged, axis=0)
    return np.ascontiguousarray(joined, dtype=np.float32)


def _notes(encoder: Encoder, panel: Panel, reading: Reading) -> dict[str, Any]:
    missing = panel.missing
    if missing and reading.missing == "error":
        raise DataError(f"{missing} values are missing or not finite, and missing values are set to be an error")
    handling = "masked" if encoder.facts.masks_missing else "interpolated"
    return {"series": len(panel), "missing_values": missing, "missing_handling": handling if missing else "none"}


def _check_finite(array: np.ndarray, encoder: str, layer: str) -> None:
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))
        raise EncoderError(
            f"{encoder}: layer {layer!r} gives values that are not finite for {len(bad)} of {len(array)} series "
            f"(first: series {bad[0]})"
        )
