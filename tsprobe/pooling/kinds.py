"""Numbers of the statistics, as operators and kernels take them."""

from __future__ import annotations

from enum import IntEnum

from tsprobe.pooling.slots import Slots


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


def codes(slots: Slots) -> list[int]:
    """The kind of every slot."""
    return [int(Kind[kind.upper()]) for kind in slots.kinds]
