"""Cells of one encoder on one task without keeping features: two passes, and between them additive statistics.

The training panel is read once, for all layers, poolings and seeds; each block of features goes into ridge statistics
and is forgotten, but for the few samples that the diagnostics look at. The test panel is read once with the solved
weights, and what is kept of it are the predictions. `probes.statistics` says what the inner score is then. Either pass
may be made over parts of a panel, by several processes: what they gather adds up (`Gathered.merge`, `conclude`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
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
    from jaxtyping import Bool, Int64

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

    @cached_property
    def target(self) -> Target:
        return Target(self.task.kind, torch.from_numpy(self.rows["train"].y), self.task.n_classes)

    @cached_property
    def twins(self) -> dict[int, int]:
        """Of each seed the first with the same folds, whose statistics it shares."""
        return {
            seed: next(s for s, other in self.folds.items() if np.array_equal(folds, other))
            for seed, folds in self.folds.items()
        }

    def blocks(
        self,
        split: str,
        progress: Progress | None = None,
        watch: Watch | None = None,
        done: Bool[np.ndarray, " N"] | None = None,
    ) -> Generator[Block, None, None]:
        panel, reading = getattr(self.task, split), self.readings[split]
        blocks = stream(self.encoder, panel, reading, layers=self.layers, done=done, progress=progress, watch=watch)
        with closing(blocks):
            yield from blocks

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


@dataclass(frozen=True)
class Seconds:
    """Spent on a pass, by one process or several: in probes, and in all else, of that in the encoder's own passes."""

    reading: float = 0.0
    forward: float = 0.0
    probing: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def notes(self) -> dict[str, float]:
        return {"seconds": round(self.reading, 3), "forward_seconds": round(self.forward, 3)}


Key = tuple[Place, int]  # a place and a seed
Solutions = dict[Key, Solution]


