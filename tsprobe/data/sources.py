"""Where labelled series come from: `.ts` files by path, those that sktime ships, and those it can download.

The files are read here rather than through sktime: finding its folder does not import it (5 to 10 seconds), its reader
writes all labels in lower case, and an error here names file and line. sktime is imported for a download alone.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, MissingPackageError
from tsprobe.files import package_folder

SUFFIXES = ("_TRAIN.ts", "_TEST.ts")


@dataclass(frozen=True)
class TsFile:
    """What a `.ts` file holds: N series, and one class name or one number each.

    `labels` is an array of str `[N]` for a classification, float64 `[N]` for a regression (NaN where the file has `?`).
    """

    panel: Panel
    labels: np.ndarray
    kind: Literal["classification", "regression"]


def read_ts(path: str | os.PathLike[str]) -> TsFile:
    """Read a `.ts` file of the UCR/UEA/TSER archives, with `@classLabel` or `@targetLabel` in its header.

    One series a line: channels are separated by colons, values by commas, `?` or NaN is a missing value, the label
    comes last. Series may differ in length where the header does not deny it.

    Raises `DataError` naming the file, and the line where there is one: unreadable, no `@data`, no labels, time
    stamps, something that is not a number, channels that differ, a class that the header does not list.
    """
    path = Path(path)
    lines = _lines(path)
    tags = _header(path, lines)
    if tags.get("timestamps", ["false"])[0].lower() == "true":
        raise DataError(f"{path}: series with time stamps are not supported; resample to even steps, @timeStamps false")
    kind: Literal["classification", "regression"] = (
        "regression" if tags.get("targetlabel", ["false"])[0].lower() == "true" else "classification"
    )
    classes = tags.get("classlabel", ["false"])
    if kind == "classification" and classes[0].lower() != "true":
        raise DataError(f"{path}: no labels; the header needs '@classLabel true NAME…' or '@targetLabel true'")
    equal = tags.get("equallength", ["false"])[0].lower() == "true"
    series: list[np.ndarray] = []
    labels: list[str | float] = []
    for number, line in lines:
        x, label = _case(f"{path}, line {number}", line)
        if series and len(x) != len(series[0]):
            raise DataError(f"{path}, line {number}: {len(x)} channels, but {len(series[0])} in the first series")
        if series and equal and x.shape[1] != series[0].shape[1]:
            raise DataError(
                f"{path}, line {number}: {x.shape[1]} steps, but {series[0].shape[1]} in the first series "
                "and '@equalLength true' in the header"
            )
        if kind == "classification" and len(classes) > 1 and label not in classes[1:]:
            raise DataError(f"{path}, line {number}: class {label!r} is not in the header ({' '.join(classes[1:])})")
        series.append(x)
        labels.append(label if kind == "classification" else _number(f"{path}, line {number}", label))
    if not series:
        raise DataError(f"{path}: no series after '@data'")
    return TsFile(Panel(tuple(series)), np.array(labels), kind)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are neither empty nor comments."""
    try:
        # comments in the archives hold stray bytes; in the data such a byte is no number and is reported as that
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith(("#", "%")):
            yield number, stripped


def _header(path: Path, lines: Iterator[tuple[int, str]]) -> dict[str, list[str]]:
    """Tags, in lower case, and their values; takes the lines up to and with `@data`."""
    tags: dict[str, list[str]] = {}
    for number, line in lines:
        if not line.startswith("@"):
            raise DataError(f"{path}, line {number}: not a header tag; data must come after a line '@data'")
        tag, *values = line[1:].split() or [""]
        if tag.lower() == "data":
            return tags
        tags[tag.lower()] = values or [""]
    raise DataError(f"{path}: no line '@data', so this is not a complete .ts file")


def _case(where: str, line: str) -> tuple[np.ndarray, str]:
    """One series float32 `[C, S]` and its label."""
    *channels, label = line.split(":")
    if not channels or not label.strip():
        raise DataError(f"{where}: no label after the series; a line is VALUE,…,VALUE:LABEL with ':' between channels")
    rows = [_values(f"{where}, channel {c}", text) for c, text in enumerate(channels, start=1)]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise DataError(f"{where}: channels of {lengths} steps; a series needs one length over all its channels")
    return np.stack(rows), label.strip()


