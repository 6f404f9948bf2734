"""What a caption of this world says, word by word: things, and how they move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vision.models.text import words_of
from vision.world.patterns import TEXTURES
from vision.world.plan import COLOURS
from vision.world.shapes import SHAPES
from vision.world.words import a

ANY = "thing"  # stands for a shape that is not known
MOVES = {
    "still": ("stands", "still"), "left": ("moves", "left"), "right": ("moves", "right"),
    "closer": ("comes", "closer"), "away": ("moves", "away"),
}  # fmt: skip
OPPOSITE = {"left": "right", "right": "left", "closer": "away", "away": "closer", "still": "still"}
_MOTION = {words: motion for motion, words in MOVES.items()}


@dataclass(frozen=True)
class Thing:
    """One thing in words; None is what is not said."""

    colour: str | None = None
    texture: str | None = None
    shape: str | None = None
    motion: str | None = None

    def __str__(self) -> str:
        said = [word for word in (self.colour, self.texture) if word and word != "plain"]
        name = a(" ".join([*said, self.shape or ANY]))
        return f"{name} {' '.join(MOVES[self.motion])}" if self.motion else name


def things(caption: str) -> list[Thing]:
    """The things that a caption names, in its order, each with the motion that is said right behind it."""
    found: list[Thing] = []
    said: dict[str, str] = {}
    words = words_of(caption)
    for i, word in enumerate(words):
        if word in COLOURS:
            said["colour"] = word
        elif word in TEXTURES:
            said["texture"] = word
        elif word in SHAPES or word == ANY:
            shape = None if word == ANY else word
            found.append(Thing(**said, shape=shape, motion=_MOTION.get(tuple(words[i + 1 : i + 3]))))  # type: ignore[arg-type]
            said = {}
    return found


def spoken(named: Iterable[Thing]) -> str:
    """A caption of these things."""
    return " and ".join(map(str, named))


def reversed_in_time(caption: str) -> str:
    """What is true of the same frames in the other order: every motion is the opposite one, all else stays."""
    words = caption.split()
    for i in range(len(words) - 1):
        motion = _MOTION.get((words[i], words[i + 1].rstrip(",")))
        if motion is not None:
            words[i : i + 2] = MOVES[OPPOSITE[motion]]
    return " ".join(words)
