"""The label-free measures of a pair's layers: what is looked at, and in which pass."""

from __future__ import annotations

import json
import math
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.capture import Reading, extract, stream
from tsprobe.capture.windows import cut, interpolate, load
from tsprobe.data.panel import as_panel
from tsprobe.diagnostics import TokenWatch, Value, of_kind
from tsprobe.diagnostics.augment import declared, view
from tsprobe.diagnostics.inputs import input_statistics
from tsprobe.diagnostics.pooled import INPUTS, Measured, drawn_pairs, measure_pooled
from tsprobe.diagnostics.views import measure_views
from tsprobe.errors import DAMAGE, warn_damaged
from tsprobe.files import read_json, replace_text

if TYPE_CHECKING:
    from jaxtyping import Int64

    from tsprobe.capture import Features
    from tsprobe.data.panel import Panel
    from tsprobe.encoders.base import Encoder
    from tsprobe.study.pair import Pair
    from tsprobe.study.spec import Diagnostics

DIAGNOSED = 512  # training samples whose pooled features are looked at, evenly spaced
RUN = 4  # series that are looked at together: they are read in one batch, and most of the cost is that of a batch

Values = dict[str, dict[str, Value]]  # by layer and measure


def sampled(rows: int) -> np.ndarray:
    """Of so many training rows, those that the measures of pooled features look at."""
    return np.unique(np.linspace(0, rows - 1, DIAGNOSED).round().astype(int))


def watched_series(lengths: Int64[np.ndarray, " N"], spec: Diagnostics) -> list[int]:
    """Of N series, those whose tokens are looked at: runs of `RUN` in the order of reading, which is that of lengths.

    The runs are spread evenly, from a start that is drawn with the seed.
    """
    order = lengths.argsort(kind="stable")
    starts = np.arange(0, len(order), RUN)
    wanted = min(len(starts), math.ceil(spec.tokens / RUN))
    offset = np.random.default_rng(spec.seed).random()
    drawn = starts[((np.arange(wanted) + offset) * len(starts) / wanted).astype(int)]
    return sorted(int(i) for start in drawn for i in order[start : start + RUN])


def token_watch(encoder: Encoder, panel: Panel, spec: Diagnostics) -> TokenWatch | None:
    """None where nothing is asked of tokens, or the encoder reads panels in its own way, which shows none."""
    names = of_kind(spec.names, "tokens", "attention")
    if not names or hasattr(encoder, "stream"):
        return None
    return TokenWatch(names, watched_series(panel.lengths, spec), getattr(encoder, "attention", {}))


def token_values(pair: Pair, kept: Path | None) -> Values:
    """What the pass over the training series has seen of tokens.

    Where features were read by an earlier process, or for another task, what that saw lies beside them; series that
    nobody has looked at are read by themselves.
    """
    names, watch = of_kind(pair.spec.diagnostics.names, "tokens", "attention"), pair.watch
    if not names:
        return {}
    if watch is None:
        note = "the encoder is read in its own way, which shows no tokens"
        layers = pair.layers or tuple(layer.name for layer in pair.encoder.layers)
        return {layer: dict.fromkeys(names, Value(math.nan, note)) for layer in layers}
    key = json.dumps([names, pair.spec.diagnostics.seed, pair.spec.diagnostics.tokens])
    if kept is not None and not watch.seen and (found := _load(kept, key)) is not None:
        return found
    if watch.left:
        done = ~np.isin(np.arange(len(pair.task.train)), watch.left)
        reading = Reading(("mean",), pair.spec.channels, pair.spec.missing, pair.spec.rows)
        blocks = stream(pair.encoder, pair.task.train, reading, layers=pair.layers, done=done, watch=watch)  # type: ignore[arg-type]
        with closing(blocks):
            deque(blocks, maxlen=0)
    values = watch.compute()
    if kept is not None:
        plain = {layer: {name: [v.value, v.note] for name, v in row.items()} for layer, row in values.items()}
        replace_text(kept, json.dumps({"key": key, "values": plain}))
    return values


