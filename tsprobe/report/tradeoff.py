"""What alignments brought to each family of tasks and what they cost: recipe x family as a table of colours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.files import replace_file
from tsprobe.report import text
from tsprobe.report.templates import environment

if TYPE_CHECKING:
    import pandas as pd

UP, DOWN = "11,122,75", "179,38,30"
_LEAST = 0.05  # of a change that is worth full colour
_WIDTH, _MARGIN = 200, 10  # of the drawing of depths, in px


def write_tradeoff(path: Path, families: pd.DataFrame) -> Path:
    """A page of the rows of `families.csv`, of one alignment or of several. Raises `StorageError`."""
    page = environment().get_template("tradeoff_page.html.j2").render(matrix=matrix(families), depths=depths(families))
    replace_file(path, lambda handle: handle.write(page.encode("utf-8", errors="replace")))
    return path


def matrix(families: pd.DataFrame) -> dict[str, Any]:
    """Rows are recipes and controls, columns families. Full colour is the largest change of a family, at least 0.05."""
    names = list(dict.fromkeys(families["family"]))
    full = {name: max(_LEAST, float(families.loc[families["family"] == name, "change"].abs().max())) for name in names}
    rows = []
    for label, table in _labelled(families):
        by_family = {row["family"]: row for row in table.to_dict("records")}
        cells = [_cell(by_family.get(name), full[name]) for name in names]
        rows.append({"label": label, "control": bool(table["control"].iloc[0]), "cells": cells})
    return {"families": names, "rows": rows}


def _cell(row: dict[str, Any] | None, full: float) -> dict[str, Any]:
    if row is None or math.isnan(row["change"]):
        return {"change": math.nan, "between": "", "colour": "transparent"}
    share = min(1.0, abs(row["change"]) / full)
    colour = f"rgba({UP if row['change'] >= 0 else DOWN},{0.55 * share:.2f})"
    between = text.interval(row["change_low"], row["change_high"])
    return {"change": row["change"], "between": between, "colour": colour}


def depths(families: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each tuning and family, where its best layer is before and after, by inner folds, and what the output has."""
    rows = []
    for label, table in _labelled(families):
        for row in table.to_dict("records"):
            if math.isnan(row["depth_after"]):
                continue  # without tuning there are no layers after
            at = {when: _place(row[f"depth_{when}"]) for when in ("before", "after")}
            rows.append(row | {"label": label, "at": at, "width": _WIDTH})
    return rows


def _place(depth: float) -> float:
    return round(_MARGIN + depth * (_WIDTH - 2 * _MARGIN), 1)


def _labelled(families: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each recipe and control; the encoder is named where there are several."""
    several = families["encoder"].nunique() > 1 or families.duplicated(["recipe", "control", "family"]).any()
    found = []
    for (encoder, recipe, control), table in families.groupby(["encoder", "recipe", "control"], sort=False):
        label = f"{recipe}, {control}" if control else str(recipe)
        found.append((f"{encoder}: {label}" if several else label, table))
    return found
