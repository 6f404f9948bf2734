"""Pictures that packages ship: handwritten digits of scikit-learn, `digits/digit`, and the stamps of Tux Paint.

| task | pictures | target | metric |
|---|---|---|---|
| digits/digit | 1,797 of 8 x 8 pixels, enlarged | which digit | accuracy |
| stamps/category | photos and drawings on white | animals, food, ...: categories with at least 20 stamps | accuracy |
| stamps/segmentation | the same on blurred noise | stamp or background at pixels, from the alpha channel | mean IoU |
| stamps/caption | the same on white | the English caption | CIDEr |

Stamps are found where Debian's package puts them, or in `$TSPROBE_STAMPS`. A third of the stamps, and of the digits, is
for the test; stamps of one picture, or with one caption, are on one side.

| setting | default | meaning |
|---|---|---|
| size | 64 | pixels a side |
| seed | 0 | of the split, of the background, and of the pixels that are asked about |
| grid | 8 | pixels asked about: one in each cell of a grid of so many a side |
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.text import Question, normal
from tsprobe.errors import DataError, MissingPackageError, UnknownNameError
from tsprobe.tasks import options
from tsprobe.tasks.base import Classification, Kind, Task, TaskInfo
from tsprobe.tasks.language import Questions
from vision.images import to_panel
from vision.tasks import files, pixels

_STAMPS = ("category", "segmentation", "caption")
_LEAST = 20  # stamps of a category
_VARIABLE = "TSPROBE_STAMPS"
STAMPS_SOURCE, STAMPS_LICENCE = "Tux Paint stamps, Debian package tuxpaint-stamps-default", "GPL-2"
DIGITS_SOURCE, DIGITS_LICENCE = "digits of scikit-learn (UCI optical recognition, test set)", "CC BY 4.0"


@dataclass(frozen=True)
class _Settings:
    size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class _Dense(_Settings):
    grid: int = 8


@dataclass(frozen=True)
class Stamp:
    """A picture with an alpha channel, the folder that it lies in, and its English caption."""

    path: Path
    category: str
    caption: str


def stamps_folder() -> Path:
    return Path(os.environ.get(_VARIABLE) or "/usr/share/tuxpaint/stamps").expanduser()


# name, family, kind, metric, training and test pictures, classes or targets
_TASKS: tuple[tuple[str, str, Kind, str, int, int, int], ...] = (
    ("digits/digit", "classification", "classification", "accuracy", 1198, 599, 10),
    ("stamps/category", "classification", "classification", "accuracy", 480, 223, 8),
    ("stamps/segmentation", "dense", "classification", "jaccard", 527, 258, 2),
    ("stamps/caption", "language", "caption", "cider", 527, 258, 965),
)


def list_tasks() -> list[TaskInfo]:
    """The tasks at their default settings, from a table; no file is opened."""
    here = stamps_folder().is_dir()
    steps = _Settings().size ** 2
    return [
        TaskInfo(
            name=name,
            kind=kind,
            metric=metric,
            n_train=n_train,
            n_test=n_test,
            channels=3,
            length=(steps, steps),
            n_classes=n_classes,
            source=DIGITS_SOURCE if name.startswith("digits") else STAMPS_SOURCE,
            licence=DIGITS_LICENCE if name.startswith("digits") else STAMPS_LICENCE,
            here=here or name.startswith("digits"),
            family=family,
        )
        for name, family, kind, metric, n_train, n_test, n_classes in _TASKS
    ]


def load_digits(name: str) -> Task:
    """Raises `UnknownNameError`, `SpecError` for settings, `MissingPackageError` without Pillow."""
    base, _, query = name.partition("?")
    if base != "digit":
        raise UnknownNameError("task", f"digits/{name}", ["digits/digit"])
    from sklearn.datasets import load_digits as stored

    settings = options.read_settings(f"digits/{name}", query, _Settings())
    full = f"digits/{base}{options.written(settings, _Settings())}"
    files.check_size(full, settings.size)
    images, labels = stored(return_X_y=True)
    grey = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    series = to_panel(np.stack([files.enlarge(np.repeat(x[None], 3, 0), settings.size) for x in grey]))
    parts = _parts([str(i) for i in range(len(labels))], settings.seed)
    pairs = [(Panel(tuple(series[part])), labels[part]) for part in parts]
    return Classification(full, *pairs, source=DIGITS_SOURCE, licence=DIGITS_LICENCE)


def load_stamps(name: str) -> Task:
    """Raises `UnknownNameError`, `SpecError` for settings, `MissingPackageError` that says what to install, and
    `DataError` for files that are broken."""
    base, _, query = name.partition("?")
    if base not in _STAMPS:
        raise UnknownNameError("task", f"stamps/{name}", [f"stamps/{n}" for n in _STAMPS])
    usual = _Dense() if base == "segmentation" else _Settings()
    settings = options.read_settings(f"stamps/{name}", query, usual)
    full = f"stamps/{base}{options.written(settings, usual)}"
    files.check_size(full, settings.size)
    found = stamps(full)
    if base == "category":
        count = Counter(s.category for s in found)
        found = [s for s in found if count[s.category] >= _LEAST]
    split = [[found[i] for i in part] for part in _parts([normal(s.caption) for s in found], settings.seed)]
    if isinstance(settings, _Dense):
        return _segmentation(full, split, settings)
    panels = [files.panel(full, [s.path for s in part], settings.size, "") for part in split]
    if base == "category":
        labelled = [(panel, [s.category for s in part]) for panel, part in zip(panels, split, strict=True)]
        return Classification(full, *labelled, source=STAMPS_SOURCE, licence=STAMPS_LICENCE)
    asked = [
        (panel, [Question("what is in the picture?", (s.caption,)) for s in part])
        for panel, part in zip(panels, split, strict=True)
    ]
    return Questions(full, *asked, source=STAMPS_SOURCE, licence=STAMPS_LICENCE)


def stamps(purpose: str) -> list[Stamp]:
    """All stamps that have a caption, sorted by path, their mirrored doubles left out.

    Raises `MissingPackageError` where there are none.
    """
    root = stamps_folder()
    if not root.is_dir():
        package = "tuxpaint-stamps-default"
        where = f"apt-get install --no-install-recommends {package} (or unpack it and give its folder in "
        raise MissingPackageError(package, purpose, install=f"{where}${_VARIABLE})")
    found = []
    for path in sorted(root.rglob("*.png")):
        text = path.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip() if text.exists() else ""
        if normal(caption):
            found.append(Stamp(path, path.relative_to(root).parts[0], caption))
    if not found:
        raise DataError(f"task {purpose!r}: no stamp with a caption in {root}")
    return found


def _parts(keys: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for the test, those of one key on one side."""
    unique, number = np.unique(keys, return_inverse=True)
    test = np.random.default_rng(seed).permutation(len(unique)) < len(unique) // 3
    return np.flatnonzero(~test[number]), np.flatnonzero(test[number])


def _segmentation(name: str, split: list[list[Stamp]], settings: _Dense) -> Task:
    panels, truths = [], []
    for is_test, part in enumerate(split):
        rng = np.random.default_rng((settings.seed, is_test))
        cut = [files.read_cut_out(s.path, settings.size) for s in part]
        # blurred noise, since a plain background is told by its colour alone
        noise = [files.enlarge(rng.integers(0, 256, (3, 6, 6)).astype(np.uint8), settings.size) for _ in part]
        shown = [
            (alpha * picture + (1 - alpha) * behind + 0.5).astype(np.uint8)
            for (picture, alpha), behind in zip(cut, noise, strict=True)
        ]
        panels.append(Panel(tuple(to_panel(np.stack(shown)))))
        truths.append(np.stack([(alpha > 0.5).astype(np.int64) for _, alpha in cut]))
    return pixels.ask(
        name, "classification", "jaccard", (panels[0], panels[1]), (truths[0], truths[1]), ("background", "stamp"),
        grid=settings.grid, seed=settings.seed, source=STAMPS_SOURCE, licence=STAMPS_LICENCE,
    )  # fmt: skip
