"""Several doubtful captions of a clip to one short caption, by rules: the place of the language model in PE's engine.

Sources are the captioner's words about the whole clip, its words about single frames, and the title.

1. Captions of frames are one source: it says what at least half of them say.
2. Things (colour and shape) that two sources or three say are kept, those of three first, at most two things.
3. Where there is none, the first thing of the clip's caption is kept with those of its words, colour and shape each,
   that another source says at all; a shape on which nobody agrees is "thing".
4. A texture is kept where two sources say it of the same thing.
5. Motion is that of the clip's caption, of the same thing or one of the same shape or colour, by preference: frames
   show none, and titles are asked only where the clip's caption says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from vision.engine.things import Thing, spoken, things

_MOST = 2  # things in a merged caption


def merged(clip: str, frames: Sequence[str], title: str) -> str:
    """One caption, "" where no source names anything."""
    said = [things(clip), _usual(frames), things(title)]
    votes = Counter(pair for source in said for pair in {(t.colour, t.shape) for t in source if t.colour and t.shape})
    order = {pair: i for i, pair in enumerate(dict.fromkeys((t.colour, t.shape) for source in said for t in source))}
    agreed = sorted((pair for pair in votes if votes[pair] > 1), key=lambda pair: (-votes[pair], order[pair]))
    if agreed:
        return spoken(_whole(colour, shape, said, i) for i, (colour, shape) in enumerate(agreed[:_MOST]))
    first = next((t for source in said for t in source), None)
    return "" if first is None else str(_doubted(first, said))


def _usual(frames: Sequence[str]) -> list[Thing]:
    """What at least half of the captions of frames say, without motion, in the order of the first that says it."""
    each = [dict.fromkeys((t.colour, t.shape) for t in things(frame)) for frame in frames]
    textures = Counter((t.colour, t.shape, t.texture) for frame in frames for t in set(things(frame)) if t.texture)
    votes = Counter(pair for pairs in each for pair in pairs)
    found = []
    for colour, shape in votes:
        if 2 * votes[colour, shape] >= len(frames):
            of_it = [key for key in textures if key[:2] == (colour, shape) and 2 * textures[key] >= len(frames)]
            found.append(Thing(colour, of_it[0][2] if of_it else None, shape))
    return found


def _whole(colour: str | None, shape: str | None, said: Sequence[Sequence[Thing]], place: int) -> Thing:
    """A thing on which sources agree, with its texture and motion."""
    same = [[t for t in source if (t.colour, t.shape) == (colour, shape)] for source in said]
    textures = Counter(texture for source in same for texture in {t.texture for t in source if t.texture})
    texture = next((name for name, count in textures.most_common(1) if count > 1), None)
    clip = [t for t in said[0] if t.motion]
    near = [t for t in clip if (t.colour, t.shape) == (colour, shape)]
    near += [t for t in clip if t.shape == shape] + [t for t in clip if t.colour == colour]
    near += clip[:1] if place == 0 else []
    near += [] if clip else [t for t in same[2] if t.motion]
    return Thing(colour, texture, shape, near[0].motion if near else None)


def _doubted(first: Thing, said: Sequence[Sequence[Thing]]) -> Thing:
    """The first thing with what more than one source says of it. Only the clip's own word is trusted for motion."""
    colours, shapes = (Counter(word for source in said for word in {getattr(t, of) for t in source}) for of in _PARTS)
    colour = first.colour if colours[first.colour] > 1 else None
    shape = first.shape if shapes[first.shape] > 1 else None
    return replace(first, colour=colour, shape=shape, texture=None)


_PARTS = ("colour", "shape")
