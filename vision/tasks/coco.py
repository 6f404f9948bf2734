"""COCO's format: `coco/DIR?ask=presence` (which categories are in a picture), `ask=segmentation` (at pixels), or
`ask=detection` (which objects, and their boxes: `vision.tasks.detection`).

DIR has `annotations/instances_train*.json` and `instances_val*.json` (or `instances_test*.json`), and their pictures
in `train*/`, `val*/` of the same ending, or in `images/` and folders below. Pixels belong to the smallest object that
covers them; those of crowds, and of objects whose outline is run-length encoded, are not asked about. Crowds are no
objects to detect: what is found of their category inside of their boxes is neither right nor wrong.

| setting | default | meaning |
|---|---|---|
| ask | presence | or segmentation, detection |
| size | 224 | pixels a side; pictures are squashed to a square |
| n_train, n_test | 0 | pictures, drawn at random; 0 for all |
| seed | 0 | of that draw, and of the pixels that are asked about |
| grid | 16 | pixels asked about: one in each cell of a grid of so many a side; of detection the middles |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.errors import DAMAGE, DataError, SpecError, reason
from tsprobe.files import parse_json
from tsprobe.tasks.base import MultiLabel, Task
from vision.tasks import detection, files, pixels

_ASKS = ("presence", "segmentation", "detection")


@dataclass(frozen=True)
class _Settings:
    ask: str = "presence"
    size: int = 224
    n_train: int = 0
    n_test: int = 0
    seed: int = 0
    grid: int = 16


@dataclass(frozen=True, eq=False)
class _Picture:
    path: Path
    width: int
    height: int
    objects: list[dict[str, Any]] = field(default_factory=list)


def load_coco(name: str) -> Task:
    """Raises `DataError` for files that are missing or broken, objects outside their picture, pictures that are not as
    large as the annotations say, other categories in the test, or no object to detect; `SpecError` for settings."""
    settings, full, path = files.asked("coco", name, _Settings())
    if settings.ask not in _ASKS:
        raise SpecError(f"task {full!r}: ask={settings.ask!r}; give {', '.join(_ASKS[:-1])} or {_ASKS[-1]}")
    root = files.folder(full, path)
    (train, names), (test, others) = (_split(full, root, starts) for starts in (("train",), ("val", "test")))
    if names != others:
        raise DataError(f"task {full!r}: categories of training and test differ; both files must list the same")
    splits = [
        files.some(part, n, (settings.seed, is_test))
        for is_test, (part, n) in enumerate(((train, settings.n_train), (test, settings.n_test)))
    ]
    panels = [
        files.panel(full, [p.path for p in part], settings.size, split)
        for part, split in zip(splits, ("training", "test"), strict=True)
    ]
    numbers = {category: i for i, category in enumerate(names)}
    if settings.ask == "presence":
        present = [np.array([_presence(p, numbers) for p in part]) for part in splits]
        pairs = list(zip(panels, present, strict=True))
        return MultiLabel(full, pairs[0], pairs[1], labels=tuple(names.values()), source=str(root))
    if settings.ask == "detection":
        objects = [[_objects(full, p, numbers) for p in part] for part in splits]
        return detection.ask(
            full, (panels[0], panels[1]), (objects[0], objects[1]), tuple(names.values()), size=settings.size,
            grid=settings.grid, source=str(root),
        )  # fmt: skip
    maps = [np.stack([_classes(full, p, numbers, settings.size) for p in part]) for part in splits]
    return pixels.ask(
        full, "classification", "jaccard", (panels[0], panels[1]), (maps[0], maps[1]),
        ("background", *names.values()), grid=settings.grid, seed=settings.seed, source=str(root),
    )  # fmt: skip


def _split(name: str, root: Path, starts: tuple[str, ...]) -> tuple[list[_Picture], dict[int, str]]:
    """The pictures of a split with their objects, and the names of categories by their id."""
    found = sorted(p for start in starts for p in (root / "annotations").glob(f"instances_{start}*.json"))
    if not found:
        raise DataError(f"task {name!r}: no {' or '.join(f'instances_{s}*.json' for s in starts)} in annotations")
    file = found[0]
    try:
        table = parse_json(file.read_text(encoding="utf-8"))
        names = {int(c["id"]): str(c["name"]) for c in sorted(table["categories"], key=lambda c: c["id"])}
        where = _pictures(root, file)
        pictures = {
            int(row["id"]): _Picture(files.below(where, row["file_name"]), int(row["width"]), int(row["height"]))
            for row in table["images"]
        }
        for row in table["annotations"]:
            picture = pictures[int(row["image_id"])]
            if wrong := _mistake(row, picture, names):
                raise DataError(f"{file}: object {row.get('id')} of {picture.path.name} {wrong}")
            picture.objects.append(row)
    except (OSError, *DAMAGE) as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise DataError(f"{file} cannot be read as COCO's instances ({why})") from error
    if not names:
        raise DataError(f"{file} names no category")
    return sorted(pictures.values(), key=lambda p: p.path), names


def _pictures(root: Path, file: Path) -> Path:
    ending = file.stem.removeprefix("instances_")
    places = [root / ending, root / "images" / ending, root / "images"]
    return next((place for place in places if place.is_dir()), root)


def _mistake(row: dict[str, Any], picture: _Picture, names: dict[int, str]) -> str | None:
    if int(row["category_id"]) not in names:
        return f"has the category {row['category_id']}, which the file does not name"
    x, y, width, height = map(float, row["bbox"])
    inside = files.within(x, y, x + width, y + height, picture.width, picture.height)
    if not inside or not (width > 0 and height > 0):
        return f"has the box {row['bbox']}, outside a picture of {picture.width} x {picture.height}, or empty"
    return None


def _presence(picture: _Picture, numbers: dict[int, int]) -> np.ndarray:
    found = np.zeros(len(numbers))
    found[[numbers[int(row["category_id"])] for row in picture.objects]] = 1
    return found


def _objects(name: str, picture: _Picture, numbers: dict[int, int]) -> detection.Objects:
    _check_size(name, picture)
    found: dict[bool, list[tuple[int, list[float]]]] = {False: [], True: []}
    for row in picture.objects:
        x, y, width, height = map(float, row["bbox"])
        shares = np.array([x, y, x + width, y + height]) / ([picture.width, picture.height] * 2)
        found[bool(row.get("iscrowd"))].append((numbers[int(row["category_id"])], shares.clip(0, 1).tolist()))
    parts = [part for crowd in (False, True) for part in ([c for c, _ in found[crowd]], [b for _, b in found[crowd]])]
    return detection.Objects.of(*parts)


def _check_size(name: str, picture: _Picture) -> None:
    width, height = files.sides(picture.path)
    if (width, height) != (picture.width, picture.height):
        raise DataError(
            f"task {name!r}: {picture.path} has {width} x {height} pixels, not {picture.width} x {picture.height} as "
            "the annotations say"
        )


def _classes(name: str, picture: _Picture, numbers: dict[int, int], size: int) -> np.ndarray:
    """The class at each pixel of the squashed picture, 0 for the background, -1 where it is not asked about."""
    from PIL import Image, ImageDraw

    _check_size(name, picture)
    canvas = Image.new("I", (size, size), 0)
    drawing = ImageDraw.Draw(canvas)
    scale = np.array([size / picture.width, size / picture.height])
    try:
        outlined = [(_area(row), row, _outlines(row, picture)) for row in picture.objects]
    except DAMAGE as error:
        raise DataError(f"task {name!r}: an object of {picture.path.name} {reason(error)}") from error
    for _, row, outlines in sorted(outlined, key=lambda one: -one[0]):
        if outlines is None:
            x, y, width, height = map(float, row["bbox"])
            corners = (np.array([[x, y], [x + width, y + height]]) * scale - 0.5).round().ravel().tolist()
            drawing.rectangle(corners, fill=-1)
            continue
        for outline in outlines:
            points = (outline * scale - 0.5).ravel().tolist()
            drawing.polygon(points, fill=numbers[int(row["category_id"])] + 1)
    return np.asarray(canvas).astype(np.int64)


def _area(row: dict[str, Any]) -> float:
    if row.get("area") is not None:
        return float(row["area"])
    return float(row["bbox"][2]) * float(row["bbox"][3])


def _outlines(row: dict[str, Any], picture: _Picture) -> list[np.ndarray] | None:
    """Corners `[n, 2]` of the polygons of an object, None where it has none. Raises `ValueError`."""
    polygons = row.get("segmentation")
    if row.get("iscrowd") or not isinstance(polygons, list):
        return None
    found = [np.array(polygon, float) for polygon in polygons]
    for points in found:
        if points.ndim != 1 or len(points) < 4 or len(points) % 2:
            raise ValueError("has an outline that is no list of corners, x and y of each behind one another")
        if not (np.abs(points) <= 2 * max(picture.width, picture.height)).all():  # of NaN, nothing holds
            raise ValueError(f"has an outline far outside a picture of {picture.width} x {picture.height}")
    return [points.reshape(-1, 2) for points in found]
