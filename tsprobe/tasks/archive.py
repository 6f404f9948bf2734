"""Tasks of the UCR, UEA and TSER archives, and of `.ts` files by path, on their official training and test split."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path

from tsprobe.data.sources import bundled_folder, download, find_ts, read_ts
from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.tasks.base import Classification, Regression, Task, TaskInfo

# sktime declares a licence for its package alone; the archives ask for citation and name no licence for each set
LICENCE = "not declared (shipped in sktime, BSD-3-Clause)"

# archive, name, n_train, n_test, channels, shortest, longest, classes (targets for tser)
_BUNDLED = (
    ("ucr", "ACSF1", 100, 100, 1, 1460, 1460, 10),
    ("ucr", "ArrowHead", 36, 175, 1, 251, 251, 3),
    ("ucr", "GunPoint", 50, 150, 1, 150, 150, 2),
    ("ucr", "ItalyPowerDemand", 67, 1029, 1, 24, 24, 2),
    ("ucr", "OSULeaf", 200, 242, 1, 427, 427, 6),
    ("ucr", "PLAID", 537, 537, 1, 100, 1344, 11),
    ("uea", "BasicMotions", 40, 40, 6, 100, 100, 4),
    ("uea", "JapaneseVowels", 270, 370, 12, 7, 29, 9),
    ("tser", "Covid3Month", 140, 61, 1, 84, 84, 1),
    ("tser", "Tecator", 172, 43, 1, 100, 100, 1),
)


def list_tasks() -> list[TaskInfo]:
    """The tasks whose files sktime ships, from a table; no file is opened."""
    return [
        TaskInfo(
            name=f"{archive}/{name}",
            kind="regression" if archive == "tser" else "classification",
            metric="r2" if archive == "tser" else "accuracy",
            n_train=n_train,
            n_test=n_test,
            channels=channels,
            length=(shortest, longest),
            n_classes=n_classes,
            source=f"{archive.upper()} archive, shipped in sktime",
            licence=LICENCE,
            here=bundled_folder(name) is not None,
        )
        for archive, name, n_train, n_test, channels, shortest, longest, n_classes in _BUNDLED
    ]


def load_ucr(name: str) -> Task:
    """A classification of the UCR archive; takes UEA names too."""
    return _load("ucr", name)


def load_uea(name: str) -> Task:
    """A classification of the UEA archive of many channels; takes UCR names too."""
    return _load("uea", name)


def load_tser(name: str) -> Task:
    """A regression of whole series of the TSER archive."""
    return _load("tser", name)


def load_ts(path: str) -> Task:
    """The task in `NAME_TRAIN.ts` and `NAME_TEST.ts`; its path is either file, `DIR/NAME`, or the folder of the two."""
    train, test = find_ts(path)
    return _task(f"ts/{train.parent / train.name.removesuffix('_TRAIN.ts')}", train, test, "user", "not declared")


def _load(archive: str, name: str) -> Task:
    base, mark, query = name.partition("?")
    if mark:
        raise SpecError(f"task {archive}/{base}: no setting {query!r}; there are shots, with it seed, and metric")
    shipped = [row[1] for row in _BUNDLED if (row[0] == "tser") == (archive == "tser")]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UnknownNameError(f"{archive} data set", name, shipped, "(letters, digits, '_' and '-' only)")
    folder = bundled_folder(name)
    source = f"{archive.upper()} archive, shipped in sktime"
    if folder is None:
        try:
            folder = download(name)
        except DataError as error:
            near = difflib.get_close_matches(name, shipped, n=1)
            hint = f"; did you mean '{archive}/{near[0]}'?" if near else ""
            raise DataError(f"{error}{hint}") from error
        source = f"{archive.upper()} archive, downloaded by sktime"
    task = _task(f"{archive}/{name}", *find_ts(folder / name), source, LICENCE)
    if (task.kind == "regression") != (archive == "tser"):
        raise DataError(f"{name} is a {task.kind}; load it as {'tser' if archive != 'tser' else 'ucr'}/{name}")
    return task


def _task(name: str, train: Path, test: Path, source: str, licence: str) -> Task:
    x, z = read_ts(train), read_ts(test)
    if x.kind != z.kind:
        raise DataError(f"{train} is a {x.kind} but {test} a {z.kind}; both headers must agree")
    pairs = (x.panel, x.labels), (z.panel, z.labels)
    if x.kind == "regression":
        return dataclasses.replace(Regression(name, *pairs, labels=["target"], source=source), licence=licence)
    return Classification(name, *pairs, source=source, licence=licence)
