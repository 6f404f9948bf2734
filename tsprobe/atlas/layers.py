"""The layers of a study as one table: what each scores on inner folds and on the test set, by one fixed readout.

The readout is ridge on the mean of the tokens (on steps, of a dense task); where ridge cannot read a task, it is the
quantile head of a forecast, or the language model of a question.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.study import Study

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

PROBES = ("ridge", "quantile", "language", "logistic", "attentive", "knn", "correspondence")  # the first that reads
READOUT_POOLING = "mean"
LAYERS = (
    "study", "modality", "encoder", "role", "objective", "task", "base", "variant", "family", "metric", "pooling",
    "probe", "layer", "place", "trunk", "final", "inner", "score", "chance",
)  # fmt: skip
CASE = ["study", "modality", "encoder", "objective", "task", "base", "variant", "family", "metric"]
BEYOND = 1.0  # where a head stands, which has no depth: past the end of the trunk
BLIND = tuple(name for name in LAYERS if name not in ("score", "chance"))
"""Columns that may be chosen by: all but those that the test set had a part in."""


def layer_table(name: str, modality: str, folder: Path) -> pd.DataFrame:
    """A row for each encoder, task and layer of a finished study. Raises `StorageError`."""
    import pandas as pd

    study = Study.open(folder)
    controls = study.provenance["controls"]
    rows: list[dict[str, Any]] = []
    nodes = {(node.attrs["encoder"], node.attrs["task"]): node for node in study.tree.leaves}
    for key in zip(study.verdicts["encoder"], study.verdicts["task"], strict=True):  # a tree has no order of its own
        data, a = nodes[key].to_dataset(), nodes[key].attrs
        shared = {"study": name, "modality": modality, "role": controls.get(a["encoder"], "studied")}
        shared |= {key: a[key] for key in ("encoder", "objective", "task", "family", "metric")} | of_task(a["task"])
        rows += [shared | row for row in _rows(data, a["final_layer"])]
    table = pd.DataFrame(rows)
    chance = table[table["encoder"] == "baseline/chance"].groupby("task")["score"].max()
    table["chance"] = table["task"].map(chance).astype(float)
    return table[list(LAYERS)]


def of_task(name: str) -> dict[str, str]:
    """The task without the seed that its series are generated under, and that seed: variants of one task."""
    found = re.search(r"[?&]seed=(\d+)", name)
    if found is None or "shots=" in name:
        return {"base": name, "variant": "0"}
    base = (name[: found.start()] + name[found.end() :]).replace("&", "?", 1 if "?" not in name[: found.start()] else 0)
    return {"base": base, "variant": found[1]}


def _rows(data: xr.Dataset, final: str) -> list[dict[str, Any]]:
    score = data["score"].mean("seed")  # seeds of folds
    probe = next(
        p
        for p in (*PROBES, *score["probe"].values)
        if p in score["probe"].values and score.sel(probe=p).notnull().any()
    )
    read = score.sel(probe=probe)
    poolings = [p for p in read["pooling"].values if read.sel(pooling=p).notnull().any()]
    pooling = READOUT_POOLING if READOUT_POOLING in poolings else poolings[0]
    at = data.sel(probe=probe, pooling=pooling)
    inner, test, depth = at["inner"].mean("seed").values, at["score"].mean("seed").values, data["depth"].values
    return [
        {
            "pooling": str(pooling), "probe": str(probe), "layer": str(layer),
            "place": BEYOND if np.isnan(depth[i]) else float(depth[i]), "trunk": not np.isnan(depth[i]),
            "final": layer == final, "inner": float(inner[i]), "score": float(test[i]),
        }
        for i, layer in enumerate(data["layer"].values)
    ]  # fmt: skip


def candidates(layers: pd.DataFrame) -> pd.DataFrame:
    """The layers of studied encoders that may be chosen: the trunk's, and the final one."""
    return layers[(layers["role"] == "studied") & (layers["trunk"] | layers["final"]) & layers["inner"].notna()]


def diagnostic_table(name: str, folder: Path, layers: pd.DataFrame) -> pd.DataFrame:
    """Label-free values beside the layers that they are of: study, encoder, task, layer, diagnostic, value.

    A measure of pooled features is taken for the pooling that the layer is read with.
    """
    found = Study.open(folder).diagnostics.dropna(subset="value").assign(study=name)
    keys = ["study", "encoder", "task", "layer"]
    joined = found.merge(layers[[*keys, "pooling"]], on=keys, suffixes=("", "_read"))
    own = (joined["pooling"] == "tokens") | (joined["pooling"] == joined["pooling_read"])
    return joined.loc[own, [*keys, "diagnostic", "value"]].drop_duplicates([*keys, "diagnostic"])
