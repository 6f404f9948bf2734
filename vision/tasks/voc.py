"""Pascal VOC's format: `voc/DIR?ask=presence` (which classes are in a picture) or `ask=detection` (which objects, and
their boxes: `vision.tasks.detection`).

DIR has `JPEGImages/NAME.jpg` (or another ending) and `Annotations/NAME.xml`; `ImageSets/Main/train.txt` and `val.txt`
(or `test.txt`) list names, and without them a third of the pictures, drawn at random, is for the test. The sides of a
box count pixels from 1, the last one included (Everingham et al. 2010, development kit). Objects that are marked as
`difficult` are neither right nor wrong when they are found, as in the official evaluation, and a class of which a
picture shows no others is not asked about there.

| setting | default | meaning |
|---|---|---|
| ask | presence | or detection |
| size | 224 | pixels a side; pictures are squashed to a square |
| n_train, n_test | 0 | pictures (of cut ones, tiles), drawn at random; 0 for all |
| seed | 0 | of that draw, and of the split where none is listed |
| tile | 0 | pictures are cut into tiles of so many pixels a side; 0 leaves them whole |
| grid | 16 | places asked about in detection: the middles of the cells of a grid of so many a side |

A box that the border of a tile cuts keeps what is seen of it, where that is at least half. Tiles do not overlap, and
those of a picture are on one side of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DAMAGE, DataError, SpecError, reason
from tsprobe.tasks.base import MultiLabel, Task
from vision.images import to_panel
from vision.tasks import detection, files
from vision.tasks.tiles import Tile, tiles

if TYPE_CHECKING:
    from jaxtyping import UInt8

_ASKS = ("presence", "detection")
_SPLITS = (("train",), ("val", "test"))
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Settings:
    ask: str = "presence"
    size: int = 224
    n_train: int = 0
    n_test: int = 0
    seed: int = 0
    tile: int = 0
    grid: int = 16


@dataclass(frozen=True)
class Annotated:
    """A picture of `width` x `height` pixels, and its objects: name, box in shares of the sides, whether difficult."""

    path: Path
    width: int
    height: int
    objects: tuple[tuple[str, tuple[float, float, float, float], bool], ...]

    def coded(self, number: Callable[[str], int]) -> detection.Objects:
        """Objects with a number for each name; the difficult ones are crowds, to which nothing is due."""
        easy, hard = ([o for o in self.objects if o[2] is difficult] for difficult in (False, True))
        parts = [part for group in (easy, hard) for part in ([number(o[0]) for o in group], [o[1] for o in group])]
        return detection.Objects.of(*parts)


@dataclass(frozen=True, eq=False)
class Shown:
    """What of a picture is shown: a tile of it, or all. `picture` counts the pictures of the split."""

    annotated: Annotated
    picture: int
    tile: Tile | None

    def objects(self, number: Callable[[str], int]) -> detection.Objects:
        whole = self.annotated.coded(number)
        if self.tile is None:
            return whole
        return self.tile.of_objects(whole, self.annotated.width, self.annotated.height)


def load_voc(name: str) -> Task:
    """Raises `DataError` for files that are missing or broken, objects outside their picture, pictures that are not as
    large as the annotation says or smaller than a tile, and no object to detect; `SpecError` for settings."""
    settings, full, path = files.asked("voc", name, _Settings())
    if settings.ask not in _ASKS:
        raise SpecError(f"task {full!r}: ask={settings.ask!r}; give {' or '.join(_ASKS)}")
    if settings.tile < 0:
        raise SpecError(f"task {full!r}: tile={settings.tile}; give pixels a side, or 0 for whole pictures")
    root = files.folder(full, path)
    splits = [[annotated(full, *pair) for pair in part] for part in _pairs(full, root, settings.seed)]
    names = tuple(sorted({o[0] for part in splits for each in part for o in each.objects}))
    if not names:
        raise DataError(f"task {full!r}: no picture shows an object")
    shown = [
        files.some(cut(full, part, settings.tile), n, (settings.seed, is_test))
        for is_test, (part, n) in enumerate(zip(splits, (settings.n_train, settings.n_test), strict=True))
    ]
    panels = [Panel(tuple(pictures(part, settings.size))) for part in shown]
    objects = [[each.objects(names.index) for each in part] for part in shown]
    groups = np.array([each.picture for each in shown[0]]) if settings.tile else None
    if settings.ask == "presence":
        present = [np.stack([_presence(one, len(names)) for one in part]) for part in objects]
        pairs = list(zip(panels, present, strict=True))
        return MultiLabel(full, pairs[0], pairs[1], labels=names, groups=groups, source=str(root))
    return detection.ask(
        full, (panels[0], panels[1]), (objects[0], objects[1]), names, size=settings.size, grid=settings.grid,
        groups=groups, source=str(root),
    )  # fmt: skip


def cut(name: str, part: Sequence[Annotated], side: int) -> list[Shown]:
    """The tiles of each picture, or whole pictures where `side` is 0. Raises `DataError` as `tiles` does."""
    return [
        Shown(each, i, tile)
        for i, each in enumerate(part)
        for tile in (tiles(name, each.path, each.width, each.height, side) if side else [None])
    ]


def pictures(part: Sequence[Shown], size: int) -> list[UInt8[np.ndarray, "3 S"]]:
    """As series, in order; each file is read once where its tiles follow each other. Raises `DataError`."""
    found, open_path, whole = [], None, np.empty(0)
    for each in part:
        if each.tile is None:
            one = files.read(each.annotated.path, size)
        else:
            if each.annotated.path != open_path:
                open_path, whole = each.annotated.path, files.read_whole(each.annotated.path)
            one = each.tile.of_picture(whole, size)
        found.append(to_panel(one[None])[0])
    return found


def annotated(name: str, picture: Path, xml: Path) -> Annotated:
    """A picture and its objects. Raises `DataError` for a file that is broken, a picture of another size than it says,
    and a box that is empty or leaves the picture by more than a pixel."""
    width, height = files.sides(picture)
    try:
        root = ElementTree.parse(xml).getroot()
        said = tuple(int(float(_text(root, f"size/{side}"))) for side in ("width", "height"))
        rows = [
            (_text(o, "name").strip(), [float(_text(o, f"bndbox/{s}")) for s in _SIDES], o.findtext("difficult"))
            for o in root.iter("object")
        ]
    except (OSError, *DAMAGE) as error:
        raise DataError(f"{xml} cannot be read as an annotation of Pascal VOC ({reason(error)})") from error
    if said != (width, height):
        raise DataError(
            f"task {name!r}: {picture} has {width} x {height} pixels, not {said[0]} x {said[1]} as {xml.name} says"
        )
    objects = []
    for i, (label, (left, top, right, bottom), difficult) in enumerate(rows):
        box = np.array([left - 1, top - 1, right, bottom]) / [width, height, width, height]
        a, b, c, d = (float(side) for side in box.clip(0, 1))
        inside = files.within(left - 1, top - 1, right, bottom, width, height)
        if not label or not inside or not (a < c and b < d):
            raise DataError(
                f"{xml}: object {i} ({label or 'without a name'}) has the box {left:g} {top:g} {right:g} {bottom:g}, "
                f"empty or outside a picture of {width} x {height}"
            )
        objects.append((label, (a, b, c, d), (difficult or "0").strip() == "1"))
    return Annotated(picture, width, height, tuple(objects))


def _text(node: ElementTree.Element, path: str) -> str:
    text = node.findtext(path)
    if text is None:
        raise ValueError(f"{node.tag} without {path}")
    return text


def _pairs(name: str, root: Path, seed: int) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Pictures and their annotations, for training and for the test. Raises `DataError`."""
    where = files.subfolder(name, root, ("JPEGImages",))
    found = {p.stem: p for p in files.pictures(where)}
    notes = {p.stem: p for p in sorted(files.subfolder(name, root, ("Annotations",)).glob("*.xml"))}
    lists = root / "ImageSets" / "Main"
    listed = [next((f for s in each if (f := lists / f"{s}.txt").is_file()), None) for each in _SPLITS]
    if listed[0] and listed[1]:
        names = [_listed(file) for file in listed if file]
    elif any(listed):
        raise DataError(
            f"task {name!r}: {lists} has {' and '.join(f.name for f in listed if f)} alone; list both splits"
        )
    else:
        names = list(files.a_third(sorted(found), seed))
    for split, part in zip(("training", "test"), names, strict=True):
        if not part:
            raise DataError(f"task {name!r}: no {split} picture; give at least three, or lists in {lists}")
        for what, known in (("picture in JPEGImages", found), ("annotation in Annotations", notes)):
            lacking = next((each for each in part if each not in known), None)
            if lacking is not None:
                raise DataError(f"task {name!r}: {lacking} has no {what}")
    train, test_pairs = ([(found[each], notes[each]) for each in part] for part in names)
    return train, test_pairs


def _listed(file: Path) -> list[str]:
    """Names, one a line; lists of a single class have a second column, 1 where it shows, which is not read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    return [line.split()[0] for line in lines if line.strip()]


def _presence(one: detection.Objects, count: int) -> np.ndarray:
    found = np.zeros(count)
    found[one.crowd_classes] = np.nan
    found[one.classes] = 1
    return found
