"""Frozen features for other programs: series in, one vector a series out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.capture import Reading, extract
from tsprobe.data.panel import Panel, as_panel
from tsprobe.errors import DataError, SpecError, UnknownNameError, reason
from tsprobe.files import read_array, read_parquet, read_table, replace_file, replace_text
from tsprobe.study.progress import Stage, silent

if TYPE_CHECKING:
    from tsprobe.encoders.base import Encoder
    from tsprobe.tasks.base import Task

SERIES_FILES = (".npy", ".csv", ".parquet")
OUT_FILES = (".npy", ".npz", ".csv", ".parquet")


def embed(
    encoder: Encoder, data: Panel | Task, layer: str = "best", reading: Reading | None = None, stage: Stage = silent
) -> tuple[str, dict[str, np.ndarray]]:
    """The layer used and the vectors `[N, D]`: of a panel under `features`, of a task under `train` and `test`.

    `best` takes the layer whose ridge probe scores highest on inner folds of the training series; it needs a task.
    Raises `SpecError` for `best` without a task and `UnknownNameError` for a layer that the encoder does not have.
    """
    reading = reading or Reading()
    if len(reading.poolings) != 1:
        raise SpecError(f"one pooling makes one vector a series; got {', '.join(reading.poolings)}")
    parts = {"features": data} if isinstance(data, Panel) else {"train": data.train, "test": data.test}
    if layer == "best":
        if isinstance(data, Panel):
            raise SpecError("--layer best needs labels to choose by: give a task, or name a layer")
        layer = best_layer(encoder, data, reading, stage)
    elif layer == "final":
        layer = encoder.final
    vectors = {}
    for name, panel in parts.items():
        with stage(f"{encoder.name} reads {name}", len(panel)) as advance:
            features = extract(encoder, panel, reading, layers=(layer,), progress=advance)
        vectors[name] = features.matrix(layer, reading.poolings[0])
    return layer, vectors


def best_layer(encoder: Encoder, task: Task, reading: Reading, stage: Stage = silent) -> str:
    """The layer that a ridge probe reads best (of a forecast, the quantile head), by out-of-fold predictions on the
    training series alone."""
    import torch

    from tsprobe.metrics import get_metric
    from tsprobe.probes import get_probe
    from tsprobe.probes.base import Target

    if task.dense:
        raise SpecError(f"{task.name} asks about steps, and embed gives one vector a series; name the layer")
    with stage(f"{encoder.name} looks for the best layer", len(task.train)) as advance:
        features = extract(encoder, task.train, reading, progress=advance)
    probe = get_probe("quantile" if task.kind == "forecast" else "ridge")
    units = None if task.units is None else (torch.from_numpy(task.units[0]), torch.from_numpy(task.units[0][:1]))
    target = Target(task.kind, torch.from_numpy(task.y_train), task.n_classes, units)
    folds = torch.from_numpy(task.folds(5, seed=0))
    best: dict[str, float] = {}
    for layers, stack in features.stacks(reading.poolings[0]):
        x = torch.from_numpy(stack)
        readout = probe(x, target, x[:, :1], folds, get_metric(task.metric))
        best |= dict(zip(layers, readout.inner.amax(1).tolist(), strict=True))
    return max(encoder.taps, key=lambda name: (best[name], name == encoder.final))


def read_series(path: Path) -> Panel:
    """Series from `.npy` (`[N, C, S]` or `[N, S]`), `.csv` without a header or `.parquet` (a row a series, a column a
    step). Raises `DataError` for a file that is missing, damaged or of another kind."""
    if path.suffix not in SERIES_FILES:
        raise DataError(f"{path}: series are read from {', '.join(SERIES_FILES)} files, or give the name of a task")
    if not path.exists():
        raise DataError(f"no such file: {path}")
    try:
        if path.suffix == ".npy":
            return as_panel(read_array(path))
        if path.suffix == ".csv":
            return as_panel(read_table(path, header=None))
        return as_panel(read_parquet(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix} ({reason(error)})") from error


def write_vectors(path: Path, layer: str, vectors: dict[str, np.ndarray]) -> None:
    """Write `.npz` (one array a split), or `.npy`, `.csv`, `.parquet` with the splits below each other, in order."""
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {**vectors, "layer": np.array(layer)}
        return replace_file(path, lambda handle: np.savez(handle, **arrays))
    if path.suffix == ".npy":
        return replace_file(path, lambda handle: np.save(handle, np.concatenate(list(vectors.values()))))
    if path.suffix not in OUT_FILES:
        raise UnknownNameError("kind of output file", path.suffix or str(path), OUT_FILES)
    import pandas as pd

    frame = pd.concat([pd.DataFrame(v).add_prefix(f"{layer}.").assign(split=name) for name, v in vectors.items()])
    if path.suffix == ".csv":
        return replace_text(path, frame.to_csv(index=False, lineterminator="\n"))
    return replace_file(path, lambda handle: frame.to_parquet(handle, index=False))
