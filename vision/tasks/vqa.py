"""VQA's format: `vqa/DIR`, a short answer to a question about a picture, the one that most annotators gave.

DIR has `*train*_questions.json` and `*train*_annotations.json`, the same with `val`, and the pictures, whose names end
in the number of the image, as `COCO_train2014_000000000009.jpg` or `9.png`, in `train*/`, `val*/` or any folder below.

| setting | default | meaning |
|---|---|---|
| size | 224 | pixels a side; pictures are squashed to a square |
| n_train, n_test | 0 | questions, drawn at random; 0 for all |
| seed | 0 | of that draw |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.text import Question, normal
from tsprobe.errors import DAMAGE, DataError, reason
from tsprobe.files import parse_json
from tsprobe.tasks.base import Task
from tsprobe.tasks.language import Questions
from vision.images import to_panel
from vision.tasks import files

_NUMBER = re.compile(r"(\d+)$")


def load_vqa(name: str) -> Task:
    """Raises `DataError` for files that are missing or broken, `SpecError` for settings."""
    settings, full, path = files.asked("vqa", name, files.Drawn())
    root = files.folder(full, path)
    pairs, groups = [], []
    for is_test, (split, n) in enumerate((("train", settings.n_train), ("val", settings.n_test))):
        asked = files.some(_asked(full, root, split), n, (settings.seed, is_test))
        pictures = _pictures(full, root, split)
        lacking = next((image for image, _ in asked if image not in pictures), None)
        if lacking is not None:
            raise DataError(f"task {full!r}: no picture of image {lacking} below {root}")
        images = sorted({image for image, _ in asked})
        series = {image: to_panel(files.read(pictures[image], settings.size)[None])[0] for image in images}
        pairs.append((Panel(tuple(series[image] for image, _ in asked)), [question for _, question in asked]))
        number = {image: i for i, image in enumerate(images)}
        groups.append(np.array([number[image] for image, _ in asked]))
    return Questions(full, pairs[0], pairs[1], groups=groups[0], source=str(root))


def _asked(name: str, root: Path, split: str) -> list[tuple[int, Question]]:
    """The image and the question, in the order of the file; without those whose answer has no word or number."""
    questions, annotations = (_read(name, root, split, what) for what in ("questions", "annotations"))
    try:
        answers = {int(row["question_id"]): str(row["multiple_choice_answer"]) for row in annotations}
        asked = [
            (int(row["image_id"]), Question(str(row["question"]), answers[int(row["question_id"])]))
            for row in questions
        ]
    except DAMAGE as error:
        raise DataError(
            f"task {name!r}: a {split} question is not as VQA has it ({type(error).__name__}: {reason(error)})"
        ) from error
    found = [(image, question) for image, question in asked if normal(str(question.answer))]
    if not found:
        raise DataError(f"task {name!r}: no {split} question with an answer")
    return found


def _read(name: str, root: Path, split: str, what: str) -> list[dict[str, Any]]:
    found = sorted(root.glob(f"*{split}*_{what}.json"))
    if not found:
        raise DataError(f"task {name!r}: no *{split}*_{what}.json in {root}")
    try:
        rows = parse_json(found[0].read_text(encoding="utf-8"))[what]
    except (OSError, *DAMAGE) as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise DataError(f"{found[0]} cannot be read as VQA's {what} ({why})") from error
    if not isinstance(rows, list):
        raise DataError(f"{found[0]}: {what} is no list")
    return rows


def _pictures(name: str, root: Path, split: str) -> dict[int, Path]:
    """Files by the number that their name ends in; those of a folder of the split alone, where there is one."""
    folders = [p for p in sorted(root.rglob(f"{split}*")) if p.is_dir()]
    paths = [path for where in folders or [root] for path in files.pictures(where)]
    return {int(number[1]): path for path in paths if (number := _NUMBER.search(path.stem))}
