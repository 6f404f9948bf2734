"""From the cells of one encoder and task to its node in the tree, its layer curve and its hidden gap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from tsprobe.metrics import Metric, get_metric
from tsprobe.stats import Gap, best_readout, choose, paired_gap, resample_counts, score_interval
from tsprobe.study.cells import Cell
from tsprobe.study.pair import Pair

DIMS = ("layer", "pooling", "probe", "seed")
MEASURED = ("score", "inner", "strength", "gradient_norm")


@dataclass(frozen=True)
class Summary:
    """`node` holds what `study.zarr` keeps of a pair; `gap` compares its chosen with its final layer."""

    node: xr.Dataset
    gap: Gap


@dataclass(frozen=True)
class Grid:
    """The cells of a pair on their axes. A place is (layer, pooling, probe) by number."""

    layers: tuple[str, ...]
    poolings: tuple[str, ...]
    probes: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, str, int], Cell]

    @classmethod
    def of(cls, cells: Iterable[tuple[str, str, int, Cell]]) -> Grid:
        grid = {(pooling, probe, seed): cell for pooling, probe, seed, cell in cells}
        poolings, probes, seeds = (tuple(dict.fromkeys(column)) for column in zip(*grid, strict=True))
        return cls(next(iter(grid.values())).layers, poolings, probes, seeds, grid)

    def values(self, name: str) -> np.ndarray:
        """`[L, P, probes, seeds]` of one of `MEASURED`; NaN where a probe is not given a pooling."""
        none = np.full(len(self.layers), np.nan)
        per_cell = [
            [[getattr(self.cells.get((p, q, s)), name, none) for s in self.seeds] for q in self.probes]
            for p in self.poolings
        ]
        return np.moveaxis(np.array(per_cell), -1, 0)

    def predictions(self, layer: int, pooling: int, probe: int) -> torch.Tensor:
        """Test predictions `[seeds, N, K]` at a place."""
        cells = (self.cells[self.poolings[pooling], self.probes[probe], seed] for seed in self.seeds)
        return torch.from_numpy(np.stack([cell.prediction[layer] for cell in cells]))

    def readout(self, place: tuple[int, int, int]) -> str:
        return f"{self.poolings[place[1]]}, {self.probes[place[2]]}"


def summarise(pair: Pair, cells: Iterable[tuple[str, str, int, Cell]]) -> Summary:
    """Choose the layer and the readout on inner folds, then look at the test set."""
    grid = Grid.of(cells)
    data = {name: grid.values(name) for name in MEASURED}
    inner = data["inner"].mean(-1)  # over seeds: [L, P, probes]
    final = grid.layers.index(pair.final)
    chosen_at, final_at = choose(inner, final)
    curve_at = [(i, *best_readout(inner[i])) for i in range(len(grid.layers))]

    gap, intervals = _uncertainty(pair, grid, chosen_at, final_at, curve_at)

    all_layers = {layer.name: (i, layer.depth) for i, layer in enumerate(pair.encoder.layers)}
    depths = [all_layers[name][1] for name in grid.layers]
    variables = {name: (DIMS, values) for name, values in data.items()} | {
        "curve": ("layer", [float(data["score"][place].mean()) for place in curve_at]),
        "low": ("layer", [low for low, _ in intervals]),
        "high": ("layer", [high for _, high in intervals]),
        "curve_pooling": ("layer", [grid.poolings[place[1]] for place in curve_at]),
        "curve_probe": ("layer", [grid.probes[place[2]] for place in curve_at]),
    }
    coords = {
        "layer": list(grid.layers),
        "pooling": list(grid.poolings),
        "probe": list(grid.probes),
        "seed": list(grid.seeds),
        "depth": ("layer", [np.nan if depth is None else depth for depth in depths]),
        "layer_index": ("layer", [all_layers[name][0] for name in grid.layers]),
    }
    attrs = {
        "encoder": pair.encoder.name,
        "objective": pair.encoder.facts.objective,
        "task": pair.task.name,
        "family": pair.task.family,
        "metric": pair.task.metric,
        "final_layer": pair.final,
        "chosen_layer": grid.layers[chosen_at[0]],
        "final_readout": grid.readout(final_at),
        "chosen_readout": grid.readout(chosen_at),
        "final_score": float(data["score"][final_at].mean()),
        "chosen_score": float(data["score"][chosen_at].mean()),
        "n_train": len(pair.task.train),
        "n_test": len(pair.task.test),
    }
    return Summary(xr.Dataset(variables, coords, attrs), gap)


Place = tuple[int, int, int]


def _uncertainty(
    pair: Pair, grid: Grid, chosen: Place, final: Place, curve: list[Place]
) -> tuple[Gap, list[tuple[float, float]]]:
    """The gap between two places, and an interval for each of the curve. Series are what is drawn, not their steps."""
    metric: Metric = get_metric(pair.task.metric)
    rows = pair.task.rows("test")
    y, series = torch.from_numpy(rows.y), torch.from_numpy(rows.series) if pair.task.dense else None
    counts = resample_counts(rows.n_series, pair.spec.resamples, seed=0)
    if not metric.by_series:
        gap = paired_gap(metric, y, grid.predictions(*chosen), grid.predictions(*final), counts, clusters=series)
        of = lambda place: score_interval(metric, y, grid.predictions(*place), counts, clusters=series)  # noqa: E731
        return gap, [of(place) for place in curve]
    assert series is not None
    drawn = counts[:, series.unique()]  # series without a label are drawn, and say nothing

    def each(place: Place) -> torch.Tensor:
        return metric.notes(y, grid.predictions(*place), series)

    number = torch.arange(drawn.shape[1])
    weighed = metric.pooled is not None
    gap = paired_gap(metric.over_series, number, each(chosen), each(final), drawn, weighed=weighed)
    return gap, [score_interval(metric.over_series, number, each(place), drawn) for place in curve]
