"""Fashion-MNIST (Xiao et al. 2017), `fashion/item`: which of ten kinds of clothing, of 28 x 28 grey pixels, enlarged.

The files are found where Debian's package `dataset-fashion-mnist` puts them, or in `$TSPROBE_FASHION`, in the format of
MNIST, compressed or not. Test pictures are those of the official test set.

| setting | default | meaning |
|---|---|---|
| size | 64 | pixels a side |
| n_train, n_test | 2000, 1000 | pictures, drawn at random; 0 for all 60,000 and 10,000 |
| seed | 0 | of that draw |
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DAMAGE, DataError, MissingPackageError, UnknownNameError, reason
from tsprobe.tasks import options
from tsprobe.tasks.base import Classification, Task, TaskInfo
from vision.images import to_panel
from vision.tasks import files

ITEMS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SOURCE, LICENCE = "Fashion-MNIST, Debian package dataset-fashion-mnist", "MIT"
_VARIABLE = "TSPROBE_FASHION"
_PARTS = ("train", "t10k")
_LARGEST = 1 << 28  # bytes of a file once unpacked: the real ones have 47 million


@dataclass(frozen=True)
class _Settings:
    size: int = 64
    n_train: int = 2000
    n_test: int = 1000
    seed: int = 0


def folder() -> Path:
    return Path(os.environ.get(_VARIABLE) or "/usr/share/datasets/fashion-mnist").expanduser()


def list_tasks() -> list[TaskInfo]:
    s = _Settings()
    return [
        TaskInfo(
            name="fashion/item", kind="classification", metric="accuracy", n_train=s.n_train, n_test=s.n_test,
            channels=3, length=(s.size**2, s.size**2), n_classes=len(ITEMS), source=SOURCE, licence=LICENCE,
            here=_file("train-images-idx3-ubyte") is not None,
        )
    ]  # fmt: skip


def load_fashion(name: str) -> Task:
    """Raises `UnknownNameError` for another name, `MissingPackageError` without the files, `DataError` for broken
    ones, `SpecError` for settings."""
    base, _, query = name.partition("?")
    if base != "item":
        raise UnknownNameError("task", f"fashion/{name}", ["fashion/item"])
    settings = options.read_settings(f"fashion/{name}", query, _Settings())
    full = f"fashion/{base}{options.written(settings, _Settings())}"
    files.check_size(full, settings.size)
    pairs = []
    for is_test, (part, n) in enumerate(zip(_PARTS, (settings.n_train, settings.n_test), strict=True)):
        pictures, labels = _read(f"{part}-images-idx3-ubyte", 3), _read(f"{part}-labels-idx1-ubyte", 1)
        if len(pictures) != len(labels) or labels.max(initial=0) >= len(ITEMS):
            raise DataError(
                f"task {full!r}: {len(pictures)} {part} pictures and {len(labels)} labels from 0 to 9 are due"
            )
        rows = files.some(range(len(labels)), n, (settings.seed, is_test))
        grown = np.stack([files.enlarge(np.repeat(pictures[i][None], 3, 0), settings.size) for i in rows])
        pairs.append((Panel(tuple(to_panel(grown))), [ITEMS[labels[i]] for i in rows]))
    return Classification(full, *pairs, source=SOURCE, licence=LICENCE)


def _file(name: str) -> Path | None:
    return next((p for p in (folder() / f"{name}.gz", folder() / name) if p.is_file()), None)


def _read(name: str, axes: int) -> np.ndarray:
    """An array in MNIST's format: a magic number, the sizes of the axes, bytes."""
    file = _file(name)
    if file is None:
        raise MissingPackageError("dataset-fashion-mnist", f"{name} (or set {_VARIABLE} to its folder)")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
            content = handle.read(_LARGEST + 1)
    except (OSError, *DAMAGE) as error:
        raise DataError(f"{file} cannot be read ({reason(error)})") from error
    head = 4 + 4 * axes
    if len(content) < head or content[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{file} is not in MNIST's format with {axes} axes")
    sizes = struct.unpack(f">{axes}I", content[4:head])
    if len(content) - head != math.prod(sizes):
        raise DataError(f"{file} holds {len(content) - head} bytes, and its head says {list(sizes)}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)
