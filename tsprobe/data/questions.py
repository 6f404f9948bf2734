"""Series of known parts, and questions about them whose answers are exact by construction.

A series of S steps is a sum: a drift (a trend, a level shift or neither), a season, outliers and Gaussian noise of
standard deviation s. With u uniform in [x, y] written [x, y] and a random sign ±:

| part | values | size |
|---|---|---|
| trend | rises or falls steadily over all steps; or does one, and from [0.3, 0.7] S on the other | [2, 4] |
| level shift | up or down, at [0.1, 0.4] S (first half) or [0.6, 0.9] S (second half) | [2, 4] |
| season | a sine of amplitude a, a period of S/32, S/16, S/8 or S/4 steps, any phase | a [0.7, 1.3] |
| outliers | 0 to 4 single steps, at least S/32 apart and from the ends | ±[3, 5] |
| noise | Gaussian | s [0.1, 0.3] |

Where the truth could be doubted it is not asked for: no series has a trend and a level shift, borders keep the margins
of the table, outliers are at least ten times s, and the noise that is asked about is 0, 1/10, 1/3, 1 or 3 times the
amplitude of the season. A season that changes in size grows from 0.4 a to 1.6 a, or the reverse, or there and back; one
that changes in pace takes [6, 12] / S cycles a step at one end and twice as many at the other, or stops at
[0.4, 0.6] S; waves of other shapes are as strong as the sine. Kinds of question and right answers come in turn, so that
all answers of a kind are equally frequent, and nothing but the series tells which is right: the wrong choices are drawn
from the other answers of the same kind.

Trends are seen in the values of patches themselves, so that any network passes them on; the other kinds ask how values
follow each other. Counts and places of single steps are not asked about: with 100 series a kind, a linear readout of 16
means of tokens stays at chance for these, in trained and untrained networks alike.

Questions about two series, the channels, name the one that has a part which the other has not, or tell how they move.

In a series for grounding, one span of it is unlike the rest: its level is [2, 3] higher, its noise 5 times as strong,
or its season is gone. Every second series has another such span, of another kind, elsewhere. Borders fall on multiples
of S/32; spans are 3 to 10 of these long, and 2 or more apart from each other and from the ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.text import Question
from tsprobe.errors import SpecError

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

CHOICES = 4
_PARTS = 32  # of a series: the grain of borders and periods
_SHORTEST = 4 * _PARTS  # the shortest period is 4 steps then

TRENDS = ("it rises", "it falls", "it rises then falls", "it falls then rises", "there is none")
NOISES = {
    "there is none": 0.0,
    "a tenth as strong": 0.1,
    "a third as strong": 1 / 3,
    "as strong": 1.0,
    "three times as strong": 3.0,
}
SIZES = ("it grows", "it shrinks", "it grows then shrinks", "it shrinks then grows", "it does not")
PACES = ("it becomes faster", "it becomes slower", "it does not", "it stops")
SHAPES = ("a sine", "a square wave", "a saw that climbs and drops at once", "a saw that drops and climbs at once")
SPANS = {
    "level": "where is the level raised?",
    "noise": "where is the noise stronger?",
    "season": "where is the season missing?",
}


@dataclass(frozen=True)
class Parts:
    """What a series consists of.

    `trend` indexes `TRENDS`; `shift` is 0 or 1 for up or down in the first half, 2 or 3 in the second, 4 for none;
    `period` is 0 for no season.
    """

    trend: int = 4
    shift: int = 4
    period: int = 0
    amplitude: float = 1.0
    noise: float = 0.2
    outliers: int = 0


@dataclass(frozen=True)
class Draw:
    """The steps of a series, and what is random about it."""

    length: int
    rng: np.random.Generator
    t: Float64[np.ndarray, " S"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", np.arange(self.length) / self.length)

    def parts(self) -> Parts:
        """Any parts that go together."""
        rng, drift = self.rng, self.rng.integers(3)
        return Parts(
            trend=int(rng.integers(4)) if drift == 1 else 4,
            shift=int(rng.integers(4)) if drift == 2 else 4,
            period=int(rng.choice((0, *periods(self.length)))),
            amplitude=rng.uniform(0.7, 1.3),
            noise=rng.uniform(0.1, 0.3),
            outliers=int(rng.integers(1, 5)) if rng.random() < 0.5 else 0,
        )

    def values(self, parts: Parts, cells: Sequence[int] | None = None) -> Float64[np.ndarray, " S"]:
        """The sum of the parts. Outliers lie in different `cells`, sixteenths of the length; None for 1 to 14."""
        x = self._trend(parts.trend) + self._shift(parts.shift) + parts.noise * self.rng.standard_normal(self.length)
        if parts.period:
            x += self.season(parts)
        grain = self.length // _PARTS
        # an outlier lies in the first half of a cell of two grains: they are a grain apart at least
        free = np.arange(1, self.length // (2 * grain) - 1) if cells is None else np.asarray(cells)
        taken = self.rng.choice(free, parts.outliers, replace=False)
        at = 2 * grain * taken + self.rng.integers(grain, size=parts.outliers)
        x[at] += self.rng.uniform(3, 5, parts.outliers) * self.rng.choice((-1, 1), parts.outliers)
        return x

    def season(self, parts: Parts) -> Float64[np.ndarray, " S"]:
        cycles = np.arange(self.length) / parts.period + self.rng.random()
        return parts.amplitude * np.sin(2 * np.pi * cycles)

    def _trend(self, which: int) -> Float64[np.ndarray, " S"]:
        if which == 4:
            return np.zeros(self.length)
        size, bend = self.rng.uniform(2, 4), self.rng.uniform(0.3, 0.7)
        hill = np.minimum(self.t / bend, (1 - self.t) / (1 - bend))
        return size * (self.t, -self.t, hill, -hill)[which]

    def _shift(self, which: int) -> Float64[np.ndarray, " S"]:
        if which == 4:
            return np.zeros(self.length)
        at = self.rng.uniform(0.1, 0.4) + (0.5 if which >= 2 else 0)
        return self.rng.uniform(2, 4) * (-1 if which % 2 else 1) * (self.t >= at)


def periods(length: int) -> tuple[int, ...]:
    """Of the seasons that a series of that length may have, in steps."""
    return tuple(length // n for n in (32, 16, 8, 4))


def _about_trend(draw: Draw, answer: int) -> np.ndarray:
    return draw.values(replace(draw.parts(), trend=answer, shift=4))


def _about_period(draw: Draw, answer: int) -> np.ndarray:
    return draw.values(replace(draw.parts(), period=(*periods(draw.length), 0)[answer]))


def _about_noise(draw: Draw, answer: int) -> np.ndarray:
    parts = replace(draw.parts(), period=int(draw.rng.choice(periods(draw.length))), outliers=0)
    return draw.values(replace(parts, noise=list(NOISES.values())[answer] * parts.amplitude))


def _about_size(draw: Draw, answer: int) -> np.ndarray:
    there = 1 - np.abs(2 * draw.t - 1)
    size = (draw.t, 1 - draw.t, there, 1 - there, 0.5)[answer]
    parts = replace(draw.parts(), period=int(draw.rng.choice(periods(draw.length)[:3])))
    return draw.values(replace(parts, period=0, outliers=0)) + (0.4 + 1.2 * size) * draw.season(parts)


def _about_pace(draw: Draw, answer: int) -> np.ndarray:
    slow = draw.rng.uniform(6, 12)
    pace = slow * (1 + np.array((draw.t, 1 - draw.t, np.full(draw.length, 0.5), np.full(draw.length, 0.5))[answer]))
    wave = np.sin(2 * np.pi * (pace.cumsum() / draw.length + draw.rng.random()))
    if answer == 3:
        wave *= draw.t < draw.rng.uniform(0.4, 0.6)
    parts = draw.parts()
    return draw.values(replace(parts, period=0, outliers=0)) + parts.amplitude * wave


def _about_shape(draw: Draw, answer: int) -> np.ndarray:
    parts = draw.parts()
    cycle = (np.arange(draw.length) / int(draw.rng.choice(periods(draw.length)[1:])) + draw.rng.random()) % 1
    wave = (
        np.sqrt(2) * np.sin(2 * np.pi * cycle),
        np.sign(cycle - 0.5),
        np.sqrt(3) * (2 * cycle - 1),
        np.sqrt(3) * (1 - 2 * cycle),
    )[answer]  # of the same strength
    return draw.values(replace(parts, period=0, outliers=0)) + parts.amplitude * wave / np.sqrt(2)


@dataclass(frozen=True)
class _Kind:
    """A question, its answers for series of some length, and the series to which the answer of some number is right."""

    question: str
    answers: Callable[[int], tuple[str, ...]]
    make: Callable[[Draw, int], np.ndarray]  # [S], or [2, S] for two series


KINDS: dict[str, _Kind] = {
    "trend": _Kind("what is the trend?", lambda length: TRENDS, _about_trend),
    "period": _Kind(
        "how long is the season?", lambda length: (*(f"{p} steps" for p in periods(length)), "there is none"),
        _about_period,
    ),
    "noise": _Kind("how strong is the noise beside the season?", lambda length: tuple(NOISES), _about_noise),
    "size": _Kind("how does the size of the season change?", lambda length: SIZES, _about_size),
    "pace": _Kind("how does the pace of the season change?", lambda length: PACES, _about_pace),
    "shape": _Kind("what shape has the season?", lambda length: SHAPES, _about_shape),
}  # fmt: skip


WHICH = ("the first", "the second", "both", "neither")
MOVES = ("together", "in opposite ways", "the first leads", "the second leads", "each by itself")


def _which(part: str) -> Callable[[Draw, int], np.ndarray]:
    """Two series, of which the ones named have a part."""
    has = {
        "rises": lambda draw, p: replace(p, shift=4, trend=0),
        "shift": lambda draw, p: replace(p, trend=4, shift=int(draw.rng.integers(4))),
        "season": lambda draw, p: replace(p, period=int(draw.rng.choice(periods(draw.length)))),
    }[part]
    lacks = {
        "rises": lambda p: replace(p, trend=4, shift=4),
        "shift": lambda p: replace(p, trend=4, shift=4),
        "season": lambda p: replace(p, period=0),
    }[part]

    def make(draw: Draw, answer: int) -> np.ndarray:
        there = (answer in (0, 2), answer in (1, 2))
        return np.stack([draw.values(has(draw, draw.parts()) if yes else lacks(draw.parts())) for yes in there])

    return make


def _moves(draw: Draw, answer: int) -> np.ndarray:
    """Smooth noise, and the same beside it: as it is, upside down, an eighth of the length earlier or later, or other.

    No two of these are alike: at lags of no and of an eighth of the length, the correlation of the smooth noise with
    itself, or with the other, is at most 0.5.
    """
    s, lag = draw.length, draw.length // 8
    window = np.hanning(s // 8)
    while True:
        a, b = (np.convolve(draw.rng.standard_normal(s + lag + len(window) - 1), window, "valid") for _ in range(2))
        a, b = ((x - x.mean()) / x.std() for x in (a, b))
        early, late = a[lag:], a[:-lag]  # what is late shows a step a lag after what is early does
        pairs = [(early, late), (early, b[lag:]), (early, b[:-lag]), (late, b[lag:])]
        if max(abs(np.corrcoef(x, y)[0, 1]) for x, y in pairs) <= 0.5:
            break
    pair = ((early, early), (early, -early), (early, late), (late, early), (early, b[lag:]))[answer]
    return np.stack(pair) + 0.2 * draw.rng.standard_normal((2, s))


PAIRED: dict[str, _Kind] = {
    "rises": _Kind("which series rises?", lambda length: WHICH, _which("rises")),
    "shift": _Kind("the level of which series shifts?", lambda length: WHICH, _which("shift")),
    "season": _Kind("which series has a season?", lambda length: WHICH, _which("season")),
    "moves": _Kind("how do the series move?", lambda length: MOVES, _moves),
}


@dataclass(frozen=True, eq=False)
class Asking:
    """N series, and one question about each."""

    values: Float32[np.ndarray, "N C S"]
    questions: tuple[Question, ...]


def ask(
    n: int,
    *,
    choices: bool,
    length: int = 512,
    seed: int | tuple[int, ...] = 0,
    about: Mapping[str, _Kind] = KINDS,
) -> Asking:
    """One question of each of `KINDS`, or of `PAIRED` about two channels, in turn, the series in random order.

    With `choices` each has four, in random order.

    Raises `SpecError` for fewer than one series, or a length that is below 128 steps or no multiple of 32.
    """
    check_size(n, length)
    rng = np.random.default_rng(seed)
    draw, values, questions = Draw(length, rng), [], []
    kinds = list(about.values())
    for i in rng.permutation(n).tolist():
        kind = kinds[i % len(kinds)]
        answers = kind.answers(length)
        right = i // len(kinds) % len(answers)
        values.append(kind.make(draw, right))
        offered = None
        if choices:
            wrong = rng.choice(np.delete(np.arange(len(answers)), right), CHOICES - 1, replace=False)
            offered = tuple(answers[c] for c in rng.permutation([right, *wrong]).tolist())
        questions.append(Question(kind.question, answers[right], offered))
    return Asking(np.stack(values).reshape(n, -1, length).astype(np.float32), tuple(questions))


def locate(n: int, *, length: int = 512, seed: int | tuple[int, ...] = 0) -> Asking:
    """Which span of each series is unlike the rest; kinds of `SPANS` in turn, in random order. Raises as `ask` does."""
    check_size(n, length)
    rng = np.random.default_rng(seed)
    draw, values, questions = Draw(length, rng), [], []
    kinds = list(SPANS)
    for i in rng.permutation(n).tolist():
        kind = kinds[i % len(kinds)]
        others = [name for name in kinds if name != kind]
        asked, *rest = _places(rng, 1 + i // len(kinds) % 2)
        spans = {kind: asked} | {others[rng.integers(2)]: place for place in rest}
        grain = length // _PARTS
        values.append(_with_spans(draw, {k: (a * grain, b * grain) for k, (a, b) in spans.items()}))
        questions.append(Question(SPANS[kind], (asked[0] * grain, asked[1] * grain)))
    return Asking(np.stack(values)[:, None].astype(np.float32), tuple(questions))


def _with_spans(draw: Draw, spans: dict[str, tuple[int, int]]) -> np.ndarray:
    steps, rng = np.arange(draw.length), draw.rng
    inside = {kind: (a <= steps) & (steps < b) for kind, (a, b) in spans.items()}
    none = np.zeros(draw.length, bool)
    parts = replace(draw.parts(), period=int(rng.choice(periods(draw.length)[:2])), noise=rng.uniform(0.1, 0.2))
    noise = parts.noise * rng.standard_normal(draw.length) * np.where(inside.get("noise", none), 5, 1)
    level = rng.uniform(2, 3) * inside.get("level", none)
    return noise + level + draw.season(parts) * ~inside.get("season", none)


def _places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Spans in parts of a series, in random order."""
    while True:
        places = []
        for _ in range(count):
            size = int(rng.integers(3, 11))
            start = int(rng.integers(2, _PARTS - 1 - size))
            places.append((start, start + size))
        (a, b), (c, d) = places[0], places[-1]
        if count == 1 or b + 2 <= c or d + 2 <= a:
            return places


def check_size(n: int, length: int) -> None:
    """Raise `SpecError` for fewer than one series, or a length that the parts do not fit."""
    if n < 1:
        raise SpecError(f"n is {n}; generate at least 1 series")
    if length < _SHORTEST or length % _PARTS:
        raise SpecError(f"length is {length}; questions need a multiple of {_PARTS} steps, at least {_SHORTEST}")
