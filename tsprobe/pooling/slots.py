"""Names of poolings, and the place of each in a pooled array `[R, P, D]`.

A pooled array has one slot for each statistic and K slots for K segments, so that P counts slots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tsprobe.errors import SpecError, UnknownNameError

POOLINGS = {
    "mean": "mean over the real tokens",
    "max": "largest value over the real tokens, a dimension at a time",
    "min": "smallest value over the real tokens, a dimension at a time",
    "std": "standard deviation over the real tokens (divided by their number)",
    "first": "the first real token",
    "last": "the last real token",
    "cls": "the class token, where the encoder has one",
    "segmentsK": "means over K equal spans of time, side by side (segments2, segments4, ...)",
}
_SEGMENTS = re.compile(r"segments([1-9]\d*)")
_DIGITS = 6  # of a number of segments or steps: each is a place in memory
_STEPS = re.compile(r"steps([1-9]\d*)")


@dataclass(frozen=True)
class Slots:
    """The statistics that one read of the tokens gives.

    `names` are the poolings asked for, in order; `kinds` names the statistic of every slot. `segments` is the number
    of spans (0: none). A mean is always kept beside a standard deviation, which cannot be merged over windows
    without it, so there may be more slots than names ask for. `stepsM`, which dense tasks ask for, stands alone: its
    `steps` slots are tokens at M steps of each series, which no statistic of the whole series goes with.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    places: dict[str, slice]
    segments: int
    steps: int = 0

    @classmethod
    def parse(cls, names: Sequence[str]) -> Slots:
        """Raise `UnknownNameError` for a pooling that is not one of `POOLINGS`, `SpecError` for none or two of one."""
        names = (names,) if isinstance(names, str) else tuple(names)
        if not names or len(set(names)) != len(names):
            raise SpecError(f"poolings must be a list of distinct names, not {list(names)}")
        if (match := _STEPS.fullmatch(names[0])) and len(names) == 1:
            steps = _number(match)
            return cls(names, ("step",) * steps, {names[0]: slice(0, steps)}, 0, steps)
        kinds: list[str] = []
        places: dict[str, slice] = {}
        segments = 0
        for name in names:
            match = _SEGMENTS.fullmatch(name)
            if match is None and (name not in POOLINGS or name == "segmentsK"):
                raise UnknownNameError("pooling", name, POOLINGS)
            if match is not None:
                if segments:
                    raise SpecError(f"only one segments pooling at a time, not {list(names)}")
                segments = _number(match)
            count = segments if match else 1
            places[name] = slice(len(kinds), len(kinds) + count)
            kinds += ["segment" if match else name] * count
        if "std" in kinds and "mean" not in kinds:
            kinds.append("mean")
        return cls(names, tuple(kinds), places, segments)

    def __len__(self) -> int:
        return len(self.kinds)


def _number(match: re.Match[str]) -> int:
    if len(match[1]) > _DIGITS:
        raise SpecError(f"{match[0][:20]}...: no series has so many steps")
    return int(match[1])
