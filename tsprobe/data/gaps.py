"""Which steps of a series to hide: blocks of missing values at random places, with values known on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool

SHORTEST, LONGEST = 4, 24  # steps of a gap
SHARE = 0.25  # of a series, at least
MIN_LENGTH = 64


def hidden(rng: np.random.Generator, length: int) -> Bool[np.ndarray, " S"]:
    """Gaps of uniform width until a share of at least `SHARE` is hidden, of a series of at least `MIN_LENGTH` steps.

    The steps that stay known are shared out at random among the places before, between and after the gaps, at least
    one to each, so that each gap lies between two known steps.
    """
    widths: list[int] = []
    while sum(widths) < SHARE * length:
        widths.append(int(rng.integers(SHORTEST, LONGEST + 1)))
    known = length - sum(widths)
    borders = np.sort(rng.choice(np.arange(1, known), len(widths), replace=False))  # in the series without its gaps
    mask = np.zeros(length, bool)
    for start, width in zip(borders + np.cumsum([0, *widths[:-1]]), widths, strict=True):
        mask[start : start + width] = True
    return mask