@dataclass
class Gathered:
    """What the training series leave: statistics, and features `[n, P, D]` of the sampled rows that are `taken [n]`.

    Seeds with the same folds share the statistics of the first.
    """

    statistics: dict[Key, RidgeStatistics]
    sample: dict[str, np.ndarray]
    taken: np.ndarray
    seconds: Seconds = Seconds()

    def merge(self, other: Gathered) -> None:
        """Take in what was gathered from other series. Raises DataError where a series is in both."""
        for key, statistics in self.statistics.items():
            statistics.merge(other.statistics[key])
        for layer, kept in self.sample.items():
            kept[other.taken] = other.sample[layer][other.taken]
        self.taken |= other.taken
        self.seconds += other.seconds

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, for `from_arrays`."""
        keys = json.dumps([[*place, seed] for place, seed in self.statistics])
        found = {"keys": np.array(keys), "taken": self.taken, "seconds": np.array(astuple(self.seconds))}
        found |= {f"sample/{layer}": array for layer, array in self.sample.items()}
        for i, statistics in enumerate(self.statistics.values()):
            found |= {f"{i}/{name}": array for name, array in statistics.arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, passes: Passes, arrays: Mapping[str, np.ndarray]) -> Gathered:
        """Raises KeyError, ValueError, RuntimeError or DataError for arrays that are of other passes."""
        keys = [((pooling, tuple(layers)), seed) for pooling, layers, seed in json.loads(str(arrays["keys"]))]
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            group, _, rest = name.partition("/")
            parts.setdefault(group, {})[rest] = array
        statistics = {
            (place, seed): RidgeStatistics.from_arrays(
                parts[str(i)], passes.target, torch.from_numpy(passes.folds[seed]), passes.encoder.device
            )
            for i, (place, seed) in enumerate(keys)
        }
        sample = {layer: np.array(array) for layer, array in parts["sample"].items()}
        return cls(statistics, sample, np.array(arrays["taken"]), Seconds(*arrays["seconds"].tolist()))


@dataclass(frozen=True)
class Predicted:
    """Predictions `[G, m, K]` of the test rows `rows [m]`, by place and seed."""

    rows: Int64[np.ndarray, " m"]
    values: dict[Key, torch.Tensor]
    seconds: Seconds = Seconds()


def read(passes: Passes, sampled: Int64[np.ndarray, " n"], progress: Progress, watch: Watch | None = None) -> Streamed:
    """Both passes; `progress` is called with the windows read, and `watch` sees the tokens of the training series.

    Raises what the stream and the ridge probe raise.
    """
    gathered = gather(passes, sampled, progress, watch)
    begin = time.perf_counter()
    solutions = solve(passes, gathered)
    gathered.statistics.clear()
    gathered.seconds += Seconds(probing=time.perf_counter() - begin)
    return conclude(passes, gathered, solutions, [predict(passes, solutions, progress)])


def conclude(passes: Passes, gathered: Gathered, solutions: Solutions, predicted: Sequence[Predicted]) -> Streamed:
    """Cells and notes, out of what all training series and all test series gave."""
    seconds = {"train": gathered.seconds, "test": sum((part.seconds for part in predicted), Seconds())}
    notes = {
        split: describe(passes.encoder, getattr(passes.task, split)) | spent.notes()
        | {"features": "statistics", "inner": next(iter(solutions.values())).criterion}
        for split, spent in seconds.items()
    }  # fmt: skip
    order = torch.from_numpy(np.concatenate([part.rows for part in predicted]).argsort())
    rows: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for (place, seed), solution in solutions.items():
        prediction = torch.cat([part.values[place, seed] for part in predicted], 1)[:, order]
        rows.setdefault((place[0], seed), {}).update(_rows(passes, place[1], solution, prediction))
    layers = tuple(gathered.sample)
    probing = round((seconds["train"] + seconds["test"]).probing / len(rows), 3)
    cells = {}
    for key, by_layer in rows.items():
        columns = {name: np.array([by_layer[layer][name] for layer in layers]) for name in by_layer[layers[0]]}
        cells[key] = Cell(layers=layers, seconds=probing, **columns)
    poolings = ("steps1",) if passes.task.dense else passes.readings["train"].poolings
    return Streamed(cells, Features(gathered.sample, poolings, {}), notes)


class _Clock:
    """Time within, which is that in probes, and time in all else."""

    def __init__(self) -> None:
        self.forward, self._probing, self._begin = 0.0, 0.0, time.perf_counter()

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._probing += time.perf_counter() - self._entered

    def seconds(self) -> Seconds:
        return Seconds(time.perf_counter() - self._begin - self._probing, self.forward, self._probing)


def gather(
    passes: Passes,
    sampled: Int64[np.ndarray, " n"],
    progress: Progress | None = None,
    watch: Watch | None = None,
    done: Bool[np.ndarray, " N"] | None = None,
) -> Gathered:
    """Read the training series that are not `done`, once; their features are kept of the `sampled` rows alone."""
    task, clock = passes.task, _Clock()
    statistics: dict[Key, RidgeStatistics] = {}
    sample: dict[str, np.ndarray] = {}
    taken = np.zeros(len(sampled), bool)
    for block in passes.blocks("train", progress, watch, done):
        clock.forward += block.forward
        for layer, array in block.arrays.items():
            numbers, of_rows = block.index, array
            if task.dense:
                numbers, each = passes.rows["train"].of_series(block.index, array.reshape(1, len(array), -1))
                of_rows = each[0][:, None]
            here = np.isin(numbers, sampled)
            kept = sample.setdefault(layer, np.empty((len(sampled), *of_rows.shape[1:]), np.float32))
            places = np.searchsorted(sampled, numbers[here])
            kept[places] = of_rows[here]
            taken[places] = True
        with clock:
            for place, rows, x in passes.stacks(block, "train"):
                for seed in set(passes.twins.values()):
                    if (place, seed) not in statistics:
                        folds, device = torch.from_numpy(passes.folds[seed]), passes.encoder.device
                        statistics[place, seed] = RidgeStatistics.of(
                            passes.target, folds, groups=len(x), width=x.shape[2], device=device
                        )
                    statistics[place, seed].update(x, rows)
    return Gathered(statistics, sample, taken, clock.seconds())


def solve(passes: Passes, gathered: Gathered) -> Solutions:
    """By place and seed. Raises DataError where training rows are missing."""
    metric = get_metric(passes.task.metric)
    solved = {key: statistics.solve(metric) for key, statistics in gathered.statistics.items()}
    places = dict.fromkeys(place for place, _ in solved)
    return {(place, seed): solved[place, passes.twins[seed]] for place in places for seed in passes.folds}


def predict(
    passes: Passes,
    solutions: Solutions,
    progress: Progress | None = None,
    done: Bool[np.ndarray, " N"] | None = None,
) -> Predicted:
    """Read the test series that are not `done`, once."""
    clock = _Clock()
    values: dict[Key, list[torch.Tensor]] = {key: [] for key in solutions}
    numbers: list[np.ndarray] = []
    for block in passes.blocks("test", progress, done=done):
        clock.forward += block.forward
        with clock:
            found = None
            for place, rows, x in passes.stacks(block, "test"):
                found = rows.numpy()  # the same at every place
                for seed in passes.folds:
                    solution = solutions[place, seed]
                    values[place, seed].append(solution.predict(x.to(solution.weights.device)).float().cpu())
            if found is not None:
                numbers.append(found)
    return Predicted(
        np.concatenate(numbers), {key: torch.cat(parts, 1) for key, parts in values.items()}, clock.seconds()
    )


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
