"""Words about scenes and clips: captions, referring expressions, and questions with exact answers.

Objects are named by what can be seen of them, such as "small red striped disc"; "plain" is not said. "Left of" is said
of centres that lie at least 12 % of the image's width apart, "in front of" of objects that are nearer to the camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.data.text import Question
from tsprobe.errors import DataError
from vision.world.clips import MOTIONS, Clips
from vision.world.patterns import TEXTURES
from vision.world.plan import COLOURS, FLOORS, MOST, SIZES, Plan
from vision.world.scenes import Scenes
from vision.world.shapes import SHAPES

if TYPE_CHECKING:
    from jaxtyping import Int64

COLOUR_NAMES = tuple(COLOURS)
COUNTS = ("one", "two", "three", "four")
SIDES = ("left", "right")
_CLEAR = 0.12
_SAID = ("size", "colour", "texture")  # in the order of speech, before the shape


class _Scene:
    """The objects of one scene, in words."""

    def __init__(self, plan: Plan, i: int, screen: tuple[np.ndarray, ...]) -> None:
        self.objects = [k for k in range(MOST) if plan.shape[i, k] >= 0]
        self.words = [
            {
                "size": SIZES[plan.size[i, k]],
                "colour": COLOUR_NAMES[plan.colour[i, k]],
                "texture": TEXTURES[plan.texture[i, k]],
                "shape": SHAPES[plan.shape[i, k]],
            }
            for k in self.objects
        ]
        self.across, self.z = screen[0][i], plan.z[i]
        self.floor = FLOORS[plan.floor[i]] if plan.floor[i] < len(FLOORS) else None
        self.light = "right" if plan.light[i, 0] > 0 else "left"

    def name(self, k: int, said: tuple[str, ...] = _SAID) -> str:
        words = self.words[k]
        return " ".join([words[w] for w in _SAID if w in said and words[w] != "plain"] + [words["shape"]])

    def references(self, k: int, without: str = "") -> list[str]:
        """The shortest names, all of one length, that fit this object alone; `without` is an attribute not to say."""
        usable = [w for w in _SAID if w != without and self.words[k][w] != "plain"]
        for length in range(len(usable) + 1):
            found = [said for said in combinations(usable, length) if self._alone(k, said)]
            if found:
                return [f"the {self.name(k, said)}" for said in found]
        return []

    def _alone(self, k: int, said: tuple[str, ...]) -> bool:
        asked = {w: self.words[k][w] for w in (*said, "shape")}
        return sum(all(words[w] == value for w, value in asked.items()) for words in self.words) == 1


def _each(scenes: Scenes) -> Iterator[_Scene]:
    screen = scenes.plan.screen()
    for i in range(scenes.n):
        yield _Scene(scenes.plan, i, screen)


def a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def captions(scenes: Scenes, seed: int | tuple[int, ...] = 0) -> list[str]:
    """A caption each: all objects, or two and how they stand to each other; the floor; sometimes the light.

    Sizes and textures are left out at random, one time in four each.
    """
    rng = np.random.default_rng(seed)
    return [_caption(scene, rng) for scene in _each(scenes)]


def _caption(scene: _Scene, rng: np.random.Generator) -> str:
    said = tuple(w for w in _SAID if w == "colour" or rng.random() > 0.25)
    order = rng.permutation(len(scene.objects)).tolist()
    names = [a(scene.name(k, said)) for k in order]
    if len(names) > 1 and rng.random() < 0.5:
        text = f"{names[0]} {_relation(scene, order[0], order[1], rng)} {names[1]}"
    else:
        text = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    if scene.floor is not None:
        text += f" on a {scene.floor} floor"
    return text + (f", lit from the {scene.light}" if rng.random() < 0.25 else "")


def _relation(scene: _Scene, first: int, second: int, rng: np.random.Generator) -> str:
    aside = scene.across[first] - scene.across[second]
    if abs(aside) >= _CLEAR and rng.random() < 0.6:
        return "left of" if aside < 0 else "right of"
    return "in front of" if scene.z[first] < scene.z[second] else "behind"


def clip_captions(clips: Clips, seed: int | tuple[int, ...] = 0) -> list[str]:
    """A caption each that says how the objects move, and behind or before which other one they pass."""
    rng = np.random.default_rng(seed)
    centre = clips.at(clips.length // 2)
    across, down, radius = (v.reshape(clips.n, clips.length, MOST) for v in clips.frames.plan.screen())
    z = clips.frames.plan.z.reshape(clips.n, clips.length, MOST)
    texts = []
    for i, scene in enumerate(_each(centre)):
        said = tuple(w for w in _SAID if w == "colour" or (w == "texture" and rng.random() > 0.25))
        order = rng.permutation(len(scene.objects)).tolist()
        order = [k for k in order if clips.motion[i, k]] + [k for k in order if not clips.motion[i, k]]
        parts = []
        for k in order:
            passed = None
            for j in order:
                apart = np.hypot(across[i, :, k] - across[i, :, j], down[i, :, k] - down[i, :, j])
                near = apart < 0.8 * np.maximum(radius[i, :, k], radius[i, :, j])
                if j != k and near.any() and len(set((z[i, near, k] < z[i, near, j]).tolist())) == 1:
                    passed = j, "in front of" if z[i, near, k][0] < z[i, near, j][0] else "behind"
            parts.append(_moves(scene, k, MOTIONS[clips.motion[i, k]], passed, said))
        texts.append(" and ".join(parts[: 1 + (len(parts) > 1 and rng.random() < 0.6)]))
    return texts


def _moves(scene: _Scene, k: int, motion: str, passed: tuple[int, str] | None, said: tuple[str, ...]) -> str:
    does = {"still": "stands still", "closer": "comes closer", "away": "moves away"}.get(motion, f"moves {motion}")
    other = "" if passed is None or motion == "still" else f" {passed[1]} {a(scene.name(passed[0], said))}"
    return f"{a(scene.name(k, said))} {does}{other}"


def phrases(scenes: Scenes, seed: int = 0) -> tuple[list[str], Int64[np.ndarray, " N"]]:
    """A phrase for each scene that fits one object alone, and which object that is.

    Where an object has a double in everything that is said, the nearest of them is meant, and called so.
    """
    rng = np.random.default_rng(seed)
    texts, slots = [], []
    for scene in _each(scenes):
        k = int(rng.integers(len(scene.objects)))
        found = scene.references(k)
        if not found:
            k = min((j for j in scene.objects if scene.name(j) == scene.name(k)), key=lambda j: scene.z[j])
            found = [f"the nearest {scene.name(k)}"]
        texts.append(found[rng.integers(len(found))])
        slots.append(k)
    return texts, np.array(slots)


_Asked = tuple[str, str, tuple[str, ...]]  # question, answer, all answers that it could have


def _about(attribute: str, answers: tuple[str, ...]) -> Callable[[_Scene, np.random.Generator], _Asked | None]:
    def make(scene: _Scene, rng: np.random.Generator) -> _Asked | None:
        for k in rng.permutation(len(scene.objects)).tolist():
            if found := scene.references(k, without=attribute):
                phrase = found[rng.integers(len(found))]
                asked = {"colour": "what colour is", "texture": "what texture has", "size": "how large is"}[attribute]
                return f"{asked} {phrase}?", scene.words[k][attribute], answers
        return None

    return make


def _about_shape(scene: _Scene, rng: np.random.Generator) -> _Asked | None:
    colours = [words["colour"] for words in scene.words]
    alone = [k for k, colour in enumerate(colours) if colours.count(colour) == 1]
    if not alone:
        return None
    k = alone[rng.integers(len(alone))]
    return f"what shape is the {colours[k]} thing?", scene.words[k]["shape"], SHAPES


def _about_count(scene: _Scene, rng: np.random.Generator) -> _Asked:
    return "how many things are there?", COUNTS[len(scene.objects) - 1], COUNTS


def _about_front(scene: _Scene, rng: np.random.Generator) -> _Asked | None:
    named = {k: found[0] for k in range(len(scene.objects)) if (found := scene.references(k))}
    if len(named) < 2:
        return None
    pair = rng.permutation(list(named))[:2].tolist()
    first, second = (named[k] for k in pair)
    front = named[min(pair, key=lambda k: scene.z[k])]
    return f"which is nearer, {first} or {second}?", front.removeprefix("the "), (
        first.removeprefix("the "), second.removeprefix("the "),
    )  # fmt: skip


def _about_side(scene: _Scene, rng: np.random.Generator) -> _Asked | None:
    named = [(k, found) for k in range(len(scene.objects)) if (found := scene.references(k))]
    pairs = [
        (one, other)
        for one in named
        for other in named
        if one != other and abs(scene.across[one[0]] - scene.across[other[0]]) >= _CLEAR
    ]
    if not pairs:
        return None
    (k, name), (j, other) = pairs[rng.integers(len(pairs))]
    side = "left" if scene.across[k] < scene.across[j] else "right"
    return f"is {name[0]} left or right of {other[0]}?", side, SIDES


def _about_presence(scene: _Scene, rng: np.random.Generator) -> _Asked:
    """A thing that is there, or one that has the colour of one thing and the shape of another, or any."""
    there = {(words["colour"], words["shape"]) for words in scene.words}
    if rng.random() < 0.5:
        colour, shape = sorted(there)[rng.integers(len(there))]
        return f"is there {a(colour)} {shape}?", "yes", ("yes", "no")
    mixed = sorted({(c, s) for c, _ in there for _, s in there} - there)
    rest = [(c, s) for c in COLOUR_NAMES for s in SHAPES if (c, s) not in there]
    pool = mixed or rest
    colour, shape = pool[rng.integers(len(pool))]
    return f"is there {a(colour)} {shape}?", "no", ("yes", "no")


def _about_light(scene: _Scene, rng: np.random.Generator) -> _Asked:
    return "from where does the light come?", scene.light, SIDES


KINDS: dict[str, Callable[[_Scene, np.random.Generator], _Asked | None]] = {
    "colour": _about("colour", COLOUR_NAMES),
    "shape": _about_shape,
    "texture": _about("texture", TEXTURES),
    "size": _about("size", SIZES),
    "count": _about_count,
    "front": _about_front,
    "side": _about_side,
    "presence": _about_presence,
    "light": _about_light,
}


def questions(scenes: Scenes, *, choices: bool, seed: int = 0, kinds: tuple[str, ...] = ()) -> tuple[Question, ...]:
    """One question about each scene; kinds of `KINDS`, or of those named, in turn, the next where one does not fit.

    With `choices` each has up to four, in random order. Questions of which is nearer have choices alone, since they
    name their answers: without choices they are left out.
    """
    rng = np.random.default_rng(seed)
    usable = [k for k in (kinds or tuple(KINDS)) if choices or k != "front"]
    asked = []
    for i, scene in enumerate(_each(scenes)):
        turn = usable[i % len(usable) :] + usable[: i % len(usable)]
        made = next((m for kind in turn if (m := KINDS[kind](scene, rng)) is not None), None)
        if made is None:
            raise DataError(f"scene {i}: no question of the kinds {', '.join(usable)} fits it")
        question, answer, answers = made
        offered = None
        if choices:
            wrong = [w for w in answers if w != answer]
            kept = rng.permutation(wrong)[:3].tolist()
            offered = tuple(rng.permutation([answer, *kept]).tolist())
        asked.append(Question(question, answer, offered))
    return tuple(asked)
