"""Pooled features of a whole panel, in memory or kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.capture.features import Features
from tsprobe.capture.reading import Reading, Watch, stream
from tsprobe.capture.store import FeatureStore
from tsprobe.capture.windows import cut

if TYPE_CHECKING:
    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder


def extract(
    encoder: Encoder,
    panel: Panel,
    reading: Reading | None = None,
    *,
    layers: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
    store: Path | None = None,
    watch: Watch | None = None,
) -> Features:
    """Pooled features `[N, P, D]` of each layer, from one pass over the panel; see `stream` for what is raised.

    Missing values are masked where the encoder can and interpolated otherwise, and counted in the notes; with
    `missing="error"` they are refused. `progress` is called with the number of windows read. `watch` sees the tokens of
    the series that are read here.

    With a `store`, a folder that belongs to this encoder, panel and reading, features are written there as they come
    and memory does not grow with N; series that an earlier, killed process has left there are not read again, though
    their windows count as progress. Raises `StorageError` where the disk refuses; what was written before stays.
    """
    reading = reading or Reading()
    if store is not None:
        return _extract_to(store, encoder, panel, reading, layers, progress, watch)
    begin = time.perf_counter()
    arrays: dict[str, np.ndarray] = {}
    forward = 0.0
    with closing(stream(encoder, panel, reading, layers=layers, progress=progress, watch=watch)) as blocks:
        for block in blocks:
            for name, array in block.arrays.items():
                if name not in arrays:
                    arrays[name] = np.empty((len(panel), *array.shape[1:]), np.float32)
                arrays[name][block.index] = array
            forward += block.forward
    seconds = {"seconds": round(time.perf_counter() - begin, 3), "forward_seconds": round(forward, 3)}
    return Features(arrays, tuple(reading.poolings), describe(encoder, panel) | seconds)


def _extract_to(
    path: Path,
    encoder: Encoder,
    panel: Panel,
    reading: Reading,
    layers: Sequence[str] | None,
    progress: Callable[[int], None] | None,
    watch: Watch | None,
) -> Features:
    notes = describe(encoder, panel)  # raises for series that the encoder cannot take, before there is a folder
    names = tuple(layers) if layers is not None else tuple(encoder.taps)
    with FeatureStore(path, len(panel), names, reading.poolings) as kept:
        done = kept.done
        if progress is not None and done.any():
            progress(sum(bool(done[w.series]) for w in cut(panel, encoder.facts, encoder.name)))
        blocks = stream(encoder, panel, reading, layers=names, done=done, progress=progress, watch=watch)
        with closing(blocks):
            for block in blocks:
                kept.add(block)
        kept.finish(notes | {"seconds": round(kept.seconds, 3), "forward_seconds": round(kept.forward, 3)})
    return Features.load(path, check=False)


def describe(encoder: Encoder, panel: Panel) -> dict[str, Any]:
    """Notes on what reading this panel means: series, windows, and what is done about missing values."""
    handling = "masked" if encoder.facts.masks_missing else "interpolated"
    return {
        "series": len(panel),
        "missing_values": panel.missing,
        "missing_handling": handling if panel.missing else "none",
        "windows": len(cut(panel, encoder.facts, encoder.name)),
    }
