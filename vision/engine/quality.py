"""How true captions are: measured against what is known of every clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vision.engine.things import Thing, things

PARTS = ("shape", "colour", "motion")


def quality(captions: Sequence[str], truth: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """Shares of all clips whose caption says a thing's shape, its colour, its motion, and all three, rightly.

    The first thing of a caption is compared with that object of the clip to which most of its words fit; what it does
    not say is not right. `said` is the share of captions that name anything.
    """
    rows = [_right(caption, objects) for caption, objects in zip(captions, truth, strict=True)]
    names = (*PARTS, "all", "said")
    return {name: round(sum(row[name] for row in rows) / max(1, len(rows)), 4) for name in names}


def _right(caption: str, objects: Sequence[Thing]) -> dict[str, bool]:
    named = things(caption)
    if not named:
        return dict.fromkeys((*PARTS, "all", "said"), False)
    fits = max((_fit(named[0], one) for one in objects), key=lambda fit: sum(fit.values()))
    return {**fits, "all": all(fits.values()), "said": True}


def _fit(said: Thing, true: Thing) -> dict[str, Any]:
    return {part: getattr(said, part) is not None and getattr(said, part) == getattr(true, part) for part in PARTS}
