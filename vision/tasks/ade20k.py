"""ADE20k's format (scene parsing, 150 classes): `ade20k/DIR`, the class at pixels.

DIR has `images/training/NAME.jpg`, `annotations/training/NAME.png` and the same for `validation`. A mask holds numbers
of classes from 1 on; 0 is none of them and is not asked about. Names come from `objectInfo150.txt` where it is there.

| setting | default | meaning |
|---|---|---|
| size | 224 | pixels a side; pictures are squashed to a square |
| n_train, n_test | 0 | pictures, drawn at random; 0 for all |
| seed | 0 | of that draw, and of the pixels that are asked about |
| grid | 16 | pixels asked about: one in each cell of a grid of so many a side |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsprobe.errors import DataError, reason
from tsprobe.tasks.base import Task
from vision.tasks import files, pixels

SPLITS = ("training", "validation")


@dataclass(frozen=True)
class _Settings(files.Drawn):
    grid: int = 16


def load_ade20k(name: str) -> Task:
    """Raises `DataError` for files that are missing or broken, or masks without a class; `SpecError` for settings."""
    settings, full, path = files.asked("ade20k", name, _Settings())
    root = files.folder(full, path)
    panels, maps = [], []
    for is_test, (split, n) in enumerate(zip(SPLITS, (settings.n_train, settings.n_test), strict=True)):
        found = files.some(pairs(full, root, split), n, (settings.seed, is_test))
        panels.append(files.panel(full, [picture for picture, _ in found], settings.size, split))
        maps.append(np.stack([classes(full, mask, settings.size) for _, mask in found]))
    # numbered by the training masks: pixels of a class that no training picture shows are not asked about
    known = np.unique(maps[0][maps[0] >= 0])
    number = np.full(1 + max(int(m.max()) for m in maps) + 1, -1)
    number[known] = np.arange(len(known))  # the last, of -1, stays -1
    names = names_of(root)
    labels = tuple(names.get(i + 1, f"class {i + 1}") for i in known.tolist())
    return pixels.ask(
        full, "classification", "jaccard", (panels[0], panels[1]), (number[maps[0]], number[maps[1]]), labels,
        grid=settings.grid, seed=settings.seed, source=str(root),
    )  # fmt: skip


def pairs(name: str, root: Path, split: str) -> list[tuple[Path, Path]]:
    """Pictures of a split and their masks. Raises `DataError`."""
    where = files.subfolder(name, root, (f"images/{split}",))
    masks = {p.stem: p for p in files.pictures(files.subfolder(name, root, (f"annotations/{split}",)))}
    pictures = files.pictures(where)
    lacking = next((p for p in pictures if p.stem not in masks), None)
    if lacking is not None:
        raise DataError(f"task {name!r}: the picture {lacking} has no mask in annotations/{split}")
    if not pictures:
        raise DataError(f"task {name!r}: no {split} picture")
    return [(picture, masks[picture.stem]) for picture in pictures]


def classes(name: str, mask: Path, size: int) -> np.ndarray:
    """Numbers of classes from 0 on at `size` x `size` pixels, -1 for none."""
    values = files.read_map(mask)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
        raise DataError(f"task {name!r}: {mask} holds other numbers than classes from 0 to 255")
    return files.shrink(values, size).astype(np.int64) - 1


def names_of(root: Path) -> dict[int, str]:
    """Names of classes by number, from the table that comes with the data set; none without it. Raises `DataError`."""
    file = root / "objectInfo150.txt"
    if not file.exists():
        return {}
    try:
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        return {int(row[0]): row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdecimal()}
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a table of classes ({reason(error)})") from error
