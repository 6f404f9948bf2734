"""Tree crowns in aerial pictures: `trees/crown`, their boxes (`vision.tasks.detection`), out of PyPI's `deepforest`.

The package ships four pictures of the National Ecological Observatory Network with boxes that people drew, for its own
tests (Weinstein et al. 2020; 0.1 m a pixel): two of Yellowstone, 2299 x 2472 and 1249 x 1035 pixels, and one of 400 x
400 of each of two other sites; 951 crowns. Its code is not imported, so that what it depends on is not needed. They
are found in the installed package, or in `$TSPROBE_TREES`, a folder with pictures and annotations of Pascal VOC
(`vision.tasks.voc`) beside each other.

| setting | default | meaning |
|---|---|---|
| split | picture | the largest picture is for training, the others for the test; region: the right third of each |
| size | 64 | pixels a side |
| tile | 100 | pixels a side of the tiles that pictures are cut into; they do not overlap |
| n_train, n_test | 0 | tiles, drawn at random; 0 for all |
| seed | 0 | of that draw |
| grid | 8 | places asked about: the middles of the cells of a grid of so many a side |

All trees are of one class, dead or alive. Folds hold out columns of tiles.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.detection_metrics import EXTRA
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError
from tsprobe.tasks import options
from tsprobe.tasks.base import Task, TaskInfo
from vision.tasks import detection, files, voc

SOURCE, LICENCE = "NEON tree crowns, PyPI package deepforest", "MIT"
PACKAGE, INSTALL = "deepforest", "pip install --no-deps deepforest"
_VARIABLE = "TSPROBE_TREES"
_SPLITS = ("picture", "region")
_BEYOND = 1000  # columns of tiles of a picture, at most: numbers of groups


@dataclass(frozen=True)
class _Settings:
    split: str = "picture"
    size: int = 64
    tile: int = 100
    n_train: int = 0
    n_test: int = 0
    seed: int = 0
    grid: int = 8


def folder() -> Path | None:
    """Where the pictures are; None where there are none."""
    if given := os.environ.get(_VARIABLE):
        return Path(given).expanduser()
    places = getattr(importlib.util.find_spec(PACKAGE), "submodule_search_locations", None) or ()
    return next((found for place in places if (found := Path(place) / "data").is_dir()), None)


def list_tasks() -> list[TaskInfo]:
    s = _Settings()
    return [
        TaskInfo(
            name="trees/crown", kind="detection", metric="ap", n_train=528, n_test=152, channels=3,
            length=(s.size**2, s.size**2), n_classes=1 + EXTRA, source=SOURCE, licence=LICENCE,
            here=folder() is not None, family="dense",
        )
    ]  # fmt: skip


def load_trees(name: str) -> Task:
    """Raises `UnknownNameError` for another name, `MissingPackageError` without the pictures, `SpecError` for settings,
    and `DataError` for broken files, pictures smaller than a tile, and one picture where it is split by pictures."""
    base, _, query = name.partition("?")
    if base != "crown":
        raise UnknownNameError("task", f"trees/{name}", ["trees/crown"])
    settings = options.read_settings(f"trees/{name}", query, _Settings())
    full = f"trees/{base}{options.written(settings, _Settings())}"
    files.check_size(full, settings.size)
    if settings.split not in _SPLITS or settings.tile < 1:
        raise SpecError(
            f"task {full!r}: split={settings.split!r}, tile={settings.tile}; give {' or '.join(_SPLITS)}, and pixels"
        )
    shown = voc.cut(full, [voc.annotated(full, *pair) for pair in _pairs(full)], settings.tile)
    parts = [
        files.some([each for each in shown if _is_test(each, settings.split) is is_test], n, (settings.seed, is_test))
        for is_test, n in ((False, settings.n_train), (True, settings.n_test))
    ]
    for split, part in zip(("training", "test"), parts, strict=True):
        if not part:
            raise DataError(f"task {full!r}: no {split} tile; give smaller tiles, or more pictures")
    objects = [[each.objects(lambda _: 0) for each in part] for part in parts]
    panels = [Panel(tuple(voc.pictures(part, settings.size))) for part in parts]
    columns = np.array([each.picture * _BEYOND + (each.tile.column if each.tile else 0) for each in parts[0]])
    return detection.ask(
        full, (panels[0], panels[1]), (objects[0], objects[1]), ("tree",), size=settings.size, grid=settings.grid,
        groups=columns, source=SOURCE, licence=LICENCE,
    )  # fmt: skip


def _is_test(each: voc.Shown, split: str) -> bool:
    assert each.tile is not None
    return each.picture > 0 if split == "picture" else each.tile.behind


def _pairs(name: str) -> list[tuple[Path, Path]]:
    """Pictures and annotations, the largest picture first."""
    root = folder()
    if root is None or not root.is_dir():
        raise MissingPackageError(PACKAGE, name, install=f"{INSTALL} (or set ${_VARIABLE} to its folder data)")
    found = {p.stem: p for p in files.pictures(root) if p.suffix.lower() != ".tif"}  # one is there as .tif and .png
    pairs = [(found[xml.stem], xml) for xml in sorted(root.glob("*.xml")) if xml.stem in found]
    if not pairs:
        raise DataError(f"task {name!r}: no picture with an annotation in {root}")
    return sorted(pairs, key=lambda pair: -np.prod(files.sides(pair[0])))
