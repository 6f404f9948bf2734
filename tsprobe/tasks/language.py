"""Questions about series, answered in words: `language/NAME`, and the user's own.

`choice` (which of four answers is right), `pair` (the same about two series, the channels), `answer` (a short answer,
word for word), `grounding` (from which step to which) and `caption` (a sentence on the whole series) are generated
(`tsprobe.data.questions`, `tsprobe.data.captions`). A name may carry settings, as in
`language/choice?n_train=600&seed=1`:

| setting | default | meaning |
|---|---|---|
| n_train, n_test | 1200, 400 | number of series, with one question each |
| length | 512 | steps of each, a multiple of 32 and at least 128 |
| seed | 0 | other seeds give other series; training and test never share draws |
| about | all | kinds of question of choice, pair and answer, as in `about=trend+noise` |

What a decoder scores that does not see the series is the chance level of these tasks: the control `chance`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from tsprobe.data.captions import describe
from tsprobe.data.panel import Panel
from tsprobe.data.questions import KINDS, PAIRED, Asking, ask, locate
from tsprobe.data.text import Asked, Question, normal, numbered
from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.files import package_folder, parse_json, read_arrays
from tsprobe.language_metrics import cider_library
from tsprobe.tasks import options
from tsprobe.tasks.base import Kind, Task, TaskInfo, series_and

METRICS: dict[str, str] = {
    "choice": "accuracy",
    "answer": "exact_match",
    "grounding": "interval_iou",
    "box": "p_at_50",
    "caption": "cider",
}
LICENCE = "none needed (generated)"
SOURCE = "generated series and questions (tsprobe.data.questions)"


@dataclass(frozen=True, eq=False)
class LanguageTask(Task):
    """One question about each series. Targets are int64 `[N]`; float64 `[N, 2]` for grounding, the borders of spans,
    and `[N, 4]` for boxes, their left, top, right and bottom.

    They count the choices of a row, or the texts of `labels`, which are all short answers in their normal form. For
    captions they are float64 `[N, K]`: the words of a reference, numbered from 1 in the order of `labels`, a 0, those
    of the next one, and zeros to the end.
    """

    questions_train: tuple[Question, ...] = ()
    questions_test: tuple[Question, ...] = ()

    @cached_property
    def asked(self) -> Asked:
        """What a probe is told: of the test, no answers."""
        test = tuple(replace(question, answer="") for question in self.questions_test)
        return Asked(self.questions_train, test, self.labels if self.kind in ("answer", "caption") else ())

    def fingerprint(self) -> str:
        questions = repr((self.questions_train, self.questions_test))
        return hashlib.sha256((super().fingerprint() + questions).encode()).hexdigest()


def Questions(
    name: str,
    train: tuple[Any, Sequence[Question]],
    test: tuple[Any, Sequence[Question]],
    *,
    groups: Any = None,
    ordered: bool = False,
    source: str = "user",
    licence: str = "not declared",
) -> LanguageTask:
    """A task of one question about each series; `train` and `test` are pairs (series, questions).

    Series are anything that `as_panel` takes, each followed by a `Question(question, answer, choices=None)`. All have
    choices (metric accuracy), none has (exact match), all answers are pairs of steps (mean intersection over union),
    all are four sides of a box (share of those with an intersection over union of 0.5 or more), or all are captions,
    tuples of one or more texts (CIDEr). `groups [N_train]` and `ordered` are as in `Classification`;
    give them where a series is asked about twice.

    Raises `DataError`: not one question a series, questions of unlike kinds, an empty question, an answer without a
    word or a number, choices that are less than two, alike, or without the answer, a span that is empty or outside its
    series, a box that is empty or begins below 0.
    `MissingPackageError` for captions without the package that scores them.
    """
    parts = [_split(name, split, pair) for split, pair in (("training", train), ("test", test))]
    kinds = {_kind_of(question) for _, questions in parts for question in questions}
    if len(kinds) != 1:
        raise DataError(f"task {name!r}: questions of kinds {', '.join(sorted(kinds))}; make one task of each")
    (kind,) = kinds
    for split, (panel, questions) in zip(("training", "test"), parts, strict=True):
        for i, (question, length) in enumerate(zip(questions, panel.lengths.tolist(), strict=True)):
            if wrong := _mistake(question, length):
                raise DataError(f"task {name!r}: {split} question {i} {wrong}")
    if kind == "caption":
        cider_library()  # before anything is read or trained
        if parts[1][0].n < 2:  # a word of every series weighs nothing, and then all are
            raise DataError(f"task {name!r}: captions of one test series; CIDEr compares two or more")
    labels = _labels(kind, [question for _, questions in parts for question in questions])
    y = _targets(kind, [questions for _, questions in parts], labels)
    return LanguageTask(
        name, "language", kind, METRICS[kind], parts[0][0], parts[1][0], y[0], y[1], labels,
        None if groups is None else np.asarray(groups), ordered, source, licence,
        questions_train=parts[0][1], questions_test=parts[1][1],
    )  # fmt: skip


def load_questions(path: str | os.PathLike[str]) -> LanguageTask:
    """The task in a folder, which it is named after: `series.npz` with arrays `train` and `test`, `[N, C, S]` or
    `[N, S]`, and `questions.jsonl` with a question a line, such as

        {"split": "train", "series": 0, "question": "what is the trend?", "answer": "it rises"}

    `series` counts from 0 and may be asked about more than once. `choices` may follow, a list of texts; the answer of
    a question for grounding is a pair of steps, `[64, 96]`, or the sides of a box, `[3, 5, 20, 31]`, and for a caption
    a list of texts that are all right.
    Raises `DataError` for a file that is missing, a line or an array that is none of these, and as `Questions` does.
    """
    folder = Path(path).expanduser()
    series, lines = _read_series(folder / "series.npz"), _read_lines(folder / "questions.jsonl")
    parts = {}
    for split in ("train", "test"):
        asked = [(i, q) for name, i, q in lines if name == split]
        if not asked:
            raise DataError(f'{folder / "questions.jsonl"}: no {split} question; give lines with "split": "{split}"')
        n, most = len(series[split]), max(i for i, _ in asked)
        if most >= n:
            raise DataError(f"{folder / 'questions.jsonl'}: {split} series {most}, of {n} (they count from 0)")
        parts[split] = [i for i, _ in asked], [q for _, q in asked]
    pairs = [(series[split][at], questions) for split, (at, questions) in parts.items()]
    return Questions(folder.resolve().name, *pairs, groups=np.array(parts["train"][0]), source=str(folder))


def _read_series(file: Path) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(file)
        series = {split: arrays[split] for split in ("train", "test")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({error}); it must hold arrays train and test, [N, C, S]") from error
    for split, array in series.items():
        if array.ndim not in (2, 3):
            raise DataError(f"{file}: {split} has shape {list(array.shape)}; give [N, C, S] or [N, S]")
    return series


def _read_lines(file: Path) -> list[tuple[str, int, Question]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            found.append(_read_question(**row))
        except (ValueError, TypeError) as error:  # no JSON, other keys, other types
            raise DataError(f"{file}, line {number}: {str(error).removeprefix('_read_question() ')}") from error
    return found


def _read_question(
    split: str, series: int, question: str, answer: Any, choices: Any = None
) -> tuple[str, int, Question]:
    if split not in ("train", "test"):
        raise ValueError(f'split is {split!r}; give "train" or "test"')
    if not isinstance(series, int) or series < 0:
        raise ValueError(f"series is {series!r}; give its number, from 0 on")
    texts = [question, *(choices or ())] + ([] if isinstance(answer, list) else [answer])
    if not all(isinstance(text, str) for text in texts) or not isinstance(choices, (list, type(None))):
        raise ValueError(
            "question, answer and choices must be texts; the answer may be a pair of steps, a box, or several texts"
        )
    said = tuple(answer) if isinstance(answer, list) else answer
    return split, series, Question(question, said, None if choices is None else tuple(choices))


def _split(name: str, split: str, pair: Any) -> tuple[Panel, tuple[Question, ...]]:
    panel, raw = series_and(name, pair, "train" if split == "training" else split, "questions")
    questions = tuple(raw)
    if len(questions) != panel.n:
        raise DataError(f"task {name!r}: {panel.n} {split} series but {len(questions)} questions; give one each")
    other = next((q for q in questions if not isinstance(q, Question)), None)
    if other is not None:
        raise DataError(f"task {name!r}: a {type(other).__name__} is no question; give Question(question, answer)")
    return panel, questions


def _kind_of(question: Question) -> Kind:
    if not isinstance(question.answer, str):
        return "caption" if question.is_caption else "box" if question.is_box else "grounding"
    return "answer" if question.choices is None else "choice"


def _mistake(question: Question, length: int) -> str | None:
    """What is wrong with a question about a series of that length."""
    if not normal(question.question):
        return f"is {question.question!r}, which has no word"
    if question.is_caption and question.choices is not None:
        return f"has choices and the answer {question.answer!r}; give one text, or no choices for a caption"
    if question.is_box:
        return _box_mistake(question.answer)
    if not isinstance(question.answer, str) and not question.is_caption:
        span: Any = question.answer
        try:
            a, b = span
        except (TypeError, ValueError):
            return f"has the answer {span!r}; give a text, a pair of steps, or the four sides of a box"
        if not all(isinstance(step, (int, np.integer)) for step in (a, b)):
            return f"has the span {span}; give whole steps"
        low, high = int(a), int(b)
        return None if 0 <= low < high <= length else f"has the span {(low, high)} in a series of {length} steps"
    given = question.choices or question.answer_texts
    texts = [normal(text) for text in given]
    empty = [text for text, form in zip(given, texts, strict=True) if not form]
    if empty:
        return f"has the {'choice' if question.choices else 'answer'} {empty[0]!r}, which has no word or number"
    if question.choices is None:
        return None
    if len(set(texts)) != len(texts) or len(texts) < 2:
        return f"has the choices {list(question.choices)}; give two or more that differ"
    if normal(question.answer_texts[0]) not in texts:
        return f"has the answer {question.answer!r}, which is none of its choices {list(question.choices)}"
    return None


def _box_mistake(sides: Any) -> str | None:
    try:
        left, top, right, bottom = map(float, sides)
    except (TypeError, ValueError):
        return f"has the box {sides}; give four numbers"
    if 0 <= left < right < np.inf and 0 <= top < bottom < np.inf:
        return None
    return f"has the box {tuple(sides)}; give left, top, right and bottom, from 0 on, of a box that is not empty"


def _labels(kind: Kind, questions: Sequence[Question]) -> tuple[str, ...]:
    if kind == "grounding":
        return "start", "stop"
    if kind == "box":
        return "left", "top", "right", "bottom"
    if kind in ("answer", "caption"):
        texts = {normal(text) for question in questions for text in question.answer_texts}
        return tuple(sorted(texts if kind == "answer" else {word for text in texts for word in text.split()}))
    return tuple(f"choice {i + 1}" for i in range(max(len(question.choices or ()) for question in questions)))


def _targets(kind: Kind, splits: Sequence[Sequence[Question]], labels: tuple[str, ...]) -> list[np.ndarray]:
    """Of the training and the test questions."""
    if kind in ("grounding", "box"):
        return [np.array([question.answer for question in questions], np.float64) for questions in splits]
    if kind == "caption":
        known = {word: i for i, word in enumerate(labels, 1)}
        rows = [[[n for text in q.answer_texts for n in (*numbered(text, known), 0)] for q in qs] for qs in splits]
        width = max(len(row) for part in rows for row in part)
        return [np.array([row + [0] * (width - len(row)) for row in part], np.float64) for part in rows]
    found = []
    for questions in splits:
        options = [labels if q.choices is None else tuple(map(normal, q.choices)) for q in questions]
        right = [of.index(normal(q.answer_texts[0])) for of, q in zip(options, questions, strict=True)]
        found.append(np.array(right, np.int64))
    return found


@dataclass(frozen=True)
class _Generated:
    make: Callable[..., Asking]
    options: dict[str, Any]
    kind: Kind
    n_labels: int
    channels: int = 1


GENERATED = {
    "choice": _Generated(ask, {"choices": True}, "choice", 4),
    "pair": _Generated(ask, {"choices": True, "about": PAIRED}, "choice", 4, 2),
    "answer": _Generated(ask, {"choices": False}, "answer", 25),
    "grounding": _Generated(locate, {}, "grounding", 2),
    "caption": _Generated(describe, {}, "caption", 80),
}


@dataclass(frozen=True)
class _Settings:
    n_train: int = 1200
    n_test: int = 400
    length: int = 512
    seed: int = 0
    about: str = ""


def list_tasks() -> list[TaskInfo]:
    """All of them, at their default settings."""
    s = _Settings()
    return [
        TaskInfo(
            name=f"language/{name}",
            kind=how.kind,
            metric=METRICS[how.kind],
            n_train=s.n_train,
            n_test=s.n_test,
            channels=how.channels,
            length=(s.length, s.length),
            n_classes=how.n_labels,
            source=SOURCE,
            licence=LICENCE,
            here=how.kind != "caption" or package_folder("pycocoevalcap") is not None,
            family="language",
        )
        for name, how in GENERATED.items()
    ]


def load_language(name: str) -> LanguageTask:
    """Raises `UnknownNameError` for another name, `SpecError` for a setting that there is not or makes no sense."""
    base, _, query = name.partition("?")
    if base not in GENERATED:
        raise UnknownNameError("task", f"language/{name}", [f"language/{n}" for n in GENERATED])
    settings, how = options.read_settings(f"language/{name}", query, _Settings()), GENERATED[base]
    suffix = options.written(settings, _Settings())
    asking = how.options | _about(f"language/{name}", settings.about, how)
    train, test = (
        how.make(n, length=settings.length, seed=(settings.seed, is_test), **asking)
        for is_test, n in enumerate((settings.n_train, settings.n_test))
    )
    return Questions(
        f"language/{base}{suffix}",
        (train.values, train.questions),
        (test.values, test.questions),
        source=SOURCE,
        licence=LICENCE,
    )


def _about(name: str, about: str, how: _Generated) -> dict[str, Any]:
    if not about:
        return {}
    if how.make is not ask:
        raise SpecError(f"task {name!r}: about= is for choice, pair and answer")
    kinds = how.options.get("about", KINDS)
    for kind in about.split("+"):
        if kind not in kinds:
            raise SpecError(str(UnknownNameError("kind of question", kind, kinds)))
    return {"about": {kind: kinds[kind] for kind in kinds if kind in about.split("+")}}
