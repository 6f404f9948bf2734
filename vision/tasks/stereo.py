"""Depth from two real stereo pairs with a measured disparity, `stereo/depth`: relative inverse depth at pixels.

| picture | where it comes from | pixels | measured |
|---|---|---|---|
| motorcycle | Middlebury 2014 (Scharstein et al.), at a quarter, in PyPI's `scikit-image` | 741 x 500 | 93 % |
| aloe | Middlebury 2006 (Hirschmüller & Scharstein), in Debian's `opencv-doc` | 1282 x 1110 | 97 % |

The left picture of a pair is shown, in square tiles that do not overlap. Disparity is a constant of the camera over
depth. Those constants differ between pictures, so the target is the disparity less its median, divided by the mean
distance from it, over the measured pixels of a whole picture (Ranftl et al. 2020, MiDaS, equations 5 and 6). Pixels
that were not measured are not asked about.

Pictures are found in the installed packages, whose code is not imported, or in `$TSPROBE_MOTORCYCLE`, a folder with
`motorcycle_left.png` and `motorcycle_disp.npz`, and `$TSPROBE_ALOE`, one with `aloeL.jpg` and `aloeGT.png`.

| setting | default | meaning |
|---|---|---|
| train | both | or motorcycle, aloe: which picture's tiles are for training |
| test | region | the right third of the pictures of the training; or the other picture, motorcycle or aloe |
| size | 64 | pixels a side |
| tiles | 8 | tiles along the shorter side of a picture |
| n_train, n_test | 0 | tiles, drawn at random; 0 for all |
| seed | 0 | of that draw, and of the pixels that are asked about |
| grid | 8 | pixels asked about: one in each cell of a grid of so many a side |

Folds hold out columns of tiles.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError, reason
from tsprobe.files import read_arrays
from tsprobe.tasks import options
from tsprobe.tasks.base import Task, TaskInfo
from vision.images import to_panel
from vision.tasks import files, pixels
from vision.tasks.tiles import Tile, tiles

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

SOURCE = "Middlebury stereo, PyPI package scikit-image and Debian package opencv-doc"
LICENCE = "research use (Middlebury), as the packages redistribute them"
PICTURES = ("motorcycle", "aloe")
_BEYOND = 1000  # columns of tiles of a picture, at most: numbers of groups
_DEBIAN = "/usr/share/doc/opencv-doc/examples/data"


@dataclass(frozen=True)
class _Settings:
    train: str = "both"
    test: str = "region"
    size: int = 64
    tiles: int = 8
    n_train: int = 0
    n_test: int = 0
    seed: int = 0
    grid: int = 8


@dataclass(frozen=True)
class _Files:
    """Where a picture and its disparities are; how the package is called and installed that brings them."""

    picture: str
    disparity: str
    variable: str
    package: str
    install: str


_OF = {
    "motorcycle": _Files(
        "motorcycle_left.png", "motorcycle_disp.npz", "TSPROBE_MOTORCYCLE", "scikit-image",
        "pip install --no-deps scikit-image",
    ),
    "aloe": _Files(
        "aloeL.jpg", "aloeGT.png", "TSPROBE_ALOE", "opencv-doc",
        "apt-get install --no-install-recommends opencv-doc; where documentation is left out of an installation, "
        "apt-get download opencv-doc && dpkg-deb -x opencv-doc_*.deb FOLDER",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Piece:
    """A tile of a picture, `picture` of its number, with the relative inverse depth of its pixels."""

    picture: int
    tile: Tile
    shown: UInt8[np.ndarray, "3 H W"]
    depth: Float64[np.ndarray, "H W"]


def folder(picture: str) -> Path | None:
    """Where the files of a picture are; None where they are not."""
    what = _OF[picture]
    if given := os.environ.get(what.variable):
        places = [Path(given).expanduser()]
    elif picture == "aloe":
        places = [Path(_DEBIAN)]
    else:
        known = getattr(importlib.util.find_spec("skimage"), "submodule_search_locations", None) or ()
        places = [Path(place) / "data" for place in known]
    return next((p for p in places if (p / what.picture).is_file() and (p / what.disparity).is_file()), None)


def list_tasks() -> list[TaskInfo]:
    s = _Settings()
    return [
        TaskInfo(
            name="stereo/depth", kind="regression", metric="r2", n_train=112, n_test=48, channels=3,
            length=(s.size**2, s.size**2), n_classes=1, source=SOURCE, licence=LICENCE,
            here=all(folder(p) is not None for p in PICTURES), family="dense",
        )
    ]  # fmt: skip


def load_stereo(name: str) -> Task:
    """Raises `UnknownNameError` for another name, `MissingPackageError` without the pictures, `SpecError` for settings,
    and `DataError` for broken files and pictures without a measured pixel."""
    base, _, query = name.partition("?")
    if base != "depth":
        raise UnknownNameError("task", f"stereo/{name}", ["stereo/depth"])
    settings = options.read_settings(f"stereo/{name}", query, _Settings())
    full = f"stereo/{base}{options.written(settings, _Settings())}"
    _check(full, settings)
    train = PICTURES if settings.train == "both" else (settings.train,)
    if settings.test == "region":
        every = [piece for one in train for piece in _pieces(full, one, settings)]
        splits = [[p for p in every if p.tile.behind is is_test] for is_test in (False, True)]
    else:
        splits = [_pieces(full, one, settings) for one in (settings.train, settings.test)]
    parts = [
        files.some(split, n, (settings.seed, is_test))
        for is_test, (split, n) in enumerate(zip(splits, (settings.n_train, settings.n_test), strict=True))
    ]
    panels = [Panel(tuple(to_panel(np.stack([piece.shown for piece in part])))) for part in parts]
    depths = [np.stack([piece.depth for piece in part]) for part in parts]
    return pixels.ask(
        full, "regression", "r2", (panels[0], panels[1]), (depths[0], depths[1]), ("inverse depth",),
        grid=settings.grid, seed=settings.seed, groups=_columns(parts[0]), source=SOURCE, licence=LICENCE,
    )  # fmt: skip


def _check(name: str, settings: _Settings) -> None:
    files.check_size(name, settings.size)
    if settings.train not in (*PICTURES, "both") or settings.test not in (*PICTURES, "region"):
        raise SpecError(
            f"task {name!r}: train={settings.train!r}, test={settings.test!r}; train on both, {' or '.join(PICTURES)}, "
            f"and test on region, {' or '.join(PICTURES)}"
        )
    if settings.test != "region" and settings.train in ("both", settings.test):
        raise SpecError(f"task {name!r}: {settings.test} is for training too; test on another picture, or on region")
    if settings.tiles < 2:
        raise SpecError(f"task {name!r}: tiles={settings.tiles}; give at least 2 along the shorter side")


def _columns(part: Sequence[_Piece]) -> np.ndarray:
    return np.array([piece.picture * _BEYOND + piece.tile.column for piece in part])


def _pieces(name: str, which: str, settings: _Settings) -> list[_Piece]:
    what, where = _OF[which], folder(which)
    if where is None:
        raise MissingPackageError(
            what.package, f"{name} ({what.picture})", install=f"{what.install} (or set ${what.variable} to its folder)"
        )
    picture = files.read_whole(where / what.picture)
    values = _relative(name, where / what.disparity)
    if values.shape != picture.shape[1:]:
        raise DataError(
            f"task {name!r}: {what.disparity} has {values.shape[1]} x {values.shape[0]} pixels, {what.picture} has "
            f"{picture.shape[2]} x {picture.shape[1]}"
        )
    side = min(values.shape) // settings.tiles
    if side < 1:
        raise SpecError(f"task {name!r}: tiles={settings.tiles}; {what.picture} has {min(values.shape)} pixels there")
    found = tiles(name, what.picture, values.shape[1], values.shape[0], side)
    number = PICTURES.index(which)
    return [
        _Piece(number, tile, tile.of_picture(picture, settings.size), tile.of_map(values, settings.size))
        for tile in found
    ]


def _relative(name: str, path: Path) -> Float64[np.ndarray, "h w"]:
    """Disparities less their median, over the mean distance from it; NaN where nothing was measured."""
    values = _stored(path).astype(np.float64)
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        raise DataError(f"task {name!r}: no pixel of {path} was measured")
    apart = values - np.median(values[known])
    spread = np.abs(apart[known]).mean()
    if spread == 0:
        raise DataError(f"task {name!r}: all pixels of {path} have the same disparity")
    return np.where(known, apart / spread, np.nan)


def _stored(path: Path) -> np.ndarray:
    if path.suffix != ".npz":
        return files.read_map(path)
    try:
        values = next(iter(read_arrays(path).values()), np.zeros(0))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)})") from error
    if values.ndim != 2 or not values.size or values.dtype.kind not in "uif":
        raise DataError(f"{path} has shape {list(values.shape)} of {values.dtype}; give one number a pixel, [H, W]")
    return values
