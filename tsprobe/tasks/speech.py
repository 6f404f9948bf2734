"""What is said and how: five questions about parallel telephone prompts in three languages, `speech/NAME`.

| task | target | the test has |
|---|---|---|
| language | which language; each has one voice, so language, voice and studio are one thing here | other prompts |
| duration | logarithm (base 2) of the seconds that a prompt lasts; the recordings of `language` | other prompts |
| item | which of 52 words: the letters' names and the words that spell them (alfa, bravo, ...) | another voice |
| letter | which of 26 letters, by its name or its word; the recordings of `item` | another voice |
| digit | which of 1 to 9 a number is made of (six, sixteen, sixty), in all languages | ordinals: sixth, ... |

`language` and `duration` are about the recording, the others about the words. No recording is in both parts, and
nothing can be answered from memory: the voice of `item` and `letter` speaks in the test alone, and `digit` has cardinal
numbers in training. The names of letters and the words that spell them are near one another in the three languages,
numbers only in part.
"""

from __future__ import annotations

import string
from dataclasses import replace

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.speech import FOLDERS, LICENCE, SOURCE, are_here, find_items, read_prompt, seconds
from tsprobe.errors import DataError, UnknownNameError
from tsprobe.tasks.base import Classification, Regression, Task, TaskInfo

Clips = list[tuple[str, str]]  # language and prompt

PROMPTS = (40, 30)  # for training and test, in each language
SHORTEST, LONGEST = 0.6, 6.0  # seconds, in every language: words and sentences, no tones and no long instructions
TONES = ("tone", "beep", "monkeys", "weasels")
HELD_OUT = "en"  # the voice of the test, in the language that the speech encoders know
# six, sixteen, sixty; above that French counts on (sixty-ten), and ordinals are not spoken
NUMBERS = (*range(1, 10), *range(11, 20), *range(20, 70, 10))

# name, kind, metric, n_train, n_test, shortest, longest (steps), classes or targets
_TASKS = (
    ("digit", "classification", "accuracy", 69, 69, 5310, 19828, 9),
    ("duration", "regression", "r2", 120, 90, 9800, 94840, 1),
    ("item", "classification", "accuracy", 104, 52, 4636, 17434, 52),
    ("language", "classification", "accuracy", 120, 90, 9800, 94840, 3),
    ("letter", "classification", "accuracy", 104, 52, 4636, 17434, 26),
)


def list_tasks() -> list[TaskInfo]:
    """The five tasks, from a table; no file is opened."""
    return [
        TaskInfo(
            name=f"speech/{name}",
            kind="regression" if kind == "regression" else "classification",
            metric=metric,
            n_train=n_train,
            n_test=n_test,
            channels=1,
            length=(shortest, longest),
            n_classes=n_classes,
            source=SOURCE,
            licence=LICENCE,
            here=are_here(),
        )
        for name, kind, metric, n_train, n_test, shortest, longest, n_classes in _TASKS
    ]


def load_speech(name: str) -> Task:
    """The task of that name. Raises `UnknownNameError`, `MissingPackageError` and `DataError`."""
    full = f"speech/{name}"
    if name not in (names := [task[0] for task in _TASKS]):
        raise UnknownNameError("task", full, [f"speech/{n}" for n in names])
    if name in ("language", "duration"):
        train, test = _prompts(full)
    elif name == "digit":
        train, test = _numbers("", full), _numbers("h-", full)
    else:
        train, test = _letters(full)
    if name == "duration":
        lasts = [np.log2([seconds(*clip) for clip in clips]) for clips in (train, test)]
        pairs = [(_panel(clips), y) for clips, y in zip((train, test), lasts, strict=True)]
        task = Regression(full, *pairs, labels=["log2 seconds"], groups=_groups(train), source=SOURCE)
        return replace(task, licence=LICENCE)
    label = {"language": _language, "digit": _digit, "letter": _letter, "item": _item}[name]
    voices = name in ("item", "letter")
    groups = np.array([language for language, _ in train]) if voices else _groups(train)  # folds ask what the test asks
    labelled = [(_panel(clips), [label(*clip) for clip in clips]) for clips in (train, test)]
    return Classification(full, *labelled, groups=groups, source=SOURCE, licence=LICENCE)


def _prompts(purpose: str) -> tuple[Clips, Clips]:
    """Evenly spaced among the words and sentences, so that training and test hold prompts of all kinds."""
    items = [
        item
        for item in find_items("*", purpose)
        if not any(tone in item for tone in TONES)
        and all(SHORTEST <= seconds(language, item) <= LONGEST for language in FOLDERS)
    ]
    wanted = sum(PROMPTS)
    if len(items) < wanted:
        raise DataError(f"task {purpose!r}: {len(items)} prompts of {SHORTEST} to {LONGEST} s; it needs {wanted}")
    chosen = [items[i * len(items) // wanted] for i in range(wanted)]
    order = np.random.default_rng(0).permutation(wanted)
    train, test = (sorted(chosen[i] for i in part) for part in (order[: PROMPTS[0]], order[PROMPTS[0] :]))
    return _in_all(train), _in_all(test)


def _letters(purpose: str) -> tuple[Clips, Clips]:
    wanted = [f"letters/{c}" for c in string.ascii_lowercase] + [f"phonetic/{c}_p" for c in string.ascii_lowercase]
    clips = _in_all(_present(wanted, find_items("[lp]*/*", purpose), purpose))
    return [c for c in clips if c[0] != HELD_OUT], [c for c in clips if c[0] == HELD_OUT]


def _numbers(prefix: str, purpose: str) -> Clips:
    return _in_all(_present([f"digits/{prefix}{n}" for n in NUMBERS], find_items("digits/*", purpose), purpose))


def _present(wanted: list[str], found: list[str], purpose: str) -> list[str]:
    if lacking := sorted(set(wanted) - set(found)):
        raise DataError(f"task {purpose!r}: no prompt {lacking[0]} in all three languages; install version 1.6.1")
    return wanted


def _in_all(items: list[str]) -> Clips:
    return [(language, item) for language in FOLDERS for item in items]


def _panel(clips: Clips) -> Panel:
    return Panel(tuple(read_prompt(*clip) for clip in clips))


def _groups(clips: Clips) -> np.ndarray:
    """A prompt stays in one fold with its like in the other languages."""
    return np.unique([item for _, item in clips], return_inverse=True)[1]


def _language(language: str, item: str) -> str:
    return language


def _item(language: str, item: str) -> str:
    return item


def _letter(language: str, item: str) -> str:
    return item.partition("/")[2][0]


def _digit(language: str, item: str) -> str:
    number = item.removeprefix("digits/").removeprefix("h-")
    return number[0] if number.endswith("0") else number[-1]
