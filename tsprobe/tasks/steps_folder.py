"""A dense task from a folder of two tables, `train.csv` and `test.csv`, a row a step.

| column | meaning |
|---|---|
| series | name of the series; its rows stand in order of time |
| label | class of the step, empty where it has none; or instead: |
| target, target.NAME | a value of the step, empty where it has none; any number of such columns |
| group | optional: series of one group stay in one fold |
| all others | channels, empty where a value is missing |
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.errors import DataError
from tsprobe.files import read_table
from tsprobe.tasks.base import Task
from tsprobe.tasks.dense import Dense

if TYPE_CHECKING:
    import pandas as pd

FILES = ("train.csv", "test.csv")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of the two tables."""
    return all((path / file).is_file() for file in FILES)


def load_folder(path: str | Path) -> Task:
    """The task in a folder. Raises `DataError` for a table that cannot be read, lacks a column, or as `Dense` does."""
    path = Path(path).expanduser()
    tables = [_read(path / file) for file in FILES]
    if list(tables[0].columns) != list(tables[1].columns):
        raise DataError(f"{path}: {FILES[0]} and {FILES[1]} have unlike columns; both need the same, in the same order")
    columns = list(tables[0].columns)
    targets = [name for name in columns if name == "target" or name.startswith("target.")]
    asked = ["label"] if "label" in columns else targets
    if "series" not in columns or not asked or ("label" in columns and targets):
        raise DataError(f"{path}: columns {', '.join(columns)}; a column series is due, and label or target columns")
    channels = [name for name in columns if name not in ("series", "group", *asked)]
    if not channels:
        raise DataError(f"{path}: no column is a channel; there are {', '.join(columns)}")
    splits = [_split(path / file, table, channels, asked) for file, table in zip(FILES, tables, strict=True)]
    groups = None
    if "group" in columns:
        groups = tables[0].groupby("series", sort=False)["group"].first().to_numpy()
    settings: dict[str, Any] = {} if asked == ["label"] else {"kind": "regression", "labels": targets}
    return Dense(f"steps/{path}", *splits, groups=groups, **settings)


def _read(path: Path) -> pd.DataFrame:
    try:
        return read_table(path, dtype={"series": str, "label": str, "group": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _split(
    path: Path, table: pd.DataFrame, channels: list[str], asked: list[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    text = [name for name in (*channels, *asked) if name != "label" and table[name].dtype.kind not in "biuf"]
    if text:
        raise DataError(f"{path}: column {text[0]!r} is not numbers")
    if table["series"].isna().any():
        raise DataError(f"{path}: row {int(table['series'].isna().argmax()) + 2} names no series")
    starts = (table["series"] != table["series"].shift()).sum()
    if starts != table["series"].nunique():
        raise DataError(f"{path}: the rows of a series must stand together, in order of time")
    series, labels = [], []
    for _, rows in table.groupby("series", sort=False):
        series.append(rows[channels].to_numpy(np.float32).T)
        labels.append(rows[asked[0]].to_numpy(object) if asked == ["label"] else rows[asked].to_numpy(np.float64))
    return series, labels
