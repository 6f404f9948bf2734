"""Which label-free measures point at the layer to take: a league of all ways to pick one, by what they cost.

Means are over encoders and tasks with hierarchical bootstrap intervals (`draws`). A measure's comparison with picking
the last or the middle layer is paired, and at the level of the atlas divided by the number of measures (Bonferroni),
since the best of many is looked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from tsprobe.atlas.draws import Estimate, Grid, interval
from tsprobe.atlas.pickers import HIGHEST, INNER, LAST, LOWEST, MIDDLE, REFERENCES, few
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.diagnostics import CATALOGUE

if TYPE_CHECKING:
    import pandas as pd

RANKS = ("spearman", "kendall")
COLUMNS = (
    "modality", "picker", "kind", "sign", "encoders", "tasks", "cases", "regret", "regret_low", "regret_high",
    "less_last", "less_last_low", "less_last_high", "less_middle", "less_middle_low", "less_middle_high",
    *(f"{rank}{end}" for rank in RANKS for end in ("", "_low", "_high")), "verdict",
)  # fmt: skip


def league(regrets: pd.DataFrame, correlated: pd.DataFrame, spec: AtlasSpec) -> pd.DataFrame:
    """A row for each modality and picker, the smallest regret first.

    `kind` is diagnostic, its ends (highest, lowest), reference or labels. `verdict` says how it does beside picking the
    last and the middle layer, by intervals: better than both, better than last, worse than last, or undecided.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for modality, own in regrets.groupby("modality", sort=False):
        known = own.dropna(subset="regret")
        pickers = list(dict.fromkeys(known["picker"]))
        many = max(1, sum(picker in CATALOGUE for picker in pickers))
        mine = correlated[correlated["modality"] == modality]
        for picker in pickers:
            row = {"modality": modality, "picker": picker, "kind": kind_of(picker, spec)}
            row |= _row(picker, known, spec, spec.level / many if row["kind"] == "diagnostic" else spec.level)
            row |= _ranks(mine[mine["diagnostic"] == picker], spec)
            rows.append(row | {"verdict": _verdict(row)})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["modality", "regret"], ascending=[False, True], kind="stable").reset_index(drop=True)


def kind_of(picker: str, spec: AtlasSpec) -> str:
    if picker in REFERENCES:
        return "reference"
    if picker in {few(n) for n in spec.labels}:
        return "labels"
    return "ends" if picker.endswith((HIGHEST, LOWEST)) else "diagnostic"


def _row(picker: str, known: pd.DataFrame, spec: AtlasSpec, level: float) -> dict[str, Any]:
    some = known[known["picker"] == picker]
    row: dict[str, Any] = {
        "encoders": some["encoder"].nunique(), "tasks": some[["family", "base"]].drop_duplicates().shape[0],
        "cases": len(some),
    }  # fmt: skip
    row |= Grid.of(some, "regret").estimate(spec.resamples, spec.seed, spec.level).row("regret")
    for other, name in ((LAST, "less_last"), (MIDDLE, "less_middle")):
        row |= paired(known, picker, other, spec, level).row(name)
    return row


def paired(regrets: pd.DataFrame, picker: str, other: str, spec: AtlasSpec, level: float) -> Estimate:
    """The regret of one picker less that of another, on the cases that both have."""
    keys = ["study", "encoder", "task"]
    first, second = (regrets[regrets["picker"] == name] for name in (picker, other))
    both = first.merge(second[[*keys, "regret"]], on=keys, suffixes=("", "_other"))
    if picker == other or not len(both):
        return Estimate(0.0 if len(both) else math.nan, math.nan, math.nan)
    both["difference"] = both["regret"] - both["regret_other"]
    return Grid.of(both, "difference").estimate(spec.resamples, spec.seed, level)


def _ranks(correlated: pd.DataFrame, spec: AtlasSpec) -> dict[str, Any]:
    if not len(correlated):
        return {"sign": math.nan}
    row: dict[str, Any] = {}
    for rank in RANKS:
        some = correlated.dropna(subset=rank)
        found = Grid.of(some, rank).estimate(spec.resamples, spec.seed, spec.level) if len(some) else None
        row |= (found or Estimate(math.nan, math.nan, math.nan)).row(rank)
    return row | {"sign": float(np.sign(row["spearman"]))}


def _verdict(row: dict[str, Any]) -> str:
    if row["picker"] in (LAST, MIDDLE):
        return ""
    under_last, under_middle = row["less_last_high"] < 0, row["less_middle_high"] < 0
    if under_last:
        return "better than last and middle" if under_middle else "better than last"
    return "worse than last" if row["less_last_low"] > 0 else "undecided"


def carried_over(correlated: pd.DataFrame, regrets: pd.DataFrame, spec: AtlasSpec) -> pd.DataFrame:
    """Whether the diagnostics of one modality rank alike in the other: Spearman's correlation over diagnostics of their
    mean correlation with scores (`sign`), and of their mean regrets (`ranking`), each with an interval."""
    import pandas as pd

    columns = ["what", "diagnostics", "correlation", "correlation_low", "correlation_high"]
    modalities = sorted(correlated["modality"].unique())
    if len(modalities) < 2:
        return pd.DataFrame(columns=columns)
    rows = []
    own = regrets[regrets["picker"].isin(list(CATALOGUE))].rename(columns={"picker": "diagnostic"})
    for what, table, column in (("sign", correlated, "spearman"), ("ranking", own, "regret")):
        known = table.dropna(subset=column)
        names = sorted(
            set.intersection(*(set(known.loc[known["modality"] == m, "diagnostic"]) for m in modalities[:2]))
        )
        if len(names) < 4:
            continue
        drawn = [_means(known[known["modality"] == m], names, column, spec) for m in modalities[:2]]
        samples = np.array([stats.spearmanr(a, b).statistic for a, b in zip(*drawn, strict=True)])
        found = interval(samples, len(names), spec.level)
        rows.append({"what": what, "diagnostics": len(names)} | found.row("correlation"))
    return pd.DataFrame(rows, columns=columns)


def _means(table: pd.DataFrame, names: Sequence[str], column: str, spec: AtlasSpec) -> np.ndarray:
    """`[R + 1, names]`: of each resample the mean of every diagnostic, on the same encoders and tasks."""
    encoders = sorted(table["encoder"].unique())
    resamples = min(spec.resamples, 1000)
    return np.stack(
        [
            Grid.of(table[table["diagnostic"] == name], column, encoders, table).resampled(resamples, spec.seed)
            for name in names
        ],
        axis=1,
    )


def fewest_labels(table: pd.DataFrame, modality: str, spec: AtlasSpec) -> int | None:
    """The smallest number of labelled series that does better than the last and the middle layer; None if none does."""
    own = table[(table["modality"] == modality) & (table["verdict"] == "better than last and middle")]
    return next((n for n in spec.labels if few(n) in set(own["picker"])), None)


__all__ = ["COLUMNS", "INNER", "carried_over", "fewest_labels", "kind_of", "league", "paired"]
