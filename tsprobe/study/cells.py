"""Cells of a study: all layers under one pooling, probe and seed. A cell is on disk wholly or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tsprobe.errors import warn_damaged
from tsprobe.files import parse_json, read_arrays, replace_file, safe_name


@dataclass(frozen=True)
class CellKey:
    """Everything that the content of a cell depends on; a cell with another key is another cell."""

    encoder: str  # fingerprints, not names
    task: str
    layers: tuple[str, ...] | None
    poolings: tuple[str, ...]  # pooled in the same pass
    channels: str
    pooling: str
    probe: str
    seed: int
    folds: int
    features: str  # "kept" or "statistics"

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """Scores and test predictions of L layers.

    `inner [L]` are scores of out-of-fold predictions on the training set, at the best regularisation `strength [L]`;
    `score [L]` are test scores of `prediction [L, N, K]`; `gradient_norm [L]` is NaN for probes with a closed form.
    """

    layers: tuple[str, ...]
    inner: np.ndarray
    strength: np.ndarray
    score: np.ndarray
    prediction: np.ndarray
    gradient_norm: np.ndarray
    seconds: float

    def save(self, path: Path, key: CellKey) -> None:
        meta = json.dumps({"key": key.digest(), "layers": self.layers, "seconds": self.seconds})
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        replace_file(path, lambda handle: np.savez(handle, meta=np.array(meta), **arrays))

    @classmethod
    def load(cls, path: Path, key: CellKey) -> Cell | None:
        """The cell, or None where there is none, it answers another question, or it is damaged, which is told."""
        try:
            data = read_arrays(path)
            meta = parse_json(str(data["meta"]))
            if meta["key"] != key.digest():
                return None
            arrays = {name: data[name] for name in _ARRAYS}
            found = cls(layers=tuple(meta["layers"]), seconds=float(meta["seconds"]), **arrays)
            found._check()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            warn_damaged(path, error)
            return None
        return found

    def _check(self) -> None:
        """Raise `ValueError` unless each array has numbers for each layer, and as many axes as it must have."""
        if not all(isinstance(layer, str) for layer in self.layers):
            raise ValueError("layers are names")
        for name in _ARRAYS:
            array, axes = getattr(self, name), 3 if name == "prediction" else 1
            if array.dtype.kind not in "fiu" or array.ndim != axes or len(array) != len(self.layers):
                raise ValueError(f"{name} is {array.dtype} of shape {list(array.shape)} for {len(self.layers)} layers")


_ARRAYS = ("inner", "strength", "score", "prediction", "gradient_norm")


def cell_path(folder: Path, encoder: str, task: str, pooling: str, probe: str, seed: int) -> Path:
    return folder / "cells" / safe_name(encoder) / safe_name(task) / f"{pooling}-{safe_name(probe)}-{seed}.npz"
