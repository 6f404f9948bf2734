"""Questions about series, in words: what is asked, what is right, and how texts are compared.

Texts are compared in their normal form: words and numbers in order, in lower case, nothing else. "About 32 steps." and
"about 32 steps" are the same answer; an answer without a word or a number is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"(?<!\w)-\d+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]")
Span = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """One question about a series, and its right answer.

    `answer` is a text, or for grounding a pair of steps `(a, b)`, 0 <= a < b: from step a on, up to but without step b.
    For a box it is its left, top, right and bottom, in units of which whole numbers are said.
    For a caption it is a tuple of texts, one or more, which are all right: the references.
    `choices` are two or more distinct texts for a question with multiple choice; the answer is one of them.
    """

    question: str
    answer: str | Span | Box | tuple[str, ...]
    choices: tuple[str, ...] | None = None

    @property
    def is_caption(self) -> bool:
        """Whether its answer is texts that are all right."""
        found = self.answer
        return isinstance(found, (tuple, list)) and len(found) > 0 and all(isinstance(part, str) for part in found)

    @property
    def is_box(self) -> bool:
        """Whether its answer is four sides."""
        return isinstance(self.answer, (tuple, list)) and len(self.answer) == 4 and not self.is_caption

    @property
    def answer_texts(self) -> tuple[str, ...]:
        """The answer in words; of a caption all that are right."""
        if isinstance(self.answer, str):
            return (self.answer,)
        if self.is_caption:
            return tuple(map(str, self.answer))
        if self.is_box:
            left, top, right, bottom = (round(float(side)) for side in self.answer)
            return (f"{left} {top} {max(right, left + 1)} {max(bottom, top + 1)}",)
        return (f"from step {self.answer[0]} to step {self.answer[1]}",)


@dataclass(frozen=True)
class Asked:
    """What is asked of the training and of the test series of a task, without the answers of the test questions.

    `answers` are for short answers all texts that occur, and for captions all words of theirs (`numbered`).
    """

    train: tuple[Question, ...]
    test: tuple[Question, ...]
    answers: tuple[str, ...] = ()


def words(text: str) -> list[str]:
    """Words, numbers and signs of a text, in lower case."""
    return _WORD.findall(text.casefold())


def normal(text: str) -> str:
    """The normal form of a text; empty where it has neither a word nor a number."""
    return " ".join(word for word in words(text) if word[-1].isalnum())


def read_span(text: str) -> Span:
    """The first two whole numbers of a text that are a span; (0, 0), which covers no step, where they are none."""
    found = [int(word) for word in words(text) if word.isdecimal()]
    return (found[0], found[1]) if len(found) >= 2 and found[0] < found[1] else (0, 0)


def read_box(text: str) -> tuple[int, int, int, int]:
    """The first four whole numbers of a text that are a box; that of no area at the origin where they are none."""
    found = [int(word) for word in words(text) if word.isdecimal()][:4]
    if len(found) == 4 and found[0] < found[2] and found[1] < found[3]:
        return found[0], found[1], found[2], found[3]
    return 0, 0, 0, 0


def numbered(text: str, known: Mapping[str, int]) -> list[int]:
    """The words and numbers of a text by their numbers, which count from 1.

    Words that are not known get -1, -2, ... as they come, the same word the same number: no known word is like them.
    """
    found = normal(text).split()
    strange = {word: -i for i, word in enumerate(dict.fromkeys(w for w in found if w not in known), 1)}
    return [known.get(word) or strange[word] for word in found]


class Vocabulary:
    """Numbers for the words of some texts. Words that do not occur in them share one number."""

    PAD, UNKNOWN, ANSWER, END = range(4)

    def __init__(self, texts: Iterable[str]) -> None:
        found = sorted({word for text in texts for word in words(text)})
        self._words = ["", "", "", "", *found]
        self._numbers = {word: i for i, word in enumerate(self._words) if word}

    def __len__(self) -> int:
        return len(self._words)

    def prompt(self, question: str) -> list[int]:
        """The question, and a sign that the answer follows."""
        return [*self._encode(question), self.ANSWER]

    def answer(self, text: str) -> list[int]:
        """The answer, and the sign of its end. Empty for a text without a word."""
        return [*self._encode(text), self.END] if normal(text) else []

    def text(self, numbers: Sequence[int]) -> str:
        """What was said before the sign of the end."""
        said = list(numbers)
        return " ".join(self._words[n] for n in (said[: said.index(self.END)] if self.END in said else said))

    def _encode(self, text: str) -> list[int]:
        return [self._numbers.get(word, self.UNKNOWN) for word in words(text)]
