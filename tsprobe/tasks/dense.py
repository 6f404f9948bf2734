"""Tasks that ask at steps: a label, or values, for single steps of every series.

`Dense` makes one out of the user's own labels. A probe sees the tokens of a layer at M steps of each series, so that a
long series costs no more than a short one, and folds and resamples keep the steps of a series together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, SpecError
from tsprobe.tasks.base import Kind, Task, series_and

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

STEPS = 32
EVERY = 4  # steps between those of a single stream that are asked about
METRICS: dict[str, str] = {"classification": "macro_f1", "regression": "r2", "multilabel": "auroc"}


def Dense(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    kind: Kind = "classification",
    steps: int | Literal["all"] = STEPS,
    causal: bool = False,
    labels: Sequence[str] | None = None,
    no_label: Any = None,
    metric: str | None = None,
    groups: Any = None,
    ordered: bool = False,
    source: str = "user",
    licence: str = "not declared",
) -> Task:
    """A task of a label (or of K values) at every step; `train` and `test` are pairs (series, labels of their steps).

    Series are anything that `as_panel` takes. Labels are an array `[N, S]`, or a list of `[S_i]` as long as the series
    are; for a regression or a multilabel task `[N, S, K]`, or a list of `[S_i, K]` (or of `[S_i]`, where K is 1). A
    step without a label has None, NaN or `no_label` (such as -1): it is never asked about, nor scored.

    Each series is asked at `steps` of its labelled steps, evenly spaced, or at all of them; the shorter ones at as many
    as they have. With `causal`, a step is read from the last token that covers no later step; the encoder may still
    look ahead by itself. The metric is macro F1, R² or AUROC by default; `labels` names the K values; `groups [N]`
    and `ordered` are as in `Classification`.

    Raises `DataError`: labels do not fit the steps of their series, there is none in training or in test, fewer than
    two classes in training, a test label that training does not have, values that are not numbers or infinite.
    `SpecError` for steps below 1, or a kind that there is not.
    """
    if kind not in METRICS:
        raise SpecError(f"task {name!r}: kind {kind!r}; there are {', '.join(METRICS)}")
    if steps != "all" and (isinstance(steps, str) or steps < 1):
        raise SpecError(f"task {name!r}: steps={steps!r}; give a number of steps a series, or 'all'")
    panels, raw = zip(*(_aligned(name, split, pair) for split, pair in (("train", train), ("test", test))), strict=True)
    if kind == "classification":
        names, truths = _classes(name, raw, no_label)
    else:
        names, truths = _values(name, kind, raw, no_label, labels)
    return ask(
        name, kind, metric or METRICS[kind], panels, truths, names, steps=steps, causal=causal,
        groups=None if groups is None else np.asarray(groups), ordered=ordered, source=source, licence=licence,
    )  # fmt: skip


def ask(
    name: str,
    kind: Kind,
    metric: str,
    panels: Sequence[Panel],
    truths: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    *,
    steps: int | Literal["all"] | tuple[int, int] = STEPS,
    **rest: Any,
) -> Task:
    """A task out of training and test series and what is true of their steps, which are chosen here.

    `truths` has for each split and series int64 `[S_i]` classes, -1 where there is none, or float64 `[S_i, K]`, NaN
    where there is none. `steps` may differ between the splits. `rest` are further fields of `Task`. Raises
    `DataError` where a split has no label.
    """
    at, y = [], []
    each = steps if isinstance(steps, tuple) else (steps, steps)
    for split, truth, asked in zip(("training", "test"), truths, each, strict=True):
        known = [t >= 0 if t.ndim == 1 else ~np.isnan(t).all(axis=1) for t in truth]
        most = max(int(k.sum()) for k in known)
        if not most:
            raise DataError(f"task {name!r}: no step of the {split} series has a label")
        where, real = zip(*(_spread(k, most if asked == "all" else min(asked, most)) for k in known), strict=True)
        missing = -1 if kind == "classification" else np.nan
        targets = np.stack([t[w] for t, w in zip(truth, where, strict=True)])
        targets[~np.stack(real)] = missing
        at.append(np.stack(where))
        y.append(targets)
    return Task(
        name, "dense", kind, metric, panels[0], panels[1], y[0], y[1], tuple(labels),
        steps_train=at[0], steps_test=at[1], **rest,
    )  # fmt: skip


def _spread(known: Bool[np.ndarray, " S"], m: int) -> tuple[Int64[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """m of the known steps, evenly spaced, and which of them count: where there are fewer, the last one is repeated."""
    steps = np.flatnonzero(known)
    if not len(steps):
        return np.zeros(m, np.int64), np.zeros(m, bool)
    count = min(m, len(steps))
    chosen = steps[((np.arange(count) + 0.5) * len(steps) / count).astype(np.int64)]
    return np.pad(chosen, (0, m - count), mode="edge").astype(np.int64), np.arange(m) < count


def _aligned(name: str, split: str, pair: Any) -> tuple[Panel, list[np.ndarray]]:
    """A panel and the labels of its series, each an array whose first axis is as long as the series."""
    panel, raw = series_and(name, pair, split, "labels of their steps")
    raw = raw.detach().cpu().numpy() if hasattr(raw, "detach") else raw
    if len(raw) != panel.n:
        raise DataError(
            f"task {name!r}: {panel.n} {split} series but labels of {len(raw)}; give one row of labels each"
        )
    labels = [np.asarray(row.detach().cpu() if hasattr(row, "detach") else row) for row in raw]
    for i, (row, length) in enumerate(zip(labels, panel.lengths.tolist(), strict=True)):
        if row.ndim not in (1, 2) or len(row) != length:
            raise DataError(
                f"task {name!r}: {split} series {i} has {length} steps but labels of shape {list(row.shape)}; give one "
                "label a step (None or NaN where there is none)"
            )
    return panel, labels


def _classes(
    name: str, raw: Sequence[list[np.ndarray]], no_label: Any
) -> tuple[tuple[str, ...], list[list[np.ndarray]]]:
    """The names of the classes in training, sorted, and their indices at each step."""
    import pandas as pd

    known = []
    for split, rows in zip(("training", "test"), raw, strict=True):
        flat = next((i for i, row in enumerate(rows) if row.ndim != 1), None)
        if flat is not None:
            raise DataError(
                f"task {name!r}: {split} series {flat} has labels {list(rows[flat].shape)}; classes are [S]"
            )
        masks = [~pd.isna(row) for row in rows]
        known.append([m if no_label is None else m & (row != no_label) for m, row in zip(masks, rows, strict=True)])
    found: list[set[Any]] = [
        set().union(*(row[mask].tolist() for row, mask in zip(rows, masks, strict=True)))
        for rows, masks in zip(raw, known, strict=True)
    ]
    try:
        values = sorted(found[0])
    except TypeError:
        values = sorted(found[0], key=lambda v: (type(v).__name__, str(v)))
    if len(values) < 2:
        raise DataError(f"task {name!r}: {len(values)} classes at the training steps; a classification needs two")
    unseen = sorted(map(str, found[1] - found[0]))
    if unseen:
        raise DataError(
            f"task {name!r}: test labels {', '.join(unseen[:5])} do not occur in training; give those steps no label"
        )
    index = {value: i for i, value in enumerate(values)}
    truths = [
        [
            np.array([index[v] if k else -1 for v, k in zip(row.tolist(), mask.tolist(), strict=True)], np.int64)
            for row, mask in zip(rows, masks, strict=True)
        ]
        for rows, masks in zip(raw, known, strict=True)
    ]
    return tuple(map(str, values)), truths


def _values(
    name: str, kind: str, raw: Sequence[list[np.ndarray]], no_label: Any, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], list[list[np.ndarray]]]:
    """Names of the K values, and `[S, K]` of each series."""
    truths = []
    for split, rows in zip(("training", "test"), raw, strict=True):
        try:
            values = [row.astype(np.float64) for row in rows]
        except (TypeError, ValueError) as error:
            raise DataError(f"task {name!r}: {split} labels are not numbers ({error})") from error
        values = [row[:, None] if row.ndim == 1 else row for row in values]
        if no_label is not None:
            values = [np.where(row == no_label, np.nan, row) for row in values]
        if any(np.isinf(row).any() for row in values):
            raise DataError(f"task {name!r}: infinite {split} label; give finite values, NaN where there is none")
        wrong = [row[~np.isnan(row) & (row != 0) & (row != 1)] for row in values] if kind == "multilabel" else []
        if any(len(w) for w in wrong):
            raise DataError(f"task {name!r}: {split} labels of a multilabel task are 0 or 1 (NaN where not known)")
        truths.append(values)
    widths = sorted({row.shape[1] for values in truths for row in values})
    if len(widths) > 1 or not widths[0]:
        raise DataError(f"task {name!r}: steps have {' or '.join(map(str, widths))} values; give each the same number")
    names = tuple(f"target {k}" for k in range(widths[0])) if labels is None else tuple(map(str, labels))
    if len(names) != widths[0]:
        raise DataError(f"task {name!r}: {len(names)} label names for {widths[0]} values a step; give one each")
    empty = [n for k, n in enumerate(names) if all(np.isnan(row[:, k]).all() for row in truths[0])]
    if empty:
        raise DataError(f"task {name!r}: no training step has the value {empty[0]!r}; drop it")
    return names, truths
