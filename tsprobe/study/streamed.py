"""Cells of one encoder on one task without keeping features: two passes, and between them additive statistics.

The training panel is read once, for all layers, poolings and seeds; each block of features goes into ridge statistics
and is forgotten, but for the few samples that the diagnostics look at. The test panel is read once with the solved
weights, and what is kept of it are the predictions. `probes.statistics` says what the inner score is then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.capture import Block, Features, Reading, Watch, stream
from tsprobe.capture.extract import describe
from tsprobe.metrics import get_metric
from tsprobe.pooling import Slots
from tsprobe.probes.base import Target
from tsprobe.probes.statistics import RidgeStatistics, Solution
from tsprobe.study.cells import Cell

if TYPE_CHECKING:
    from jaxtyping import Int64

    from tsprobe.encoders.base import Encoder
    from tsprobe.tasks.base import Task
    from tsprobe.tasks.rows import Rows

KEPT_BYTES = 8 * 2**30  # of the features of a split, from which on statistics are taken where they are smaller
_WIDEST = 2**17  # dimensions of a layer: a panel that stays below the limit even so is not asked for its widths

Progress = Callable[[int], None]
Place = tuple[str, tuple[str, ...]]  # a pooling, and layers of equal width


@dataclass(frozen=True)
class Passes:
    """What is read, and the folds of the training rows by seed."""

    encoder: Encoder
    task: Task
    readings: dict[str, Reading]  # by split
    poolings: tuple[str, ...]  # as the study names them
    layers: tuple[str, ...] | None
    folds: dict[int, Int64[np.ndarray, " n"]]

    @cached_property
    def rows(self) -> dict[str, Rows]:
        return {split: self.task.rows(split) for split in self.readings}

    def blocks(
        self, split: str, progress: Progress | None = None, watch: Watch | None = None
    ) -> Generator[Block, None, None]:
        panel, reading = getattr(self.task, split), self.readings[split]
        with closing(stream(self.encoder, panel, reading, layers=self.layers, progress=progress, watch=watch)) as read:
            yield from read

    def stacks(self, block: Block, split: str) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor]]:
        """Row numbers `[b]` and features `[G, b, D]` of each pooling and layers of equal width."""
        read = self.readings[split].poolings
        features = Features(block.arrays, read, {})
        for pooling, name in zip(self.poolings, read, strict=True):
            for layers, x in features.stacks(name):
                rows, each = self.rows[split].of_series(block.index, x)
                yield (pooling, layers), torch.from_numpy(rows), torch.from_numpy(np.ascontiguousarray(each))


@dataclass(frozen=True)
class Streamed:
    """Cells by pooling and seed, features of the training rows that were sampled, and notes by split."""

    cells: dict[tuple[str, int], Cell]
    sample: Features  # of a dense task, as if each row were a series
    notes: dict[str, dict[str, Any]]


def read(passes: Passes, sampled: Int64[np.ndarray, " n"], progress: Progress, watch: Watch | None = None) -> Streamed:
    """Both passes; `progress` is called with the windows read, and `watch` sees the tokens of the training series.

    Raises what the stream and the ridge probe raise.
    """
    task = passes.task
    clock = _Clock()
    solutions, sample = _train(passes, sampled, progress, clock, watch)
    notes = {"train": describe(passes.encoder, task.train) | clock.reading()}
    predictions = _test(passes, solutions, progress, clock)
    notes["test"] = describe(passes.encoder, task.test) | clock.reading()
    for part in notes.values():
        part |= {"features": "statistics", "inner": next(iter(solutions.values())).criterion}

    rows: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for (place, seed), solution in solutions.items():
        rows.setdefault((place[0], seed), {}).update(_rows(passes, place[1], solution, predictions[place, seed]))
    layers = tuple(sample)
    cells = {}
    for key, by_layer in rows.items():
        columns = {name: np.array([by_layer[layer][name] for layer in layers]) for name in by_layer[layers[0]]}
        cells[key] = Cell(layers=layers, seconds=round(clock.probing / len(rows), 3), **columns)
    poolings = ("steps1",) if task.dense else passes.readings["train"].poolings
    return Streamed(cells, Features(sample, poolings, {}), notes)


class _Clock:
    """Time in probes, and time in all else since it was asked for last, that in forward passes by itself."""

    def __init__(self) -> None:
        self.probing, self._begin, self._probed = 0.0, time.perf_counter(), 0.0
        self.forward = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.probing += time.perf_counter() - self._entered

    def reading(self) -> dict[str, float]:
        now, probed = time.perf_counter(), self.probing
        seconds, forward = now - self._begin - (probed - self._probed), self.forward
        self._begin, self._probed, self.forward = now, probed, 0.0
        return {"seconds": round(seconds, 3), "forward_seconds": round(forward, 3)}


Solutions = dict[tuple[Place, int], Solution]


def _train(
    passes: Passes, sampled: np.ndarray, progress: Progress, clock: _Clock, watch: Watch | None
) -> tuple[Solutions, dict[str, np.ndarray]]:
    """Solutions by place and seed, and features `[n, P, D]` of the sampled rows by layer."""
    task = passes.task
    target = Target(task.kind, torch.from_numpy(passes.rows["train"].y), task.n_classes)
    twin = {
        seed: next(s for s, other in passes.folds.items() if np.array_equal(folds, other))
        for seed, folds in passes.folds.items()
    }  # seeds with the same folds share their statistics
    statistics: dict[tuple[Place, int], RidgeStatistics] = {}
    sample: dict[str, np.ndarray] = {}
    for block in passes.blocks("train", progress, watch):
        clock.forward += block.forward
        for layer, array in block.arrays.items():
            numbers, of_rows = block.index, array
            if task.dense:
                numbers, each = passes.rows["train"].of_series(block.index, array.reshape(1, len(array), -1))
                of_rows = each[0][:, None]
            here = np.isin(numbers, sampled)
            kept = sample.setdefault(layer, np.empty((len(sampled), *of_rows.shape[1:]), np.float32))
            kept[np.searchsorted(sampled, numbers[here])] = of_rows[here]
        with clock:
            for place, rows, x in passes.stacks(block, "train"):
                for seed in set(twin.values()):
                    if (place, seed) not in statistics:
                        folds, device = torch.from_numpy(passes.folds[seed]), passes.encoder.device
                        statistics[place, seed] = RidgeStatistics.of(
                            target, folds, groups=len(x), width=x.shape[2], device=device
                        )
                    statistics[place, seed].update(x, rows)
    with clock:
        metric = get_metric(task.metric)
        solved = {key: statistics.pop(key).solve(metric) for key in tuple(statistics)}
    places = dict.fromkeys(place for place, _ in solved)
    return {(place, seed): solved[place, twin[seed]] for place in places for seed in passes.folds}, sample


def _test(
    passes: Passes, solutions: Solutions, progress: Progress, clock: _Clock
) -> dict[tuple[Place, int], torch.Tensor]:
    """Predictions `[G, M, K]` of the test rows by place and seed."""
    found: dict[tuple[Place, int], torch.Tensor] = {}
    rows_of_all = len(passes.rows["test"].at)
    for block in passes.blocks("test", progress):
        clock.forward += block.forward
        with clock:
            for place, rows, x in passes.stacks(block, "test"):
                for seed in passes.folds:
                    solution = solutions[place, seed]
                    part = solution.predict(x.to(solution.weights.device)).float().cpu()
                    if (place, seed) not in found:
                        found[place, seed] = part.new_empty(len(part), rows_of_all, part.shape[2])
                    found[place, seed][:, rows] = part
    return found


def _rows(
    passes: Passes, layers: tuple[str, ...], solution: Solution, prediction: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """The columns of a cell, by layer."""
    chosen = solution.chosen.cpu()
    inner = solution.inner.cpu().gather(1, chosen[:, None])[:, 0]
    test = passes.rows["test"]
    series = torch.from_numpy(test.series) if passes.task.dense else None
    score = get_metric(passes.task.metric)(torch.from_numpy(test.y), prediction, series=series)
    return {
        layer: {
            "inner": float(inner[i]),
            "strength": solution.strengths[int(chosen[i])],
            "score": float(score[i]),
            "prediction": prediction[i].numpy(),
            "gradient_norm": float("nan"),
        }
        for i, layer in enumerate(layers)
    }


def pays(passes: Passes) -> bool:
    """Whether kept features of a split would exceed `KEPT_BYTES`, and statistics take less.

    The widths are those of the first block, which is read where N, layers and poolings alone do not settle it.
    """
    slots = Slots.parse(passes.readings["train"].poolings)
    longest = max(len(passes.task.train), len(passes.task.test))
    layers = len(passes.encoder.taps) if passes.layers is None else len(passes.layers)
    if 4 * longest * layers * len(slots.names) * max(1, slots.steps) * _WIDEST <= KEPT_BYTES:
        return False
    with closing(passes.blocks("train")) as blocks:
        block = next(blocks)
    kept = 4 * longest * sum(array[0].size for array in block.arrays.values())
    return kept > KEPT_BYTES and statistics_bytes(passes, block) < kept


def statistics_bytes(passes: Passes, block: Block) -> int:
    """What statistics of features of these widths take."""
    y = passes.rows["train"].y
    masks = 1 if y.ndim == 1 else np.unique(np.isnan(y), axis=1).shape[1]
    fits = masks * sum(int(folds.max()) + 1 for folds in passes.folds.values())
    return 8 * fits * sum(x.shape[0] * x.shape[2] ** 2 for _, _, x in passes.stacks(block, "train"))