def _load(path: Path, key: str) -> Values | None:
    try:
        kept = read_json(path)
        if kept.get("key") != key:
            return None
        return {
            layer: {name: Value(float(value), str(note)) for name, (value, note) in row.items()}
            for layer, row in kept["values"].items()
        }
    except FileNotFoundError:
        return None
    except (OSError, *DAMAGE) as error:
        warn_damaged(path, error)
        return None


def pooled_values(pair: Pair, sample: Features, rows: np.ndarray, taken: bool) -> dict[str, Measured]:
    """Measures of pooled features by pooling. `sample` are features of the training rows `rows`, if these are `taken`
    already, or else of all series."""
    train, spec = pair.task.rows("train"), pair.spec.diagnostics
    inputs = None
    if not pair.task.dense and any(name in INPUTS for name in spec.names):
        compared = train.series[rows][drawn_pairs(len(rows), spec.seed)]
        series = [interpolate(pair.task.train[i]) for i in compared]
        inputs = input_statistics(series, pictures=_sees_pictures(pair))
    found = {}
    for pooling in pair.poolings:
        name = sample.poolings[0] if pair.task.dense else pooling
        x = {}
        for layer in sample.layers:
            matrix = sample.matrix(layer, name)
            x[layer] = torch.from_numpy(matrix if taken else train.take(matrix[None])[0][rows])
        groups = train.series[rows]
        found[pooling] = measure_pooled(x, pair.final, spec.names, inputs=inputs, groups=groups, seed=spec.seed)
    return found


def _sees_pictures(pair: Pair) -> bool:
    """Whether the encoder takes a series for a picture: its tokens then stand on a grid."""
    encoder, panel = pair.encoder, pair.task.train
    if hasattr(encoder, "stream"):
        return False
    batch = load(panel, cut(panel.take([0]), encoder.facts, encoder.name)[:1], keep_missing=False)
    inputs = encoder.prepare(batch.to(encoder.device))  # type: ignore[union-attr]
    return inputs.tokens_of(pair.final).grid is not None


def view_values(pair: Pair) -> tuple[dict[str, Values], str]:
    """Measures of views by pooling, each view read in a pass of its own; and how views were made, in words."""
    spec, names = pair.spec.diagnostics, of_kind(pair.spec.diagnostics.names, "views")
    if not names:
        return {}, ""
    layers = pair.layers or tuple(layer.name for layer in pair.encoder.layers)
    if pair.task.dense:
        note = "samples are steps, not whole series"
        return {pair.poolings[0]: {layer: dict.fromkeys(names, Value(math.nan, note)) for layer in layers}}, ""
    pictures, train = _sees_pictures(pair), pair.task.train
    drawn = np.sort(np.random.default_rng(spec.seed).permutation(len(train))[: spec.samples])
    read = []
    for v in range(spec.n_views):
        series = [
            view(interpolate(train[i]), np.random.default_rng([spec.seed, v, i]), pictures=pictures) for i in drawn
        ]
        read.append(extract(pair.encoder, as_panel(series), pair.reading("train"), layers=pair.layers))  # type: ignore[arg-type]
    found = {}
    for pooling in pair.poolings:
        features = ([torch.from_numpy(one.matrix(layer, pooling)) for one in read] for layer in read[0].layers)
        found[pooling] = {
            layer: measure_views(torch.stack(x), names) for layer, x in zip(read[0].layers, features, strict=True)
        }
    return found, declared(pictures)


def diagnose(pair: Pair, sample: Features, rows: np.ndarray, *, taken: bool, kept: Path | None) -> dict[str, Any]:
    """`diagnostics`: lists of pooling, layer, measure, value and note; `cka`: by pooling, of all pairs of layers;
    `views`: how views were made."""
    pooled = pooled_values(pair, sample, rows, taken)
    of_views, made = view_values(pair)
    parts: list[tuple[str, Values]] = [(pooling, measured.values) for pooling, measured in pooled.items()]
    parts += [("tokens", token_values(pair, kept)), *of_views.items()]
    table = [
        [pooling, layer, name, value.value, value.note]
        for pooling, values in parts
        for layer, row in values.items()
        for name, value in row.items()
    ]
    cka = {pooling: m.cka.tolist() for pooling, m in pooled.items() if m.cka is not None}
    return {"diagnostics": table, "cka": cka, "views": made}
