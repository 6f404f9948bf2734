"""Which layer a handful of labels would choose: training series of the study, their features as it kept them.

The probe of the study chooses by its inner folds, as it does with all labels, only that it is given few series (and, of
a dense task, their steps). Nothing here reads a test target or a test feature's score: the readout is asked to predict
the drawn series themselves. Tasks that a language model answers are left out, since that is trained in steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprobe.atlas.layers import PROBES, READOUT_POOLING
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, EncoderError, SpecError
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe, probes_for
from tsprobe.probes.base import Target
from tsprobe.study.entries import plan_entries
from tsprobe.study.pair import Pair
from tsprobe.study.progress import Stage
from tsprobe.study.result import write_table
from tsprobe.study.spec import StudySpec
from tsprobe.tasks import load_task

FILE = "labels.csv"
COLUMNS = ("encoder", "task", "labels", "draw", "layer")


def few_label_layers(
    spec: StudySpec, folder: Path, labels: tuple[int, ...], draws: int, seed: int, stage: Stage
) -> None:
    """Write `labels.csv`: the layer that each draw of so many labelled series chooses, of each studied encoder."""
    rows: list[dict[str, Any]] = []
    tasks = {name: load_task(name) for name in spec.tasks} if labels else {}
    entries = [entry for entry in plan_entries(spec, {}) if entry.role == "studied"] if labels else []
    device = "cpu"  # features come from the disk
    with stage("layers by few labels", len(entries) * len(tasks)) as advance:
        for entry in entries:
            encoder = entry.load(device)
            assert isinstance(encoder, Encoder)
            fingerprint = encoder.fingerprint()
            for task in tasks.values():
                pair = Pair(encoder, fingerprint, task, spec, folder, stage)
                rows += [
                    {"encoder": entry.name, "task": task.name} | row for row in _choices(pair, labels, draws, seed)
                ]
                advance(1)
    write_table(folder / FILE, rows, COLUMNS)


def _choices(pair: Pair, labels: tuple[int, ...], draws: int, seed: int) -> Iterator[dict[str, Any]]:
    probe = next((p for p in PROBES if p in pair.spec.probes and pair.task.kind in probes_for(p)), None)
    if probe is None:
        return
    try:
        order = drawn_order(pair, draws, seed)
        stacks = _stacks(pair)
    except (DataError, EncoderError):
        return  # left out of the study too, with its reason
    for n in labels:
        for draw, series in enumerate(order):
            yield {"labels": n, "draw": draw, "layer": _chosen(pair, probe, stacks, series[:n])}


def drawn_order(pair: Pair, draws: int, seed: int) -> list[np.ndarray]:
    """For each draw the training series with a target, in a random order that takes one of each fold in turn.

    So the first n are spread over the folds, and the series of fewer labels are among those of more.
    """
    rows, fold = pair.task.rows("train"), pair.task.folds(pair.spec.folds, 0)
    usable = np.unique(rows.series[rows.known])
    orders = []
    for draw in range(draws):
        mixed = np.random.default_rng([seed, draw]).permutation(usable)
        turn = np.zeros(len(mixed), int)
        for f in np.unique(fold):
            turn[fold[mixed] == f] = np.arange((fold[mixed] == f).sum())
        orders.append(mixed[np.argsort(turn, kind="stable")])
    return orders


def _stacks(pair: Pair) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Training features of the trunk's layers and of the final one, layers of equal width together, `[G, rows, D]`."""
    assert isinstance(pair.encoder, Encoder)
    trunk = {layer.name for layer in pair.encoder.layers if layer.depth is not None} | {pair.final}
    features, rows = pair.features[0], pair.task.rows("train")
    pooling = features.poolings[0] if pair.task.dense else _pooling(pair)
    found = []
    for layers, x in features.stacks(pooling):
        kept = [i for i, layer in enumerate(layers) if layer in trunk]
        if kept:
            found.append((tuple(layers[i] for i in kept), rows.take(x[kept])))
    return found


def _pooling(pair: Pair) -> str:
    return READOUT_POOLING if READOUT_POOLING in pair.poolings else pair.poolings[0]


def _chosen(pair: Pair, probe: str, stacks: list[tuple[tuple[str, ...], np.ndarray]], series: np.ndarray) -> str:
    """The layer with the best score on inner folds; the final one where none is better, or nothing can be said."""
    task, rows = pair.task, pair.task.rows("train")
    at = np.flatnonzero(np.isin(rows.series, series))
    fold = np.unique(task.folds(pair.spec.folds, 0)[rows.series[at]], return_inverse=True)[1]
    if len(np.unique(fold)) < 2:
        return pair.final
    units = None
    if task.units is not None:
        units = torch.from_numpy(task.units[0][at]), torch.from_numpy(task.units[0][at[:1]])
    owner = torch.from_numpy(rows.series[at]) if task.dense else None
    target = Target(task.kind, torch.from_numpy(rows.y[at]), task.n_classes, units, owner)
    inner: dict[str, float] = {}
    for layers, x in stacks:
        few = torch.from_numpy(np.ascontiguousarray(x[:, at]))
        try:
            readout = get_probe(probe)(few, target, few[:, :1], torch.from_numpy(fold), get_metric(task.metric))
        except (DataError, SpecError):
            return pair.final  # such a target cannot be learnt from so few
        best = readout.inner.gather(1, readout.chosen[:, None])[:, 0]
        inner |= dict(zip(layers, best.tolist(), strict=True))
    known = {layer: value for layer, value in inner.items() if value == value}
    if not known or known.get(pair.final, -np.inf) >= max(known.values()):
        return pair.final
    return max(known, key=lambda layer: known[layer])