def _values(where: str, text: str) -> np.ndarray:
    parts = text.replace("?", "nan").split(",")
    try:
        x = np.array(parts, dtype=np.float64)
    except ValueError:
        wrong = next(part for part in parts if not _is_number(part))
        raise DataError(f"{where}: {wrong.strip()!r} is not a number") from None
    if (np.abs(x[np.isfinite(x)]) > np.finfo(np.float32).max).any():
        raise DataError(f"{where}: a value lies beyond float32 (3.4e38); rescale the series")
    return x.astype(np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(where: str, text: str) -> float:
    if text == "?":
        return float("nan")
    if not _is_number(text):
        raise DataError(f"{where}: target {text!r} is not a number")
    return float(text)


def find_ts(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The training and the test file that a path means.

    The path is that of either file, their common beginning (`dir/Foo` for `dir/Foo_TRAIN.ts`), or a folder that holds
    the two. Raises `DataError` that names the file which is missing.
    """
    stem = Path(path).expanduser()
    stem = stem if stem.name else stem.resolve()  # "." has no name of its own
    if not stem.name:
        raise DataError(f"{stem} names no data set; give its folder, or either of its two files")
    for suffix in SUFFIXES:
        if stem.name.lower().endswith(suffix.lower()) and len(stem.name) > len(suffix):
            stem = stem.with_name(stem.name[: -len(suffix)])
    if stem.is_dir() and not _pair(stem)[0].is_file():
        named = stem / stem.name
        found = sorted(stem.glob("*" + SUFFIXES[0])) or sorted(stem.glob("*" + SUFFIXES[1]))
        if len(found) > 1 and not _pair(named)[0].is_file():
            raise DataError(f"{stem}: holds {len(found)} data sets; give the path of one, as {found[0]}")
        stem = named if len(found) != 1 else found[0].with_name(re.sub(r"_(TRAIN|TEST)\.ts$", "", found[0].name))
    train, test = _pair(stem)
    for file, other in ((train, test), (test, train)):
        if not file.is_file():
            beside = f" beside {other}" if other.is_file() else ""
            raise DataError(f"no file {file}{beside}; a task needs NAME{SUFFIXES[0]} and NAME{SUFFIXES[1]}")
    return train, test


def _pair(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + SUFFIXES[0]), stem.with_name(stem.name + SUFFIXES[1])


def bundled_folder(name: str) -> Path | None:
    """The folder of a data set that the installed sktime ships; None where there is none. Does not import sktime."""
    package = package_folder("sktime")
    if package is None:
        return None
    folder = package / "datasets" / "data" / name
    return folder if all(file.is_file() for file in _pair(folder / name)) else None


def cache_folder() -> Path:
    """Where downloads are kept: `$TSPROBE_CACHE`, or `tsprobe` in the user's cache folder."""
    own = os.environ.get("TSPROBE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "tsprobe"


def download(name: str) -> Path:
    """The folder of an archive data set, fetched by sktime's downloader into `cache_folder()` when it is not there.

    Raises `DataError` when it cannot be had, `MissingPackageError` without sktime.
    """
    root = cache_folder() / "archive"
    folder = root / name
    files = _pair(folder / name)
    if all(file.is_file() for file in files):
        return folder
    if find_spec("sktime") is None:
        raise MissingPackageError("sktime", f"downloading {name}")
    reason = "the download holds no such files"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sktime and its imports warn about themselves
            from sktime.datasets import load_UCR_UEA_dataset

            load_UCR_UEA_dataset(name, split="test", extract_path=str(root))
    except (RuntimeError, OSError, ValueError) as error:
        # sktime strings its attempts together; the last words say why the last one failed
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rsplit(": ", 1)[-1].strip("<>")[:160]
    if all(file.is_file() for file in files):
        return folder
    raise DataError(
        f"{name} is not among the data sets that sktime ships and could not be downloaded ({reason}); "
        f"give its files by path instead: ts/FOLDER with {files[0].name} and {files[1].name}"
    )
