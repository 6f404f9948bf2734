"""Numbers of the statistics, as operators and kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Kind(IntEnum):
    """In the order that pool.c and the kernels know."""

    MEAN = 0
    MAX = 1
    MIN = 2
    STD = 3
    FIRST = 4
    LAST = 5
    CLS = 6
    SEGMENT = 7


def codes(kinds: Sequence[str]) -> tuple[int, ...]:
    """The number of every slot's kind, named as in `Slots.kinds`."""
    return tuple(int(Kind[kind.upper()]) for kind in kinds)
