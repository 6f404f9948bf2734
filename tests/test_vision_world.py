"""The generated world: every truth against the pixels or against another truth, and that seeds share nothing."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from tsprobe.errors import DataError, SpecError
from vision.world import plan, shapes, words
from vision.world.clips import MOTIONS, clips
from vision.world.patterns import TEXTURES, texture
from vision.world.plan import COLOURS, FLOORS, MOST, SHIFTS, SIZES, VISIBLE
from vision.world.render import render
from vision.world.scenes import scenes
from vision.world.shapes import SHAPES

N = 96


@pytest.fixture(scope="module")
def world():
    return scenes(N, seed=3)


def objects(world):
    return [(i, k) for i in range(world.n) for k in range(MOST) if world.there[i, k]]


def test_pictures_are_what_they_should_be(world):
    assert (world.images.shape, world.images.dtype) == ((N, 3, 64, 64), np.uint8)
    assert (world.values.shape, world.values.dtype) == ((N, 3, 64 * 64), np.float32)
    assert 0 <= world.values.min() < world.values.max() <= 1
    np.testing.assert_allclose(world.values[5, 2, 7 * 64 + 9] * 255, world.images[5, 2, 7, 9], rtol=1e-5)


def test_objects_come_first_and_each_count_equally_often():
    counts = scenes(800, size=32, seed=1).there
    assert (np.diff(counts.astype(int), axis=1) <= 0).all()
    assert (np.abs(np.bincount(counts.sum(1), minlength=5)[1:] - 200) < 50).all()
    assert (scenes(20, size=32, objects=(2, 2)).there.sum(1) == 2).all()


def test_the_same_seed_gives_the_same_scenes_and_others_share_none():
    a, b = scenes(40, size=32, seed=5), scenes(40, size=32, seed=5)
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.images[:32], scenes(32, size=32, seed=5).images)
    seeds = [5, 6, (5, 0), (5, 1), (0, 5), (5, 0, 0), (0, 0, 5), 0, (0, 0), (0, 0, 0)]
    seen = {s.tobytes() for seed in seeds for s in scenes(64, size=32, seed=seed).plan.x}
    assert len(seen) == 64 * len(seeds)
    moving = clips(8, frames=2, size=32, seed=5).frames.plan
    assert not np.isin(moving.ground, a.plan.ground).any()


def test_another_size_shows_the_same_scene():
    small, large = scenes(32, size=32, seed=9), scenes(32, size=96, seed=9)
    np.testing.assert_array_equal(small.plan.x, large.plan.x)
    both = large.instance[:, 1::3, 1::3] == small.instance
    assert both.mean() > 0.97


def test_boxes_fit_the_masks(world):
    for i, k in objects(world):
        rows, columns = np.nonzero(world.instance[i] == k + 1)
        assert world.boxes[i, k].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert world.area[i, k] == len(rows)
    assert not world.boxes[~world.there].any()
    assert not world.area[~world.there].any()


def test_every_object_is_seen(world):
    """Against the pixels that it covers when it is alone."""
    for found in (world, scenes(256, size=32, seed=3, objects=(4, 4))):
        for k in range(MOST):
            alone = np.where(np.arange(MOST) == k, found.plan.shape, -1)
            only = render(_with(found.plan, shape=alone), found.size, np.random.default_rng(0))[1]
            share = found.area[:, k] / np.maximum((only > 0).sum((1, 2)), 1)
            assert (share[found.there[:, k]] > VISIBLE - 0.05).all()
    assert world.area[world.there].min() >= 20
    small, large = (world.area[world.there & (world.plan.size == s)] for s in (0, 1))
    assert small.max() < large.mean()


def test_scenes_that_are_drawn_again_keep_their_number_of_objects(monkeypatch):
    drawn = []

    def crowded(found):
        drawn.append(found.shape.copy())
        return (found.shape >= 0).all(1) if len(drawn) == 1 else np.zeros(found.n, bool)

    monkeypatch.setattr(plan, "_crowded", crowded)
    kept = plan.draw(200, np.random.default_rng(0), (1, MOST), None).shape
    np.testing.assert_array_equal((kept >= 0).sum(1), (drawn[0] >= 0).sum(1))
    assert (kept != drawn[0]).any(1).sum() == (drawn[0] >= 0).all(1).sum()


def _with(plan, /, **changed):
    return dataclasses.replace(plan, **changed)


def test_masks_are_where_the_picture_changes(world):
    """Another colour of an object changes the pixels of its mask, and no others but those on its edge."""
    a, b = ({"tone": np.full_like(world.plan.tone, v), "second": np.full_like(world.plan.tone, v)} for v in (0.2, 0.9))
    quiet = {"noise": np.zeros_like(world.plan.noise)}
    one, two = (render(_with(world.plan, **quiet, **c), 64, np.random.default_rng(0))[0].astype(int) for c in (a, b))
    change = np.abs(two - one).max(1)
    inside = world.instance > 0
    assert (change[inside] > 5).mean() > 0.995
    assert (change[~_grown(inside, 1)] > 12).mean() < 0.002  # beyond sharp corners, which cover pixels in part
    assert change[~_grown(inside, 4)].max() <= 12


def _grown(masks, steps):
    for _ in range(steps):
        masks = np.logical_or.reduce([masks, *(np.roll(masks, s, axis) for axis in (1, 2) for s in (-1, 1))])
    return masks


def test_colours_are_those_of_the_pixels():
    """Median hue inside plain objects, once the cast of the camera is taken off."""
    world = scenes(200, seed=8, objects=(1, 1))
    plain = np.flatnonzero(world.plan.texture[:, 0] == TEXTURES.index("plain"))
    table = np.array(list(COLOURS.values()))
    right = 0
    for i in plain:
        pixels = world.images[i][:, world.instance[i] == 1] / 255 / world.plan.gains[i][:, None]
        middle = np.median(pixels, axis=1)
        direction = (table / np.linalg.norm(table, axis=1, keepdims=True)) @ (middle / np.linalg.norm(middle))
        right += direction.argmax() == world.plan.colour[i, 0]
    assert right / len(plain) > 0.9


def test_the_nearer_object_hides_the_farther(world):
    alone = np.stack(
        [
            render(
                _with(world.plan, shape=np.where(np.arange(MOST) == k, world.plan.shape, -1)),
                64,
                np.random.default_rng(0),
            )[1]
            > 0
            for k in range(MOST)
        ],
        1,
    )  # [N, K, H, W]
    found = 0
    for k in range(MOST):
        for j in range(MOST):
            behind = world.plan.z[:, k] > world.plan.z[:, j]
            both = alone[:, j] & alone[:, k] & behind[:, None, None]
            assert not (world.instance[both] == k + 1).any()
            found += (both.sum((1, 2)) > 10).sum()
    assert found > 20


def test_depth_is_that_of_the_objects_and_grows_towards_the_wall(world):
    for i, k in objects(world):
        np.testing.assert_allclose(world.depth[i][world.instance[i] == k + 1], world.plan.z[i, k])
    free = world.instance == 0
    assert (world.depth[free] >= 0.7).all()
    assert (world.depth <= world.plan.wall_z[:, None, None] + 1e-6).all()
    level = scenes(30, seed=2, objects=(1, 1))
    for i in range(30):
        columns = np.flatnonzero((level.instance[i] == 0).all(0))
        assert (np.diff(level.depth[i][:, columns], axis=0) <= 1e-6).all()
        below = level.depth[i, -1, columns]
        assert (np.abs(below - 1) < 0.35).all()  # the floor enters at depth 1, more or less for the roll


def test_an_object_stands_on_the_floor_at_its_depth():
    world = scenes(300, seed=4, objects=(1, 1))
    whole = np.abs(world.plan.roll) < 0.02
    foot = world.boxes[whole, 0, 3]
    at = np.minimum(foot, 63)
    floor = world.depth[whole][np.arange(len(at)), at, world.boxes[whole, 0, 0] * 0]
    ratio = np.log(floor / world.plan.z[whole, 0])
    assert np.median(np.abs(ratio)) < 0.12


def test_light_is_brighter_on_its_side():
    world = scenes(300, seed=6, objects=(1, 1))
    disc = np.flatnonzero((world.plan.shape[:, 0] == SHAPES.index("disc")) & (world.plan.texture[:, 0] == 0))
    agree = []
    for i in disc:
        rows, columns = np.nonzero(world.instance[i] == 1)
        grey = world.images[i].mean(0)[rows, columns]
        slope = np.polyfit(columns - columns.mean(), grey, 1)[0]
        agree.append((slope > 0) == (world.plan.light[i, 0] > 0))
    assert len(disc) >= 5
    assert all(agree)


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_shapes_are_of_one_size_and_differ(number):
    grid = np.linspace(-1.2, 1.2, 121, dtype=np.float32)
    u, v = (a.reshape(1, -1) for a in np.meshgrid(grid, -grid))
    masks = [shapes.distance(np.array([m]), u, v)[0] < 0 for m in range(len(SHAPES))]
    assert np.hypot(u, v)[0][masks[number]].max() <= (1.25 if SHAPES[number] == "triangle" else 1.01)
    assert masks[number].sum() > 300
    for other in range(len(SHAPES)):
        if other != number:
            overlap = (masks[number] & masks[other]).sum() / (masks[number] | masks[other]).sum()
            assert overlap < 0.83, (SHAPES[number], SHAPES[other])
    assert (shapes.distance(np.array([-1]), u, v) > 1).all()


def test_textures_have_both_tones():
    a, b = (x.reshape(1, -1).astype(np.float32) for x in np.meshgrid(np.linspace(0, 3, 60), np.linspace(0, 3, 60)))
    assert not texture(np.array([0]), a, b).any()
    for kind in range(1, len(TEXTURES)):
        mix = texture(np.array([kind]), a, b)
        assert 0.15 < mix.mean() < 0.6
        assert mix.min() < 0.05 < 0.95 < mix.max()


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifted_scenes_have_the_same_kind_of_truth_but_other_pixels(shift):
    usual, other = scenes(64, size=48, seed=2), scenes(64, size=48, seed=2, shift=shift)
    assert other.area[other.there].min() >= 8
    statistics = {
        "texture": lambda s: np.abs(s.plan.pattern[..., 0] - 12.5).min() > 3,
        "light": lambda s: (s.plan.light[:, 1] < 0).all(),
        "palette": lambda s: np.log(s.plan.gains).std() > 0.25,
        "blur": lambda s: s.plan.noise.min() > 0.03 and s.plan.blur.min() > 0,
        "background": lambda s: (s.plan.floor == len(FLOORS)).all(),
    }[shift]
    assert statistics(other)
    assert not statistics(usual)


def test_blur_blurs():
    sharp = scenes(32, seed=2)
    plan = _with(sharp.plan, noise=np.zeros(32, np.float32))
    soft = _with(plan, blur=np.full(32, 0.03, np.float32))
    a, b = (render(p, 64, np.random.default_rng(0))[0].astype(float) for p in (plan, soft))
    assert np.abs(np.diff(b, axis=3)).mean() < 0.5 * np.abs(np.diff(a, axis=3)).mean()


def described(text):
    """Names in a caption: sets of words, the shape last."""
    found = re.findall(rf"\ban? ((?:[a-z]+ )*?(?:{'|'.join(SHAPES)}))\b", text)
    return [name.split() for name in found]


def fitting(world, i, name):
    """The objects that these words fit."""
    tables = (SIZES, tuple(COLOURS), TEXTURES, SHAPES)
    attributes = (world.plan.size, world.plan.colour, world.plan.texture, world.plan.shape)
    return [
        k
        for k in range(MOST)
        if world.there[i, k] and set(name) <= {table[a[i, k]] for table, a in zip(tables, attributes, strict=True)}
    ]


def test_captions_say_what_is_there(world):
    texts = words.captions(world, seed=4)
    assert len(set(texts)) > 0.98 * N
    related = 0
    for i, text in enumerate(texts):
        names = described(text)
        assert names
        assert all(fitting(world, i, name) for name in names)
        if found := re.search(r"on an? (\w+) floor", text):
            assert FLOORS[world.plan.floor[i]] == found[1]
        if found := re.search(r"lit from the (\w+)", text):
            assert (found[1] == "right") == (world.plan.light[i, 0] > 0)
        relation = re.search(r"left of|right of|in front of|behind", text)
        if relation:
            related += 1
            assert any(
                holds(world, i, relation[0], a, b)
                for a in fitting(world, i, names[0])
                for b in fitting(world, i, names[1])
            )
        else:
            assert len(names) == world.there[i].sum()
    assert related > 15
    assert words.captions(world, seed=4) == texts
    assert words.captions(world, seed=5) != texts
    assert any(" an orange" in f" {text}" for text in texts)
    assert not any(" a orange" in f" {text}" for text in texts)


def holds(world, i, relation, a, b):
    """By masks and depths, not by the plan."""
    if a == b:
        return False
    if relation in ("left of", "right of"):
        x = [np.nonzero(world.instance[i] == k + 1)[1].mean() for k in (a, b)]
        return (x[0] < x[1]) == (relation == "left of")
    z = [world.depth[i][world.instance[i] == k + 1].mean() for k in (a, b)]
    return (z[0] < z[1]) == (relation == "in front of")


def test_captions_of_unknown_floors_do_not_name_them():
    assert not any("floor" in text for text in words.captions(scenes(20, size=32, shift="background")))


def test_phrases_single_out_one_object(world):
    texts, slots = words.phrases(world, seed=1)
    lengths = set()
    for i, (text, k) in enumerate(zip(texts, slots, strict=True)):
        name = text.removeprefix("the nearest ").removeprefix("the ").split()
        found = fitting(world, i, name)
        lengths.add(len(name))
        if text.startswith("the nearest "):
            assert k == min(found, key=lambda j: world.plan.z[i, j])
        else:
            assert found == [k]
    assert lengths >= {1, 2}


def test_doubles_are_told_by_which_is_nearest(world):
    two = world.take(np.flatnonzero(world.there.sum(1) == 2)[:1])
    same = {f: np.repeat(getattr(two.plan, f)[:, :1], MOST, 1) for f in ("size", "colour", "texture", "shape")}
    same["shape"] = np.where(two.there, same["shape"], -1)
    twins = _with_plan(two, **same)
    (text,), (k,) = words.phrases(twins)
    assert text.startswith("the nearest ")
    assert k == twins.plan.z[0, :2].argmin()


def _with_plan(world, **changed):
    return _with(world, plan=_with(world.plan, **changed))


@pytest.mark.parametrize("kind", words.KINDS)
def test_answers_are_right(world, kind):
    few = world if kind not in ("front", "side") else world.take(np.flatnonzero(world.there.sum(1) == 4))
    tried, right = 0, []
    for i in range(few.n):
        try:
            (asked,) = words.questions(few.take(np.array([i])), choices=True, seed=i, kinds=(kind,))
        except DataError:
            continue  # the scene does not allow for such a question
        tried += 1
        right.append(asked.answer)
        assert asked.answer in asked.choices
        assert len(set(asked.choices)) == len(asked.choices) >= 2
        assert correct(few, i, kind, asked)
    assert tried > 10
    assert len(set(right)) > 1


def correct(world, i, kind, asked):
    plan, text = world.plan, asked.question
    there = world.there[i].nonzero()[0]
    tables = {"colour": tuple(COLOURS), "texture": TEXTURES, "size": ("small", "large"), "shape": SHAPES}
    if kind in ("colour", "texture", "size"):
        (k,) = fitting(world, i, re.search(r"(?:is|has) the ([a-z ]+)\?", text)[1].split())
        return tables[kind][getattr(plan, kind)[i, k]] == asked.answer
    if kind == "shape":
        colour = tables["colour"].index(re.search(r"the (\w+) thing", text)[1])
        (k,) = [k for k in there if plan.colour[i, k] == colour]
        return SHAPES[plan.shape[i, k]] == asked.answer
    if kind == "count":
        return words.COUNTS[len(np.unique(world.instance[i])) - 2] == asked.answer
    if kind == "front":
        pair = [fitting(world, i, name.split()) for name in re.findall(r"the ([a-z ]+?)(?: or|\?)", text)]
        assert [len(p) for p in pair] == [1, 1]
        nearest = min((p[0] for p in pair), key=lambda k: world.depth[i][world.instance[i] == k + 1].mean())
        return fitting(world, i, asked.answer.split()) == [nearest]
    if kind == "side":
        (a,), (b,) = (fitting(world, i, name.split()) for name in re.findall(r"the ([a-z ]+?)(?: left|\?)", text))
        return holds(world, i, f"{asked.answer} of", a, b)
    if kind == "presence":
        name = re.search(r"an? ([a-z]+ [a-z]+)\?", text)[1].split()
        return bool(fitting(world, i, name)) == (asked.answer == "yes")
    return (plan.light[i, 0] > 0) == (asked.answer == "right")


def test_questions_come_in_turn_and_without_the_nearer_where_there_are_no_choices(world):
    asked = words.questions(world, choices=True)
    assert len({q.question.split()[0] + q.question.split()[1] for q in asked}) >= 8
    short = words.questions(world, choices=False)
    assert all(q.choices is None for q in short)
    assert not any("nearer" in q.question for q in short)
    assert max(len(q.choices) for q in asked) == 4


def test_both_answers_about_presence_are_equally_frequent():
    answers = [q.answer for q in words.questions(scenes(200, size=32), choices=True, kinds=("presence",))]
    assert 70 < answers.count("yes") < 130


@pytest.fixture(scope="module")
def moving():
    return clips(24, frames=8, size=64, seed=2)


def test_clips_are_frames_of_one_scene(moving):
    assert moving.images.shape == (24, 8, 3, 64, 64)
    plan = moving.frames.plan
    for name in ("shape", "colour", "texture", "radius", "floor", "light"):
        each = getattr(plan, name).reshape(24, 8, -1)
        assert (each == each[:, :1]).all()
    np.testing.assert_array_equal(moving.at(3).images, moving.images[:, 3])
    np.testing.assert_array_equal(moving.images, clips(24, frames=8, size=64, seed=2).images)


def test_objects_move_as_it_is_said(moving):
    """By their masks: against those of the floor's pattern, which the camera moves alone."""
    plan = moving.frames.plan
    x, z = (a.reshape(24, 8, MOST) for a in (plan.x, plan.z))
    apparent = plan.radius.reshape(24, 8, MOST) / z
    kinds = set()
    for i in range(24):
        for k in range(MOST):
            if moving.motion[i, k] < 0:
                assert plan.shape.reshape(24, 8, MOST)[i, 0, k] == -1
                continue
            motion = MOTIONS[moving.motion[i, k]]
            kinds.add(motion)
            aside, grown = x[i, -1, k] - x[i, 0, k], apparent[i, -1, k] / apparent[i, 0, k]
            if motion == "still":
                assert aside == 0
                assert grown == 1
            elif motion in ("left", "right"):
                assert (aside > 0) == (motion == "right")
                assert abs(aside) / z[i, 0, k] > 0.29
                assert grown == 1
            else:
                assert (grown > 1.1) == (motion == "closer")
    assert kinds == set(MOTIONS)
    centre = np.full((24, 8, MOST), np.nan)
    for t in range(8):
        frame = moving.at(t)
        for i, k in objects(frame):
            if frame.area[i, k] > 30:
                centre[i, t, k] = frame.boxes[i, k, [0, 2]].mean()
    gone = np.isnan(centre).any(1)
    for i, k in np.argwhere((moving.motion == MOTIONS.index("right")) & ~gone):
        assert centre[i, -1, k] - centre[i, 0, k] > 4


