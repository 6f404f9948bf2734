"""Folds of training rows that are in time order, or that come in groups; see `Task.folds`."""

from __future__ import annotations

import numpy as np


def blocks(n: int, n_folds: int, groups: np.ndarray | None) -> np.ndarray:
    """Contiguous blocks of about equal size; a group goes where its middle lies."""
    place = np.arange(n, dtype=float)
    if groups is not None:
        _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
        place = (np.bincount(inverse, place) / counts)[inverse]
    fold = ((place + 0.5) * n_folds / n).astype(np.int64)
    return np.unique(fold, return_inverse=True)[1].astype(np.int64)  # a large group can leave a block empty


def grouped(groups: np.ndarray, counts: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Whole groups to folds, the largest first, each to the fold that has least of what it brings."""
    _, inverse = np.unique(groups, return_inverse=True)
    n_groups = int(inverse.max()) + 1
    brings = np.zeros((n_groups, counts.shape[1]))
    np.add.at(brings, inverse, counts)
    total = brings.sum(axis=0)
    brings = brings / np.where(total > 0, total, 1)
    order = rng.permutation(n_groups)
    order = order[np.argsort(-brings.sum(axis=1)[order], kind="stable")]
    held = np.zeros((n_folds, counts.shape[1]))
    rows = np.zeros(n_folds)
    sizes = np.bincount(inverse)
    fold_of_group = np.empty(n_groups, np.int64)
    for g in order:
        # an empty fold costs 0 and has the fewest rows, so none stays empty while groups are left
        f = np.lexsort((rows, held @ brings[g]))[0]
        fold_of_group[g] = f
        held[f] += brings[g]
        rows[f] += sizes[g]
    return fold_of_group[inverse]
