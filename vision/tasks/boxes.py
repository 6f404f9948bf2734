"""Boxes that phrases name, said in words: `refs/DIR`, in the manner of RefCOCO, and how a box becomes a question.

DIR has `train.jsonl` and `test.jsonl` (or `val.jsonl`), a line each such as

    {"file": "train2014/COCO_train2014_000000000009.jpg", "phrase": "the bowl on the left", "box": [1.5, 187, 611, 285]}

`file` is a picture, its path from DIR; `box` is COCO's `bbox`, left, top, width and height in pixels of the picture as
stored. A picture may be asked about more than once: its questions stay in one fold. RefCOCO itself is published as
pickles, which run code when they are loaded: they are not read here. Write such lines from their `ref_id`, `sentences`
and the `bbox` of their `ann_id`.

| setting | default | meaning |
|---|---|---|
| size | 224 | pixels a side; pictures are squashed to a square |
| n_train, n_test | 0 | phrases, drawn at random; 0 for all |
| seed | 0 | of that draw |
| bins | 32 | numbers for a side of a box, 2 to 1000 |

Answers are `left top right bottom` in whole numbers, 0 for the left or upper border of the picture and `bins` - 1 for
the other: Perception Encoder's are 0 to 999, which a pretrained decoder can say (`bins=1000`). They are scored by P@0.5
(`p_at_50`) against the exact box; what is no box is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.text import Question, normal
from tsprobe.errors import DAMAGE, DataError, SpecError, reason
from tsprobe.files import parse_json
from tsprobe.tasks.base import Task
from tsprobe.tasks.language import Questions
from vision.images import to_panel
from vision.tasks import files

_SPLITS = (("train",), ("test", "val"))
_MOST = 1000


@dataclass(frozen=True)
class _Settings(files.Drawn):
    bins: int = 32


@dataclass(frozen=True)
class _Line:
    where: str  # for messages
    path: Path
    phrase: str
    box: tuple[float, float, float, float]  # left, top, width, height


def check_bins(name: str, bins: int) -> None:
    if not 2 <= bins <= _MOST:
        raise SpecError(f"task {name!r}: bins={bins}; give 2 to {_MOST} numbers for a side of a box")


def question(phrase: str, box: Sequence[float], bins: int) -> Question:
    """Where the phrase points to, a box in shares of the picture: left, top, right, bottom."""
    left, top, right, bottom = (float(side) * (bins - 1) for side in box)
    return Question(f"where is {phrase}?", (left, top, right, bottom))


def load_refs(name: str) -> Task:
    """Raises `DataError` for files that are missing or broken, and boxes that are empty or leave their picture by more
    than a pixel; `SpecError` for settings."""
    settings, full, path = files.asked("refs", name, _Settings())
    check_bins(full, settings.bins)
    root = files.folder(full, path)
    pairs, groups = [], []
    for is_test, (names, n) in enumerate(zip(_SPLITS, (settings.n_train, settings.n_test), strict=True)):
        lines = files.some(_lines(full, root, names), n, (settings.seed, is_test))
        paths = sorted({line.path for line in lines})
        series = {p: to_panel(files.read(p, settings.size)[None])[0] for p in paths}
        sides = {p: files.sides(p) for p in paths}
        asked = [question(line.phrase, _shares(full, line, sides[line.path]), settings.bins) for line in lines]
        pairs.append((Panel(tuple(series[line.path] for line in lines)), asked))
        groups.append(np.array([paths.index(line.path) for line in lines]))
    return Questions(full, pairs[0], pairs[1], groups=groups[0], source=str(root))


def _lines(name: str, root: Path, splits: tuple[str, ...]) -> list[_Line]:
    file = next((f for split in splits if (f := root / f"{split}.jsonl").is_file()), None)
    if file is None:
        raise DataError(f"task {name!r}: no {' or '.join(f'{s}.jsonl' for s in splits)} in {root}")
    try:
        texts = file.read_text(encoding="utf-8").split("\n")  # other ends of lines may stand in a phrase
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    found = [_line(root, f"{file}, line {i}", text) for i, text in enumerate(texts, 1) if text.strip()]
    if not found:
        raise DataError(f"{file} has no line")
    return found


def _line(root: Path, where: str, text: str) -> _Line:
    try:
        row = parse_json(text)
        left, top, width, height = map(float, row["box"])
        line = _Line(where, files.below(root, row["file"]), str(row["phrase"]), (left, top, width, height))
    except DAMAGE as error:
        due = '{"file": ..., "phrase": ..., "box": [left, top, width, height]}'
        raise DataError(f"{where}: {type(error).__name__} {reason(error)}; give {due}") from error
    if not normal(line.phrase):
        raise DataError(f"{where}: the phrase {line.phrase!r} has no word")
    return line


def _shares(name: str, line: _Line, sides: tuple[int, int]) -> list[float]:
    x, y, w, h = line.box
    width, height = sides
    box = np.array([x, y, x + w, y + h])
    shares = (box / [width, height, width, height]).clip(0, 1)
    if not (files.within(x, y, x + w, y + h, width, height) and shares[0] < shares[2] and shares[1] < shares[3]):
        raise DataError(f"{line.where}: box {list(line.box)} is empty or outside a picture of {width} x {height}")
    return [float(side) for side in shares]
