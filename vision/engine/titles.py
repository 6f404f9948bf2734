"""Titles of clips, as people give them on a video site: short, about one thing, at times missing or of another clip."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vision.engine.things import Thing

if TYPE_CHECKING:
    from collections.abc import Sequence

_FRAMES = ("my {}", "watch {}", "{} video", "look at {}", "{}")
_WITH_MOTION = 1 / 3  # of the titles that are given


def titles(truth: Sequence[Sequence[Thing]], *, missing: float, wrong: float, seed: int | tuple[int, ...]) -> list[str]:
    """A title each, "" for none. Shares of the clips: `missing` have none, `wrong` have one that fits another clip.

    A title names the colour and shape of one thing, one time in three its motion, never its texture.
    """
    rng = np.random.default_rng(seed)
    n = len(truth)
    drawn = rng.random(n)
    found = []
    for i in range(n):
        stray = int((i + 1 + rng.integers(max(1, n - 1))) % n)  # any clip but this one
        meant = truth[stray if missing <= drawn[i] < missing + wrong else i]
        thing = replace(meant[int(rng.integers(len(meant)))], texture=None)
        if rng.random() >= _WITH_MOTION:
            thing = replace(thing, motion=None)
        frame = _FRAMES[int(rng.integers(len(_FRAMES)))]
        found.append("" if drawn[i] < missing else frame.format(thing))
    return found
