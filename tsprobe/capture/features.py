"""Pooled features of every layer, in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.capture.reading import Block
from tsprobe.capture.store import FeatureStore, StoredArrays
from tsprobe.pooling import Slots

IN_MEMORY = 64 << 20  # bytes: features that are smaller are read whole, others a layer at a time when they are needed


@dataclass(frozen=True)
class Features:
    """`arrays[layer]` is `[N, P, D]` in float32, P slots as `Slots` lays them out; D may differ between layers.

    With channels read one by one, D is the channels' widths side by side. `notes` counts what was done on the way
    (missing values, windows, seconds). Where the arrays are `StoredArrays`, each is read from the disk when it is
    asked for, and `StorageError` is raised for damage.
    """

    arrays: Mapping[str, np.ndarray]
    poolings: tuple[str, ...]
    notes: dict[str, Any]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def matrix(self, layer: str, pooling: str) -> np.ndarray:
        """`[N, D]` for one pooling (`[N, K D]` for K segments)."""
        place = Slots.parse(self.poolings).places[pooling]
        if isinstance(self.arrays, StoredArrays):
            array = self.arrays.part(layer, place)
        else:
            array = self.arrays[layer][:, place]
        return array.reshape(len(array), -1)

    def stacks(self, pooling: str) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Layers of equal width together: pairs of layer names and `[G, N, D]`, so that they share one solve.

        Other poolings are in memory for one layer at most.
        """
        by_width: dict[int, list[str]] = {}
        for layer in self.arrays:
            by_width.setdefault(self._width(layer), []).append(layer)
        stacks = []
        for layers in by_width.values():
            first = self.matrix(layers[0], pooling)
            stack = np.empty((len(layers), *first.shape), first.dtype)
            stack[0] = first
            for i, layer in enumerate(layers[1:], 1):
                stack[i] = self.matrix(layer, pooling)
            stacks.append((tuple(layers), stack))
        return stacks

    def _width(self, layer: str) -> int:
        return self.arrays.width(layer) if isinstance(self.arrays, StoredArrays) else self.arrays[layer].shape[-1]

    def save(self, path: Path) -> None:
        """Write a store (a folder) in place of one that lies there; it counts when it is whole."""
        n = len(self.arrays[self.layers[0]])
        with FeatureStore(path, n, self.layers, self.poolings, fresh=True) as store:
            store.add(Block(np.arange(n), dict(self.arrays)))
            store.finish(self.notes)

    @classmethod
    def load(cls, path: Path, *, check: bool = True) -> Features:
        """Read a store. Raises `DamagedError` for one that is damaged or not finished.

        Large ones are read when they are needed; `check` reads them once for damage.
        """
        stored = StoredArrays(path)
        arrays: Mapping[str, np.ndarray] = stored
        if stored.nbytes <= IN_MEMORY:
            arrays = stored.load()
        elif check:
            stored.check()
        return cls(arrays, tuple(stored.attrs["poolings"]), stored.attrs["notes"])
