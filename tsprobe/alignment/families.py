"""What an alignment brought to each family of tasks: a row for each control and family, `families.csv`.

The change is that of the final layer's test score, averaged over the tasks of the family. Its interval is that of
`lift.py`, with the resamples of the tasks averaged one by one. The best layer is the one with the highest mean over the
tasks of the scores of inner folds, less those of the final layer (and, of several tunings, over seeds): test scores
choose nothing. Of layers that are as good to within 0.001 it is the deepest. Retention is the share of the best hidden
layer before that the output has after, where both scores are above 0; of errors, both below 0, it is the hidden one
over that of the output. Either way 1 is all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.alignment.lift import Compared
from tsprobe.alignment.teachers import gains_of
from tsprobe.errors import SpecError, reason
from tsprobe.files import read_table

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "encoder", "recipe", "control", "family", "tasks", "change", "change_low", "change_high", "layer_before",
    "depth_before", "layer_after", "depth_after", "retention",
)  # fmt: skip
FILE = "families.csv"
_ALIKE = 1e-3  # scores of layers that differ by less are taken for equal


def family_rows(compared: Sequence[Compared], *, tuned: bool) -> list[dict[str, Any]]:
    """The entries of `families.csv` from `family` on, of one control; without tuning there are no layers after."""
    rows = []
    for family in dict.fromkeys(one.entries["family"] for one in compared):
        some = [one for one in compared if one.entries["family"] == family]
        change = torch.stack([one.change for one in some]).mean(0)
        drawn = change[1:][change[1:].isfinite()].numpy()
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
        row = {"family": family, "tasks": len(some), "change": float(change[0]), "change_low": low, "change_high": high}
        before = _deepest([gains_of((one.before.pair, one.before.grid) for one in some)], some[0].before.pair.encoder)
        after = ("", math.nan)
        if tuned:
            seeds = range(len(some[0].afters))
            gains = [gains_of((one.afters[s].pair, one.afters[s].grid) for one in some) for s in seeds]
            after = _deepest(gains, some[0].afters[0].pair.encoder)
        row |= {"layer_before": before[0], "depth_before": before[1], "layer_after": after[0], "depth_after": after[1]}
        kept = [retention(one.entries["hidden_before"], one.entries["final_after"]) for one in some]
        known = [value for value in kept if not math.isnan(value)]
        rows.append(row | {"retention": float(np.mean(known)) if known else math.nan})
    return rows


def retention(hidden: float, after: float) -> float:
    if hidden > 0 and after > 0:
        return after / hidden
    return hidden / after if hidden < 0 and after < 0 else math.nan


def _deepest(gains: Sequence[Mapping[str, float]], encoder: Any) -> tuple[str, float]:
    """The deepest of the layers that are the best over several seeds, to within `_ALIKE`, and its depth."""
    mean = {layer: float(np.mean([one[layer] for one in gains])) for layer in gains[0]}
    best = next(layer for layer in reversed(mean) if mean[layer] >= max(mean.values()) - _ALIKE)
    return best, float(next(layer.depth for layer in encoder.layers if layer.name == best))


def tradeoff(folders: Sequence[str | Path]) -> pd.DataFrame:
    """`families.csv` of several alignments, one below the other: what each recipe brought to each family, and cost.

    Raises `SpecError` for a folder that holds no finished alignment.
    """
    import pandas as pd

    tables = []
    for folder in folders:
        file = Path(folder) / FILE
        if not file.is_file():
            raise SpecError(f"{folder} holds no finished alignment: {FILE} is not there")
        texts = ["encoder", "recipe", "control", "family", "layer_before", "layer_after"]
        try:
            table = read_table(file, dtype=dict.fromkeys(texts, str))
        except (OSError, ValueError) as error:
            raise SpecError(f"{file} cannot be read ({reason(error)})") from error
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise SpecError(f"{file} lacks the columns {', '.join(missing)}")
        wrong = [name for name in COLUMNS if name not in texts and table[name].dtype.kind not in "iuf"]
        if wrong:
            raise SpecError(f"{file}: the column {wrong[0]!r} is not numbers")
        tables.append(table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, "")))
    if not tables:
        raise SpecError("name the folder of an alignment")
    return pd.concat(tables, ignore_index=True)


def as_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """A header and rows that fit a terminal."""
    columns = ["encoder", "recipe", "control", "family", "tasks", "change", "interval", "best layer", "retention"]
    rows = []
    for r in table.to_dict("records"):
        interval = "" if math.isnan(r["change_low"]) else f"[{r['change_low']:+.3f}, {r['change_high']:+.3f}]"
        best = f"{r['layer_before']} -> {r['layer_after']}" if r["layer_after"] else r["layer_before"]
        kept = "" if math.isnan(r["retention"]) else f"{r['retention']:.3f}"
        rows.append([*(str(r[c]) for c in columns[:5]), f"{r['change']:+.3f}", interval, best, kept])
    return columns, rows
