"""From pooled windows, as batches bring them, to series: each as soon as its last window is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.capture.windows import Window
from tsprobe.pooling import Slots, merge_windows

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

    from tsprobe.capture.arrivals import Pooled

Piece = dict[str, tuple[np.ndarray, np.ndarray]]  # one window: of each layer, slots [rows, P, D], weights [rows, P]


class Joiner:
    """Holds windows until their series is whole, then merges them and joins the channels."""

    def __init__(self, windows: Sequence[Window], slots: Slots, channels: str) -> None:
        self._windows, self._slots, self._channels = windows, slots, channels
        self._left = np.bincount(np.fromiter((w.series for w in windows), np.int64, len(windows)))
        self._held: dict[int, list[tuple[int, Piece]]] = {}

    def add(self, batch: Sequence[int], pooled: Pooled) -> tuple[Int64[np.ndarray, " b"], dict[str, np.ndarray]]:
        """The series that these windows complete, and of each layer their features `[b, P, D]`.

        The arrays of `pooled` begin with one entry for each window of the batch; nothing of them is kept but copies.
        """
        series = [self._windows[i].series for i in batch]
        for s in series:
            self._left[s] -= 1
        if len(set(series)) == len(series) and not any(self._left[s] or s in self._held for s in series):
            owner = np.arange(len(series))  # one window each, the common case: nothing to hold or to put together
            return np.array(series), {name: self._join(*pair, owner) for name, pair in pooled.items()}
        for place, (i, s) in enumerate(zip(batch, series, strict=True)):
            piece = {name: (value[place].copy(), weight[place].copy()) for name, (value, weight) in pooled.items()}
            self._held.setdefault(s, []).append((i, piece))
        whole = [s for s in dict.fromkeys(series) if not self._left[s]]
        held = [sorted(self._held.pop(s), key=lambda entry: entry[0]) for s in whole]  # windows in order of time
        owner = np.repeat(np.arange(len(whole)), [len(entries) for entries in held])
        pieces = [piece for entries in held for _, piece in entries]
        arrays = {}
        for name in pooled if whole else ():
            value, weight = (np.stack([piece[name][k] for piece in pieces]) for k in (0, 1))
            arrays[name] = self._join(value, weight, owner)
        return np.array(whole, dtype=np.int64), arrays

    def _join(self, value: np.ndarray, weight: np.ndarray, owner: np.ndarray) -> Float32[np.ndarray, "b P D"]:
        """Windows `[W, rows, P, D]` to series: windows of a channel are merged, then channels joined."""
        merged = [merge_windows(value[:, c], weight[:, c], owner, self._slots) for c in range(value.shape[1])]
        joined = np.concatenate(merged, axis=-1) if self._channels == "concat" else np.mean(merged, axis=0)
        return np.ascontiguousarray(joined, dtype=np.float32)
