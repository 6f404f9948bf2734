"""Which objectives hide features: gaps and depths by objective and family, beside those of untrained copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.atlas.draws import Grid, Statistic
from tsprobe.atlas.layers import BEYOND, candidates, of_task
from tsprobe.atlas.pickers import LeakError
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.encoders.base import UNTRAINED
from tsprobe.stats import choose
from tsprobe.study import Study

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

ALL = "all families"
GAPS = (
    "study", "modality", "encoder", "objective", "family", "task", "base", "variant", "metric", "final_layer",
    "chosen_layer", "chosen_depth", "final_score", "chosen_score", "gap", "gap_low", "gap_high", "p_adjusted",
    "verdict", "untrained_gap", "less_untrained",
)  # fmt: skip
_KEYS = ["modality", "objective", "family"]
GRID = np.round(np.linspace(0, 1, 11), 2)  # depths at which curves are averaged


def gap_table(name: str, modality: str, folder: Path) -> pd.DataFrame:
    """A row for each studied encoder and task: its verdict in the study, and the gap of its untrained copy.

    Raises `LeakError` for a verdict whose layer is not the one that inner folds choose.
    """
    study = Study.open(folder)
    for node in study.tree.leaves:
        check_choice(node.to_dataset(), node.attrs)
    verdicts, controls = study.verdicts, study.provenance["controls"]
    twins = dict(zip(zip(verdicts["encoder"], verdicts["task"], strict=True), verdicts["gap"], strict=True))
    rows = verdicts[~verdicts["encoder"].isin(list(controls))].copy()
    rows["study"], rows["modality"] = name, modality
    rows["base"] = [of_task(task)["base"] for task in rows["task"]]
    rows["variant"] = [of_task(task)["variant"] for task in rows["task"]]
    rows["chosen_depth"] = rows["chosen_depth"].fillna(BEYOND)
    keys = zip(rows["encoder"] + UNTRAINED, rows["task"], strict=True)
    rows["untrained_gap"] = [twins.get(key, np.nan) for key in keys]
    rows["less_untrained"] = rows["gap"] - rows["untrained_gap"]
    return rows[list(GAPS)]


def check_choice(data: xr.Dataset, attrs: Mapping[Any, Any]) -> None:
    """Choose again, by scores of inner folds alone, and compare."""
    names = list(data["layer"].values)
    inner = data["inner"].transpose("layer", "pooling", "probe", "seed").values.mean(-1)
    (layer, *_), _ = choose(inner, names.index(attrs["final_layer"]))
    if names[layer] != attrs["chosen_layer"]:
        raise LeakError(
            f"{attrs['encoder']} on {attrs['task']}: inner folds choose {names[layer]}, but the study has "
            f"{attrs['chosen_layer']}: its choice has seen something else"
        )


def by_objective(gaps: pd.DataFrame, spec: AtlasSpec) -> pd.DataFrame:
    """A row for each modality, objective and family (and all of them): means with intervals over tasks, given the
    encoders of the objective; the depth is the median one."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for (modality, objective), own in gaps.groupby(["modality", "objective"], sort=False):
        for family in [*own["family"].unique(), ALL]:
            some = own if family == ALL else own[own["family"] == family]
            row: dict[str, Any] = {"modality": modality, "objective": objective, "family": family}
            row |= {"encoders": some["encoder"].nunique(), "tasks": some[["family", "base"]].drop_duplicates().shape[0]}
            row |= {"series_sets": some["task"].nunique()}
            row |= _estimate(some, "gap", "gap", spec) | _estimate(some, "chosen_depth", "depth", spec, "median")
            row |= {"hidden": int((some["verdict"] == "hidden").sum()), "verdicts": len(some)}
            row |= {"hidden_share": row["hidden"] / row["verdicts"]}
            rows.append(row | _estimate(some, "less_untrained", "less_untrained", spec))
    return pd.DataFrame(rows)


def _estimate(
    some: pd.DataFrame, column: str, name: str, spec: AtlasSpec, statistic: Statistic = "mean"
) -> dict[str, float]:
    # encoders of an objective are averaged task by task: few are no sample of their kind
    means = some.groupby(["family", "base", "variant"])[column].mean().reset_index().assign(encoder="mean")
    return Grid.of(means, column).estimate(spec.resamples, spec.seed, spec.level, statistic).row(name)


def heads(layers: pd.DataFrame, spec: AtlasSpec) -> pd.DataFrame:
    """Of layers past the trunk: test score less that of the trunk's last layer (Guillotine, Bordes 2022)."""
    import pandas as pd

    trained = layers[layers["role"] == "studied"]
    last = trained[trained["trunk"]].sort_values("place").groupby(["study", "encoder", "task"])["score"].last()
    past = trained[~trained["trunk"]].copy()
    keys = zip(past["study"], past["encoder"], past["task"], strict=True)
    past["change"] = past["score"] - np.array([last.get(key, np.nan) for key in keys])
    rows = []
    for (modality, encoder, objective, layer), some in past.dropna(subset="change").groupby(
        ["modality", "encoder", "objective", "layer"], sort=False
    ):
        row = {"modality": modality, "encoder": encoder, "objective": objective, "layer": layer}
        row |= {"tasks": some[["family", "base"]].drop_duplicates().shape[0]}
        rows.append(row | _estimate(some, "change", "change", spec))
    columns = ["modality", "encoder", "objective", "layer", "tasks", "change", "change_low", "change_high"]
    return pd.DataFrame(rows, columns=columns)


def curves(layers: pd.DataFrame) -> pd.DataFrame:
    """Test scores by depth, brought to 0 (worst layer of the trunk) to 1 (best) of each encoder and task, averaged over
    the tasks of a family and the encoders of an objective at `GRID`."""
    import pandas as pd

    some = candidates(layers)
    some = some[some["trunk"]]
    rows = []
    for (modality, objective, family), own in some.groupby(_KEYS, sort=False):
        shapes = []
        for _, one in own.groupby(["study", "encoder", "task"]):
            score, place = one["score"].to_numpy(float), one["place"].to_numpy(float)
            if len(score) > 1 and np.ptp(score) > 0:
                order = np.argsort(place)
                shapes.append(np.interp(GRID, place[order], ((score - score.min()) / np.ptp(score))[order]))
        for place, value in zip(GRID, np.mean(shapes, 0) if shapes else [], strict=False):
            row = {"modality": modality, "objective": objective, "family": family, "place": float(place)}
            rows.append(row | {"relative": float(value), "curves": len(shapes)})
    return pd.DataFrame(rows, columns=[*_KEYS, "place", "relative", "curves"])
