"""Annotated series in files of the archives that others publish: UCR Anomaly, TSB-AD and TSSB, as they lie on disk.

| archive | file | what its name, or a file beside it, says |
|---|---|---|
| UCR Anomaly (Wu and Keogh 2021) | `NNN_UCR_Anomaly_NAME_TRAIN_BEGIN_END.txt`, a value a line or all on one line | the first TRAIN steps have no anomaly; it lasts from BEGIN to END, both counted from 1 |
| TSB-AD (Liu and Paparrizos 2024) | `NNN_…_tr_TRAIN_1st_FIRST.csv`, columns of channels, then `Label` of 0 and 1 | the first TRAIN steps are for training |
| TSSB (Ermshaus, Schäfer and Leser 2023) | `NAME.txt`, a value a line | `desc.txt` has lines `NAME,WINDOW,CHANGE,CHANGE,…`: steps of a period, and where segments begin |
"""  # noqa: E501

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import DataError, UnknownNameError
from tsprobe.files import read_table

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

_UCR = re.compile(r"\d+_UCR_Anomaly_.+_(\d+)_(\d+)_(\d+)\.txt")
_TSB = re.compile(r".+_tr_(\d+)_1st_\d+\.csv")


@dataclass(frozen=True, eq=False)
class WithAnomaly:
    """A series, which of its steps are anomalous, and how many at its beginning are for training."""

    name: str
    values: Float64[np.ndarray, "C S"]
    anomalous: Bool[np.ndarray, " S"]
    border: int


@dataclass(frozen=True, eq=False)
class Segmented:
    """A series, the first steps of all segments but the first, and the steps of a period of it."""

    values: Float64[np.ndarray, " S"]
    changes: tuple[int, ...]
    window: int


def read_ucr_anomaly(path: Path) -> WithAnomaly:
    """Raises `DataError` for another name, values that cannot be read, and an anomaly that does not lie behind the
    training steps and within the series."""
    found = _UCR.fullmatch(path.name)
    if found is None:
        raise DataError(f"{path}: the name must be NNN_UCR_Anomaly_NAME_TRAIN_BEGIN_END.txt")
    train, begin, end = map(int, found.groups())
    values = read_values(path)
    if not 0 < train < begin <= end <= len(values):
        raise DataError(
            f"{path}: {train} training steps and an anomaly from {begin} to {end} do not fit {len(values)} steps"
        )
    anomalous = np.zeros(len(values), bool)
    anomalous[begin - 1 : end] = True
    return WithAnomaly(path.name, values[None], anomalous, train)


def read_tsb_ad(path: Path) -> WithAnomaly:
    """Rows with a missing value are left out before steps are counted, as the authors' scripts do.

    Raises `DataError` for another name, a table that cannot be read, without channels or `Label`, with other labels
    than 0 and 1, or with nothing after the training steps.
    """
    found = _TSB.fullmatch(path.name)
    if found is None:
        raise DataError(f"{path}: the name must be NNN_…_tr_TRAIN_1st_FIRST.csv")
    try:
        table = read_table(path).dropna()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if "Label" not in table or len(table.columns) < 2:
        raise DataError(f"{path}: columns {', '.join(map(str, table.columns))}; channels are due, and Label")
    text = [name for name, kind in table.dtypes.items() if kind.kind not in "biuf"]
    if text:
        raise DataError(f"{path}: column {text[0]!r} is not numbers")
    labels, border = table["Label"].to_numpy(), int(found[1])
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"{path}: the column Label holds other values than 0 and 1")
    if not 0 < border < len(table):
        raise DataError(f"{path}: {border} training steps of {len(table)}; some must be left to score")
    values = table.drop(columns="Label").to_numpy(np.float64).T
    return WithAnomaly(path.name, values, labels == 1, border)


def read_tssb(folder: Path, name: str) -> Segmented:
    """A series of a folder with `desc.txt`.

    Raises `UnknownNameError` for a name that the description does not have, `DataError` for one that cannot be read,
    and for changes that are not in order within the series.
    """
    file = folder / "desc.txt"
    try:
        lines = [line.strip().split(",") for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); a folder of TSSB has NAME,WINDOW,CHANGE,… there") from error
    described = {line[0]: line[1:] for line in lines}
    if name not in described:
        raise UnknownNameError(f"series of {folder}", name, described)
    try:
        window, *changes = map(int, described[name])
    except ValueError as error:
        raise DataError(f"{file}: the line of {name} is not NAME,WINDOW,CHANGE,… in whole numbers") from error
    values = read_values(folder / f"{name}.txt")
    borders = [0, *changes, len(values)]
    if window < 1 or any(a >= b for a, b in itertools.pairwise(borders)):
        raise DataError(f"{file}: changes of {name} at {changes} do not divide its {len(values)} steps in order")
    return Segmented(values, tuple(changes), window)


def read_values(path: Path) -> Float64[np.ndarray, " S"]:
    """Numbers of a text file, one a line or all on one line. Raises `DataError` that names the line of a mistake."""
    try:
        lines = [(i, line.split()) for i, line in enumerate(path.read_text().splitlines(), start=1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not lines:
        raise DataError(f"{path} is empty")
    values = []
    for number, parts in lines:
        if len(lines) > 1 and len(parts) > 1:
            raise DataError(f"{path}, line {number}: {len(parts)} values; give one a line, or all on one line")
        for part in parts:
            try:
                values.append(float(part))
            except ValueError:
                raise DataError(f"{path}, line {number}: {part!r} is not a number") from None
    if not np.isfinite(values).all():
        raise DataError(f"{path}: value {int(np.flatnonzero(~np.isfinite(values))[0]) + 1} is not finite")
    return np.array(values)