def test_motion_cannot_be_told_from_where_an_object_starts():
    """First places of what moves left and right overlap; the frames in the other order are the opposite motion."""
    many = clips(200, frames=2, size=32, seed=4)
    across = many.frames.plan.screen()[0].reshape(200, 2, MOST).mean(1)
    left, right = (across[many.motion == MOTIONS.index(m)] for m in ("left", "right"))
    assert abs(left.mean() - right.mean()) < 0.08


def test_clip_captions_say_how_things_move(moving):
    texts = words.clip_captions(moving)
    first = moving.at(4)
    said = {
        "stands still": "still",
        "comes closer": "closer",
        "moves away": "away",
        "moves left": "left",
        "moves right": "right",
    }
    for i, text in enumerate(texts):
        for part in text.split(" and "):
            name, verb = re.match(
                r"an? ([a-z ]+?) (stands still|comes closer|moves (?:away|left|right))", part
            ).groups()
            found = fitting(first, i, name.split())
            assert any(MOTIONS[moving.motion[i, k]] == said[verb] for k in found)
        if not text.count("stands still"):
            continue
        if not (moving.motion[i] > 0).any():
            continue
        assert not text.split(" and ")[0].endswith("stands still")  # what moves is said first
    passing = sum("behind" in t or "in front of" in t for t in texts)
    assert passing >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least 1 scene"),
        ({"size": 16}, "at least 32 pixels"),
        ({"objects": (0, 2)}, "within 1 to 4"),
        ({"objects": (3, 2)}, "within 1 to 4"),
        ({"shift": "weather"}, "none of texture, light"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    for make in (scenes, clips):
        with pytest.raises(SpecError, match=message):
            make(**{"n": 2, **arguments})
    with pytest.raises(SpecError, match="at least 2 to show motion"):
        clips(1, frames=1)
