"""Pooled features of every layer, and the file that keeps them."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.errors import StorageError
from tsprobe.files import replace_file
from tsprobe.pooling import Slots


@dataclass(frozen=True)
class Features:
    """`arrays[layer]` is `[N, P, D]` in float32, P slots as `Slots` lays them out; D may differ between layers.

    With channels read one by one, D is the channels' widths side by side. `notes` counts what was done on the way
    (missing values, windows, seconds).
    """

    arrays: dict[str, np.ndarray]
    poolings: tuple[str, ...]
    notes: dict[str, Any]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def matrix(self, layer: str, pooling: str) -> np.ndarray:
        """`[N, D]` for one pooling (`[N, K D]` for K segments)."""
        place = Slots.parse(self.poolings).places[pooling]
        array = self.arrays[layer][:, place]
        return array.reshape(len(array), -1)

    def stacks(self, pooling: str) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Layers of equal width together: pairs of layer names and `[G, N, D]`, so that they share one solve."""
        by_width: dict[int, list[str]] = {}
        for layer in self.arrays:
            by_width.setdefault(self.matrix(layer, pooling).shape[1], []).append(layer)
        return [(tuple(g), np.stack([self.matrix(layer, pooling) for layer in g])) for g in by_width.values()]

    def save(self, path: Path) -> None:
        """Write one file, wholly or not at all."""
        meta = json.dumps({"layers": self.layers, "poolings": self.poolings, "notes": self.notes})
        arrays: dict[str, Any] = {f"layer{i}": a for i, a in enumerate(self.arrays.values())}
        replace_file(path, lambda handle: np.savez(handle, meta=np.array(meta), **arrays))

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read a saved file. Raises `StorageError` for one that is damaged."""
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as data:
                meta = json.loads(str(data["meta"]))
                arrays = {layer: data[f"layer{i}"] for i, layer in enumerate(meta["layers"])}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StorageError(f"{path} is damaged ({error}); remove it and run again") from error
        return cls(arrays, tuple(meta["poolings"]), meta["notes"])
