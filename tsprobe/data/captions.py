"""Series of known parts, and sentences that say what these are: captions that are exact by construction.

Four parts of a series (`tsprobe.data.questions`) are drawn, all values of a part equally often and independent of the
other parts, and every caption names all four:

| part | values |
|---|---|
| drift | a trend (up, down, or one and then the other), a level shift (up or down, in the first or second half), none |
| season | a period of S/32, S/16, S/8 or S/4 steps, or none |
| outliers | none, one near the start, in the middle or near the end, two, three; ten times weak noise at least |
| noise | weak, s in [0.05, 0.1], or strong, s in [0.4, 0.5]; outliers are then six times s at least |

"Near the start" is [S/16, 9 S/32], "in the middle" [3 S/8, 19 S/32], "near the end" [11 S/16, 29 S/32].

Each series has one caption in each of `VOICES`, which say the same in other words and in another order. As every voice
speaks of every series, the words that a voice always uses weigh nothing in CIDEr; what counts is what is said of the
series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsprobe.data.questions import Asking, Draw, Parts, check_size, periods
from tsprobe.data.text import Question

QUESTION = "describe the series"
_PLACES = (range(1, 5), range(6, 10), range(11, 15))  # of one outlier: the cells of `Draw.values`
_WEAK, _STRONG = (0.05, 0.1), (0.4, 0.5)


@dataclass(frozen=True)
class Voice:
    """How something is said: a sentence of four parts, and the words for each value of a part.

    `drift` has words for four trends, four level shifts and neither; `season` for one (with its period) and none;
    `outliers` for none, one at each of three places, two, and three; `noise` for weak and strong.
    """

    sentence: str
    drift: tuple[str, ...]
    season: tuple[str, str]
    outliers: tuple[str, ...]
    noise: tuple[str, str]

    def say(self, drift: int, period: int, outliers: int, noise: int) -> str:
        """The sentence; `period` is in steps, 0 for no season, the others number the words for a part."""
        return self.sentence.format(
            drift=self.drift[drift],
            season=self.season[not period].format(period=period),
            outliers=self.outliers[outliers],
            noise=self.noise[noise],
        )


VOICES = (
    Voice(
        "{drift} with {season}, {outliers} and {noise}",
        (
            "rising trend", "falling trend", "rising then falling trend", "falling then rising trend",
            "early level shift up", "early level shift down", "late level shift up", "late level shift down",
            "steady level",
        ),
        ("a season of {period} steps", "no season"),
        ("no outlier", "an early outlier", "a central outlier", "a late outlier", "two outliers", "three outliers"),
        ("weak noise", "strong noise"),
    ),
    Voice(
        "it {drift}, {season}, has {outliers} and is {noise}",
        (
            "climbs", "drops", "climbs before it drops", "drops before it climbs",
            "jumps up before halfway", "jumps down before halfway",
            "jumps up after halfway", "jumps down after halfway",
            "stays level",
        ),
        ("repeats every {period} steps", "never repeats"),
        (
            "no spike", "a spike near the start", "a spike near the middle", "a spike near the end",
            "a pair of spikes", "a trio of spikes",
        ),
        ("hardly noisy", "very noisy"),
    ),
    Voice(
        "{noise} around {season} with {outliers}, while the mean {drift}",
        (
            "goes up", "goes down", "goes up and comes down", "goes down and comes up",
            "steps up in the first half", "steps down in the first half",
            "steps up in the second half", "steps down in the second half", "does not move",
        ),
        ("a cycle of length {period}", "no cycle"),
        (
            "not one anomaly", "an anomaly at the beginning", "an anomaly halfway", "an anomaly at the close",
            "2 anomalies", "3 anomalies",
        ),
        ("little noise", "much noise"),
    ),
)  # fmt: skip


def describe(n: int, *, length: int = 512, seed: int | tuple[int, ...] = 0) -> Asking:
    """n series `[n, 1, length]`, and of each a caption in each of `VOICES`.

    Raises `SpecError` for fewer than one series, or a length that is below 128 steps or no multiple of 32.
    """
    check_size(n, length)
    rng = np.random.default_rng(seed)
    draw, values, questions = Draw(length, rng), [], []
    first = VOICES[0]
    seasons = (*periods(length), 0)
    sizes = (len(first.drift), len(seasons), len(first.outliers), len(first.noise))
    facts = np.stack([rng.permutation(np.arange(n) % size) for size in sizes], 1)
    for drift, season, outliers, noise in facts.tolist():
        parts = Parts(
            trend=min(drift, 4),
            shift=4 if drift < 4 else drift - 4,
            period=seasons[season],
            amplitude=rng.uniform(0.7, 1.3),
            noise=rng.uniform(*(_STRONG if noise else _WEAK)),
            outliers=(0, 1, 1, 1, 2, 3)[outliers],
        )
        place = _PLACES[outliers - 1] if parts.outliers == 1 else None
        values.append(draw.values(parts, place))
        said = tuple(voice.say(drift, parts.period, outliers, noise) for voice in VOICES)
        questions.append(Question(QUESTION, said))
    return Asking(np.stack(values)[:, None].astype(np.float32), tuple(questions))
