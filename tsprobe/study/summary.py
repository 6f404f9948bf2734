"""From the cells of one encoder and task to its node in the tree, its layer curve and its hidden gap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from tsprobe.encoders.base import Encoder
from tsprobe.metrics import get_metric
from tsprobe.stats import Gap, choose, paired_gap, resample_counts, score_interval
from tsprobe.study.cells import Cell
from tsprobe.study.pair import Pair

DIMS = ("layer", "pooling", "probe", "seed")


@dataclass(frozen=True)
class Summary:
    """`node` holds what `study.zarr` keeps of a pair; `gap` compares its chosen with its final layer."""

    node: xr.Dataset
    gap: Gap


def summarise(pair: Pair, cells: Iterable[tuple[str, str, int, Cell]]) -> Summary:
    """Choose the layer and the readout on inner folds, then look at the test set."""
    grid = {(pooling, probe, seed): cell for pooling, probe, seed, cell in cells}
    first = next(iter(grid.values()))
    axes = (first.layers, *(tuple(dict.fromkeys(key[i] for key in grid)) for i in range(3)))
    data = {name: _fill(grid, axes, name) for name in ("score", "inner", "strength", "gradient_norm")}
    names = [layer.name for layer in pair.encoder.layers] if isinstance(pair.encoder, Encoder) else list(first.layers)
    final_name = pair.encoder.final if isinstance(pair.encoder, Encoder) else first.layers[0]
    final = first.layers.index(final_name) if final_name in first.layers else len(first.layers) - 1
    inner = data["inner"].mean(-1)  # over seeds
    chosen_at, final_at = choose(inner, final)

    metric = get_metric(pair.task.metric)
    y = torch.from_numpy(pair.task.y_test)
    counts = resample_counts(len(pair.task.test), pair.spec.resamples, seed=0)

    def predictions(layer: int, pooling: int, probe: int) -> torch.Tensor:  # [seeds, N, K]
        per_seed = [grid[axes[1][pooling], axes[2][probe], seed].prediction[layer] for seed in axes[3]]
        return torch.from_numpy(np.stack(per_seed))

    gap = paired_gap(metric, y, predictions(*chosen_at), predictions(*final_at), counts)
    readouts = [choose(inner, layer)[1] for layer in range(len(first.layers))]
    intervals = np.array([score_interval(metric, y, predictions(*r), counts) for r in readouts])
    curve = np.array([data["score"][r].mean() for r in readouts])
    depths = {layer.name: layer.depth for layer in pair.encoder.layers} if isinstance(pair.encoder, Encoder) else {}
    node = xr.Dataset(
        {name: (DIMS, values) for name, values in data.items()}
        | {
            "curve": ("layer", curve), "low": ("layer", intervals[:, 0]), "high": ("layer", intervals[:, 1]),
            "curve_pooling": ("layer", [axes[1][r[1]] for r in readouts]),
            "curve_probe": ("layer", [axes[2][r[2]] for r in readouts]),
        },
        coords={
            "layer": list(axes[0]), "pooling": list(axes[1]), "probe": list(axes[2]), "seed": list(axes[3]),
            "depth": ("layer", [np.nan if depths.get(n) is None else depths[n] for n in axes[0]]),
            "layer_index": ("layer", [names.index(n) for n in axes[0]]),
        },
        attrs={
            "encoder": pair.encoder.name, "objective": pair.encoder.facts.objective, "task": pair.task.name,
            "family": pair.task.family, "metric": pair.task.metric, "final_layer": axes[0][final],
            "chosen_layer": axes[0][chosen_at[0]], "chosen_readout": f"{axes[1][chosen_at[1]]}, {axes[2][chosen_at[2]]}",
            "final_readout": f"{axes[1][final_at[1]]}, {axes[2][final_at[2]]}",
            "final_score": float(data["score"][final_at].mean()),
            "chosen_score": float(data["score"][chosen_at].mean()),
            "n_train": len(pair.task.train), "n_test": len(pair.task.test),
        },
    )  # fmt: skip
    return Summary(node, gap)


def _fill(grid: dict[tuple[str, str, int], Cell], axes: tuple[tuple, ...], name: str) -> np.ndarray:
    values = np.full([len(axis) for axis in axes], np.nan)
    for (pooling, probe, seed), cell in grid.items():
        values[:, axes[1].index(pooling), axes[2].index(probe), axes[3].index(seed)] = getattr(cell, name)
    return values
