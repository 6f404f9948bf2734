"""Tasks about the generated world, `vision/NAME`: the same few sets of pictures, asked different questions.

| task | pictures | target | metric |
|---|---|---|---|
| shape, colour, texture, floor | one object | that of the object; the floor that it stands on | accuracy |
| light | one object | from where the light comes, to the right and upwards | R² |
| presence | 1 to 4 objects | which shapes there are | AUROC |
| count | 1 to 4 objects | how many objects there are | accuracy |
| segmentation | 1 to 4 objects | the shape at pixels, or the background | mean IoU of an image |
| depth | 1 to 4 objects | the depth at pixels, in units of the nearest floor | R² |
| detection | 1 to 4 objects | which objects there are, and their boxes | AP of COCO |
| tracking | frames of clips | which object of its clip is at pixels, or the background | mean IoU of a frame |
| choice | 1 to 4 objects | which of up to four answers is right | accuracy |
| answer | 1 to 4 objects | a short answer, word for word | exact match |
| caption | 1 to 4 objects | a sentence on the picture; three are right | CIDEr |
| pointing | 2 to 4 objects | in which of 16 cells of the image lies what a phrase names, in words | exact match |
| grounding | 2 to 4 objects | the box of what a phrase names, as text: left, top, right, bottom | P@0.5 |

Boxes are those of what is seen of an object. Objects of which less than 1/256 of the picture is seen are nearly hidden,
and not to be detected (`vision.tasks.detection` says how the others are asked for). Boxes are said in whole numbers, 0
for the left or upper border of the picture and `bins` - 1 for the other: Perception Encoder's are 0 to 999. A small
decoder that learns numbers as words needs fewer; what it says is judged by the exact box.

Training frames of `tracking` are the first half of each clip, test frames the second half (`vision.tasks.tracking` says
how this differs from DAVIS). A name may carry settings, as in `vision/shape?n_train=200&shift=light`:

| setting | default | meaning |
|---|---|---|
| n_train, n_test | 600, 400 | pictures; of tracking 96 each, half the frames of whole clips; for words 1200, 400 |
| size | 64 | pixels a side, at least 32 |
| seed | 0 | other seeds give other pictures; training and test never share draws |
| grid | 8 | pixels asked about: one in each cell of a grid of so many a side, of detection the middle; of tracking 12 |
| shift | none | test pictures (of tracking all) from another domain: texture, light, palette, blur or background |
| frames | 8 | of a clip, an even number |
| of | shape | classes of objects to be detected: shape, colour, or any for one class |
| bins | 32 | numbers for a side of a box, 2 to 1000; of grounding |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.text import Question
from tsprobe.detection_metrics import EXTRA
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.tasks import options
from tsprobe.tasks.base import Classification, Kind, MultiLabel, Regression, Task, TaskInfo
from tsprobe.tasks.language import Questions
from vision.images import to_panel
from vision.tasks import boxes, detection, pixels, tracking
from vision.world import words
from vision.world.clips import clips
from vision.world.patterns import TEXTURES
from vision.world.plan import COLOURS, FLOORS, MOST, SHIFTS, Shift
from vision.world.scenes import Scenes, scenes
from vision.world.shapes import SHAPES

LICENCE = "none needed (generated)"
SOURCE = "generated pictures (vision.world)"
CELLS = 4  # a side, for pointing
_CAPTIONS = 3  # of a picture
_SEEN = 1 / 256  # of the picture, the least that is seen of an object to be detected


@dataclass(frozen=True)
class _Settings:
    n_train: int = 600
    n_test: int = 400
    size: int = 64
    seed: int = 0
    shift: str = ""


@dataclass(frozen=True)
class _Dense(_Settings):
    grid: int = 8


@dataclass(frozen=True)
class _Tracked(_Dense):
    n_train: int = 96
    n_test: int = 96
    grid: int = 12
    frames: int = 8


@dataclass(frozen=True)
class _Detected(_Dense):
    of: str = "shape"


@dataclass(frozen=True)
class _Grounded(_Settings):
    n_train: int = 1200
    bins: int = 32


_WORDS = _Settings(n_train=1200)


@dataclass(frozen=True)
class _How:
    """How a task is made: `make(name, settings)`; the rest is what a list says about it."""

    make: Callable[[str, Any], Task]
    kind: Kind
    metric: str
    n_labels: int
    settings: _Settings = _Settings()
    family: str = "classification"


def _sets(settings: _Settings, objects: tuple[int, int] = (1, MOST)) -> tuple[Scenes, Scenes]:
    """Training and test scenes; the shift is one of the test alone."""
    train, test = (
        scenes(n, size=settings.size, seed=(0, settings.seed, is_test), objects=objects, shift=shift)
        for is_test, (n, shift) in enumerate(((settings.n_train, None), (settings.n_test, _shift(settings))))
    )
    return train, test


def _shift(settings: _Settings) -> Shift | None:
    if not settings.shift:
        return None
    found = [shift for shift in SHIFTS if shift == settings.shift]
    if not found:
        raise SpecError(f"shift {settings.shift!r} is none of {', '.join(SHIFTS)}")
    return found[0]


def _panel(found: Scenes) -> Panel:
    return Panel(tuple(to_panel(found.images)))


def _of_object(attribute: str, names: tuple[str, ...]) -> Callable[[str, _Settings], Task]:
    def make(name: str, settings: _Settings) -> Task:
        pairs = [
            (_panel(s), [names[i] for i in getattr(s.plan, attribute)[:, 0]]) for s in _sets(settings, objects=(1, 1))
        ]
        return Classification(name, *pairs, source=SOURCE, licence=LICENCE)

    return make


def _floor(name: str, settings: _Settings) -> Task:
    if settings.shift == "background":
        raise SpecError(f"task {name!r}: shifted backgrounds have none of the floors {', '.join(FLOORS)}")
    pairs = [(_panel(s), [FLOORS[i] for i in s.plan.floor]) for s in _sets(settings, objects=(1, 1))]
    return Classification(name, *pairs, source=SOURCE, licence=LICENCE)


def _light(name: str, settings: _Settings) -> Task:
    pairs = [(_panel(s), s.plan.light[:, :2]) for s in _sets(settings, objects=(1, 1))]
    return replace(Regression(name, *pairs, labels=("right", "up"), source=SOURCE), licence=LICENCE)


def _presence(name: str, settings: _Settings) -> Task:
    pairs = [(_panel(s), (s.plan.shape[..., None] == np.arange(len(SHAPES))).any(1)) for s in _sets(settings)]
    return replace(MultiLabel(name, *pairs, labels=SHAPES, source=SOURCE), licence=LICENCE)


def _count(name: str, settings: _Settings) -> Task:
    pairs = [(_panel(s), s.there.sum(1)) for s in _sets(settings)]
    return Classification(name, *pairs, source=SOURCE, licence=LICENCE)


def _segmentation(name: str, settings: _Dense) -> Task:
    train, test = _sets(settings)
    return pixels.ask(
        name, "classification", "jaccard", (_panel(train), _panel(test)), (train.classes + 1, test.classes + 1),
        ("background", *SHAPES), grid=settings.grid, seed=settings.seed, source=SOURCE, licence=LICENCE,
    )  # fmt: skip


def _depth(name: str, settings: _Dense) -> Task:
    train, test = _sets(settings)
    return pixels.ask(
        name, "regression", "r2", (_panel(train), _panel(test)), (train.depth, test.depth), ("depth",),
        grid=settings.grid, seed=settings.seed, source=SOURCE, licence=LICENCE,
    )  # fmt: skip


_DETECTED: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": tuple(COLOURS), "any": ("object",)}


def _detection(name: str, settings: _Detected) -> Task:
    if settings.of not in _DETECTED:
        raise SpecError(f"task {name!r}: of={settings.of!r}; give {' or '.join(_DETECTED)}")
    splits = _sets(settings)
    objects = []
    for found in splits:
        seen = found.area >= found.size**2 * _SEEN
        shares = found.boxes / found.size
        classes = np.zeros_like(found.plan.shape) if settings.of == "any" else getattr(found.plan, settings.of)
        objects.append([
            detection.Objects.of(classes[i, seen[i]], shares[i, seen[i]]) for i in range(found.n)
        ])  # fmt: skip
    return detection.ask(
        name, (_panel(splits[0]), _panel(splits[1])), (objects[0], objects[1]), _DETECTED[settings.of],
        size=settings.size, grid=settings.grid, source=SOURCE, licence=LICENCE,
    )  # fmt: skip


def _tracking(name: str, settings: _Tracked) -> Task:
    half = settings.frames // 2
    if settings.frames < 4 or settings.frames % 2:
        raise SpecError(f"task {name!r}: frames={settings.frames}; give an even number from 4 on")
    if settings.n_train != settings.n_test or settings.n_train % half:
        raise SpecError(
            f"task {name!r}: n_train={settings.n_train}, n_test={settings.n_test}; half the {settings.frames} frames "
            f"of each clip are for training, so give equal multiples of {half}"
        )
    made = clips(
        settings.n_train // half, frames=settings.frames, size=settings.size, seed=(0, settings.seed, 2),
        shift=_shift(settings),
    )  # fmt: skip
    objects = made.frames.instance.astype(np.int64).reshape(made.n, settings.frames, settings.size, settings.size)
    return tracking.task(
        name, list(made.images), list(objects), grid=settings.grid, seed=settings.seed, source=SOURCE, licence=LICENCE
    )


def _choice(name: str, settings: _Settings) -> Task:
    return _asked(name, settings, lambda s, seed: words.questions(s, choices=True, seed=seed))


def _answer(name: str, settings: _Settings) -> Task:
    return _asked(name, settings, lambda s, seed: words.questions(s, choices=False, seed=seed))


def _caption(name: str, settings: _Settings) -> Task:
    return _asked(name, settings, _described)


def _described(found: Scenes, seed: int) -> tuple[Question, ...]:
    texts = zip(*(words.captions(found, (seed, i)) for i in range(_CAPTIONS)), strict=True)
    return tuple(Question("what is in the picture?", right) for right in texts)


def _pointing(name: str, settings: _Settings) -> Task:
    return _asked(name, settings, _where, objects=(2, MOST))


def _grounding(name: str, settings: _Grounded) -> Task:
    boxes.check_bins(name, settings.bins)
    return _asked(name, settings, lambda s, seed: _boxed(s, seed, settings.bins), objects=(2, MOST))


def _boxed(found: Scenes, seed: int, bins: int) -> tuple[Question, ...]:
    phrases, slots = words.phrases(found, seed)
    shares = found.boxes[np.arange(found.n), slots] / found.size
    return tuple(boxes.question(phrase, box, bins) for phrase, box in zip(phrases, shares, strict=True))


def _asked(
    name: str,
    settings: _Settings,
    ask: Callable[[Scenes, int], tuple[Question, ...]],
    objects: tuple[int, int] = (1, MOST),
) -> Task:
    # one seed a split: what is asked of the test must not follow the order of the training
    pairs = [
        (_panel(s), ask(s, 2 * settings.seed + is_test)) for is_test, s in enumerate(_sets(settings, objects=objects))
    ]
    return Questions(name, *pairs, source=SOURCE, licence=LICENCE)


def _where(found: Scenes, seed: int) -> tuple[Question, ...]:
    phrases, slots = words.phrases(found, seed)
    boxes = found.boxes[np.arange(found.n), slots]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / found.size
    cells = np.minimum((centres * CELLS).astype(int), CELLS - 1)
    return tuple(
        Question(f"where is {phrase}?", f"column {column + 1} row {row + 1}")
        for phrase, (column, row) in zip(phrases, cells.tolist(), strict=True)
    )


GENERATED: dict[str, _How] = {
    "shape": _How(_of_object("shape", SHAPES), "classification", "accuracy", len(SHAPES)),
    "colour": _How(_of_object("colour", tuple(COLOURS)), "classification", "accuracy", len(COLOURS)),
    "texture": _How(_of_object("texture", TEXTURES), "classification", "accuracy", len(TEXTURES)),
    "floor": _How(_floor, "classification", "accuracy", len(FLOORS)),
    "light": _How(_light, "regression", "r2", 2),
    "presence": _How(_presence, "multilabel", "auroc", len(SHAPES)),
    "count": _How(_count, "classification", "accuracy", MOST),
    "segmentation": _How(_segmentation, "classification", "jaccard", len(SHAPES) + 1, _Dense(), "dense"),
    "depth": _How(_depth, "regression", "r2", 1, _Dense(), "dense"),
    "detection": _How(_detection, "detection", "ap", len(SHAPES) + EXTRA, _Detected(), "dense"),
    "tracking": _How(_tracking, "classification", "jaccard", 58, _Tracked(), "dense"),
    "choice": _How(_choice, "choice", "accuracy", 4, _WORDS, "language"),
    "answer": _How(_answer, "answer", "exact_match", 31, _WORDS, "language"),
    "caption": _How(_caption, "caption", "cider", 40, _WORDS, "language"),
    "pointing": _How(_pointing, "answer", "exact_match", 16, _WORDS, "language"),
    "grounding": _How(_grounding, "box", "p_at_50", 4, _Grounded(), "language"),
}


def list_tasks() -> list[TaskInfo]:
    """All of them, at their default settings."""
    return [
        TaskInfo(
            name=f"vision/{name}",
            kind=how.kind,
            metric=how.metric,
            n_train=how.settings.n_train,
            n_test=how.settings.n_test,
            channels=3,
            length=(how.settings.size**2, how.settings.size**2),
            n_classes=how.n_labels,
            source=SOURCE,
            licence=LICENCE,
            here=True,
            family=how.family,
        )
        for name, how in GENERATED.items()
    ]


def load_generated(name: str) -> Task:
    """Raises `UnknownNameError` for another name, `SpecError` for a setting that there is not or makes no sense."""
    base, _, query = name.partition("?")
    if base not in GENERATED:
        raise UnknownNameError("task", f"vision/{name}", [f"vision/{n}" for n in GENERATED])
    how = GENERATED[base]
    settings = options.read_settings(f"vision/{name}", query, how.settings)
    return how.make(f"vision/{base}{options.written(settings, how.settings)}", settings)
