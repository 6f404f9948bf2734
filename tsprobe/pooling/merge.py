"""Merging the pooled windows of one long series as if its tokens had been pooled once."""

from __future__ import annotations

import numpy as np

from tsprobe.pooling.slots import Slots


def merge_windows(pooled: np.ndarray, weight: np.ndarray, owner: np.ndarray, slots: Slots) -> np.ndarray:
    """Merge windows `[W, P, D]` with weights `[W, P]` to one row an owner, `[N, P, D]`, in float64 on the way.

    `owner [W]` numbers the series (or channel) of each window from 0; windows of one owner stand in order of time.
    Means and segments merge by weight, standard deviations by the parallel variance formula (Chan, Golub and
    LeVeque 1983), extremes by extremes, first and last by the first and last window that has a real token; a class
    token is averaged over windows, a step is taken from the window that reads it best. An owner without any real token
    is all zeros.
    """
    n = int(owner.max()) + 1 if len(owner) else 0
    if len(owner) == n:  # one window each, the common case
        out = np.empty_like(pooled)
        out[owner] = pooled
        return out
    out = np.zeros((n, *pooled.shape[1:]), pooled.dtype)
    order = np.argsort(owner, kind="stable")
    for windows in np.split(order, np.cumsum(np.bincount(owner, minlength=n))[:-1]):
        out[owner[windows[0]]] = _merge(pooled[windows].astype(np.float64), weight[windows], slots)
    return out


def _merge(pooled: np.ndarray, weight: np.ndarray, slots: Slots) -> np.ndarray:
    out = np.zeros(pooled.shape[1:])
    if slots.steps:
        best = weight.argmax(0)
        return np.where(weight.max(0)[:, None] > 0, pooled[best, np.arange(len(best))], 0)
    for p, kind in enumerate(slots.kinds):
        w, v = weight[:, p], pooled[:, p]  # [W], [W, D]
        real = np.flatnonzero(w > 0)
        if not len(real):
            continue
        if kind in ("max", "min"):
            out[p] = v[real].max(0) if kind == "max" else v[real].min(0)
        elif kind in ("first", "last"):
            out[p] = v[real[0 if kind == "first" else -1]]
        elif kind == "std":
            means = pooled[:, slots.kinds.index("mean")]
            mean = np.average(means, axis=0, weights=w)
            out[p] = np.sqrt(np.average(v**2 + (means - mean) ** 2, axis=0, weights=w))
        else:
            out[p] = np.average(v, axis=0, weights=w)
    return out
