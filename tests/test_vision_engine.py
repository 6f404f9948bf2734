"""The video data engine: captions from doubtful sources, and a tower of images that goes on to clips."""

from __future__ import annotations

import csv
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import tsprobe
from test_vision_pretraining import pool, run_of

import tsprobe as tp
from tsprobe.errors import DataError, EncoderError, SpecError
from tsprobe.pretraining import fit, recipes
from tsprobe.settings import validated
from tsprobe.study.progress import silent
from vision.engine.captioner import Captioner, CaptionerShape
from vision.engine.films import Films, films, moments
from vision.engine.merge import merged
from vision.engine.quality import quality
from vision.engine.things import OPPOSITE, Thing, reversed_in_time, spoken, things
from vision.engine.titles import titles
from vision.models import Vocabulary
from vision.pretraining.video import VideoRun, VideoSpec
from vision.pretraining.video.retrieval import direction, mean_of_frames, recall, retrieval
from vision.pretraining.video.start import load_start, with_words
from vision.pretraining.video.tuned import Tuned
from vision.world.scenes import scenes
from vision.world.words import captions as scene_captions

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "pe-mini-video.yaml"
LEARNS = {"steps": 6, "batch": 8, "rate": 3e-3, "warmup": 2}


def some_films(n=12, seed=3, **given):
    return films(n, **({"frames": 8, "size": 32, "drawn": 32, "objects": (1, 2), "seed": seed} | given))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tower of a few steps, as `tsprobe pretrain` leaves it."""
    folder = tmp_path_factory.mktemp("start")
    fit(run_of("contrastive", images=64), folder, stage=silent)
    return folder


def settings_for(start, **given):
    small = {
        "recipe": "vision/video", "start": str(start), "size": 32, "log_every": 2, "together": 7,
        "world": {"pool": 64, "held_out": 16, "size": 32},
        "clips": {"exact": 16, "unlabelled": 16, "held_out": 8, "frames": 4, "described_frames": 2},
        "captioner": {"width": 16, "depth": 1, "heads": 2, "context": 24, "frames": 3},
        "titles": {"missing": 0.2, "wrong": 0.1}, "pictures": LEARNS, "refined": LEARNS,
        "tuning": {"steps": 3, "batch": 4, "pictures": 4, "rate": 1e-3, "warmup": 1},
    }  # fmt: skip
    for name, value in given.items():
        small[name] = small.get(name, {}) | value if isinstance(value, dict) else value
    return small


def run_at(start, **given):
    return VideoRun(validated(VideoSpec, settings_for(start, **given)), "cpu", (pool(64), pool(16, seed=1)))


# --- words ---


def test_exact_captions_are_read_back_as_they_are_meant():
    for caption, truth in zip((found := some_films(40)).captions, found.truth, strict=True):
        told = [thing for thing in things(caption) if thing.motion]
        assert told
        for thing in told:
            assert any(
                (thing.colour, thing.shape, thing.motion) == (one.colour, one.shape, one.motion)
                and thing.texture in (None, one.texture)
                for one in truth
            )


def test_places_are_no_motions():
    named = things("a small red striped disc left of a blue ring on a wooden floor, lit from the left")
    assert named == [Thing("red", "striped", "disc"), Thing("blue", None, "ring")]
    assert things("a blue ring moves away behind a disc") == [Thing("blue", None, "ring", "away"), Thing(shape="disc")]
    assert things("untitled") == []


def test_things_are_spoken_as_they_are_read():
    named = [Thing("orange", "dotted", "moon", "closer"), Thing("red", None, None, "still")]
    assert spoken(named) == "an orange dotted moon comes closer and a red thing stands still"
    assert things(spoken(named)) == named


def test_backwards_turns_every_motion_and_nothing_else():
    caption = "a red disc moves left behind a blue ring and a cross comes closer and a star stands still"
    back = "a red disc moves right behind a blue ring and a cross moves away and a star stands still"
    assert (reversed_in_time(caption), reversed_in_time(back)) == (back, caption)
    assert reversed_in_time("a disc left of a ring") == "a disc left of a ring"
    assert all(OPPOSITE[OPPOSITE[motion]] == motion for motion in OPPOSITE)


# --- merging ---


def test_what_sources_agree_on_is_kept_and_motion_is_the_clip_s():
    frames = ["a red striped disc", "a red striped disc and a green star", "a pink moon"]
    assert merged("a red striped disc moves left", frames, "watch a red disc moves right") == (
        "a red striped disc moves left"
    )
    both = "a green star stands still and a red disc moves left"
    assert merged(both, ["a red disc", "a red disc", "a green star and a red disc"], "my green star") == (
        "a green star stands still and a red disc moves left"
    )


def test_what_one_doubtful_source_says_is_dropped():
    frames = ["a red ring", "a red ring", "a pink ring"]
    assert merged("a red dotted disc moves left", frames, "") == "a red thing moves left"
    assert merged("a blue ring moves left", frames, "a green cross") == "a ring moves left"
    assert merged("a blue disc comes closer", frames, "a green cross") == "a thing comes closer"
    assert merged("a red disc moves left", ["a red disc", "a blue disc", "a green disc"], "") == "a thing moves left"


def test_title_speaks_of_motion_only_where_the_clip_does_not():
    assert merged("a red disc", [], "a red disc moves away video") == "a red disc moves away"
    assert merged("a red disc comes closer", [], "a red disc moves away video") == "a red disc comes closer"


def test_nothing_said_is_nothing_merged():
    assert merged("", ["", ""], "") == ""
    assert merged("", [], "my red disc") == "a thing"


def test_merging_right_and_wrong_sources_is_better_than_the_worse_of_them():
    found = some_films(60)
    exact = [spoken(truth[:1]) for truth in found.truth]
    noisy = titles(found.truth, missing=0.0, wrong=0.5, seed=1)
    scores = {
        name: quality(said, found.truth)
        for name, said in {
            "title": noisy,
            "merged": [merged(a, [a, a], b) for a, b in zip(exact, noisy, strict=True)],
        }.items()
    }
    assert scores["merged"]["all"] == 1.0
    assert scores["title"]["shape"] < 0.95


# --- titles, quality ---


def test_titles_are_missing_and_wrong_as_often_as_asked():
    truth = [[Thing(colour, "plain", shape, "left")] for colour in ("red", "blue") for shape in ("disc", "ring")] * 250
    given = titles(truth, missing=0.3, wrong=0.2, seed=0)
    assert 0.26 < np.mean([not title for title in given]) < 0.34
    fits = [things(t)[0].colour == one.colour and things(t)[0].shape == one.shape
            for t, (one,) in zip(given, truth, strict=True) if t]  # fmt: skip
    assert 0.73 < np.mean(fits) < 0.84  # of those given two in seven are of another clip, one in four of which fits
    assert titles(truth, missing=0.3, wrong=0.2, seed=0) == given
    assert all(titles(truth, missing=0.0, wrong=0.0, seed=0))
    assert not any(titles(truth, missing=1.0, wrong=0.0, seed=0))


def test_quality_counts_what_is_said_rightly():
    truth = [[Thing("red", "plain", "disc", "left"), Thing("blue", "plain", "ring", "still")]] * 4
    said = ["a red disc moves left", "a blue ring moves left", "a green ring", ""]
    assert quality(said, truth) == {"shape": 0.75, "colour": 0.5, "motion": 0.25, "all": 0.25, "said": 0.75}


# --- clips ---


def test_films_are_shrunk_clips_and_differ_by_seed():
    small, large = some_films(3, drawn=64), some_films(3, size=64, drawn=64)
    assert (small.frames.shape, large.frames.shape) == ((3, 8, 3, 32, 32), (3, 8, 3, 64, 64))
    assert small.captions == large.captions
    mean = large.frames.reshape(3, 8, 3, 32, 2, 32, 2).mean((4, 6))
    assert np.abs(mean - small.frames).mean() < 6  # the filter is wider than two pixels
    assert not np.array_equal(some_films(3).frames, some_films(3, seed=4).frames)
    values = small.pictures(np.array([2, 0]), np.array([1, 7]))
    assert values.shape == (4, 3, 32, 32)
    np.testing.assert_allclose(values[1], small.frames[2, 7] / 127.5 - 1, atol=1e-6)
    assert moments(8, 3).tolist() == [0, 4, 7]


def test_a_clip_of_one_frame_is_refused(start):
    with pytest.raises(SpecError, match="at least 2"):
        some_films(2, frames=1)
    with pytest.raises(DataError, match="two frames or more"):
        Films(np.zeros((2, 1, 3, 32, 32), np.uint8), ["", ""], [[], []])


# --- captioner ---


def captioner_of(words, frames=3, patches=4, **shape):
    torch.manual_seed(0)
    return Captioner(CaptionerShape(**{"width": 16, "depth": 2, "heads": 2, "context": 12, "frames": frames} | shape),
                     8, patches, Vocabulary.of(words))  # fmt: skip


def test_written_words_are_those_of_the_whole_computation_without_kept_keys():
    captioner = captioner_of(["a red disc moves left and a blue ring"]).eval()
    with torch.no_grad():
        captioner.to_words.weight.mul_(8)
    seen = torch.randn(5, 3, 4, 8, generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        numbers = torch.full((5, 1), 1)
        for _ in range(11):
            numbers = torch.cat([numbers, captioner(seen, numbers)[:, -1:].argmax(-1)], 1)
    expected = [captioner.vocabulary.text(row[1:]) for row in numbers.tolist()]
    assert captioner.write(seen) == expected
    assert len(set(expected)) > 1


def test_words_do_not_see_later_words_and_the_prefix_sees_no_words():
    captioner = captioner_of(["a b c d"])
    seen, numbers = torch.randn(2, 1, 4, 8), torch.tensor([[1, 4, 5, 6], [1, 6, 5, 4]])
    other = numbers.clone()
    other[:, 3] = 7
    torch.testing.assert_close(captioner(seen, numbers)[:, :3], captioner(seen, other)[:, :3])
    assert not torch.allclose(captioner(seen, numbers)[:, 3], captioner(seen, other)[:, 3])


def test_captioner_learns_the_order_of_frames():
    """Two frames in one order or the other: nothing but the frame embedding tells them apart."""
    frames = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    seen, said = torch.stack([frames, frames.flip(0)]), ["moves left", "moves right"]
    captioner = captioner_of(said, frames=2)
    optimiser = torch.optim.Adam(captioner.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        captioner.loss(seen, said)[0].backward()
        optimiser.step()
    assert captioner.write(seen) == said
    with torch.no_grad():
        captioner.frames.zero_()
    blind = captioner.write(seen)
    assert blind[0] == blind[1]


# --- the tower ---


def test_new_words_start_as_the_unknown_one(start):
    text = load_start(str(start)).text
    wider = with_words(text, ["red moves closer", "aardvark"])
    assert wider.vocabulary.words == [*text.vocabulary.words, "aardvark", "closer", "moves"]
    captions = ["red moves left of blue", "nobody closer"]
    with torch.no_grad():
        torch.testing.assert_close(wider.encode(captions), text.encode(captions))


def test_frames_are_averaged_with_or_without_their_length():
    frames = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    assert mean_of_frames(frames, 2, normalise=False).tolist() == [[1.5, 0.5], [2.0, 0.0]]
    assert mean_of_frames(frames, 2, normalise=True).tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_order_of_frames_is_lost_so_direction_is_a_guess(start):
    found, begun = some_films(24), load_start(str(start))
    text = with_words(begun.text, found.captions)
    with torch.no_grad():
        frames = begun.tower.encode(found.pictures(np.arange(24), np.arange(8)))
        back = begun.tower.encode(found.pictures(np.arange(24), np.arange(8)[::-1].copy()))
        seen = mean_of_frames(frames, 8, normalise=True)
        torch.testing.assert_close(seen, mean_of_frames(back, 8, normalise=True))
        turned = [reversed_in_time(caption) for caption in found.captions]
        told, untold = direction(seen, text, found.captions), direction(seen, text, turned)
    assert set(told) == {"direction_sideways", "direction_in_depth"}
    for name in told:  # each clip is told in one of its two directions alone
        assert told[name] + untold[name] == pytest.approx(1)
    assert told["direction_in_depth"] == 0.5  # neither word is known to this tower


def test_retrieval_agrees_with_counting_ranks():
    rng = torch.Generator().manual_seed(0)
    seen, said = torch.randn(9, 4, generator=rng), torch.randn(9, 4, generator=rng)
    captions = [f"caption {i}" for i in range(8)] + ["caption 0"]
    z = (seen / seen.norm(dim=1, keepdim=True)).numpy() @ (said / said.norm(dim=1, keepdim=True)).numpy().T
    rank = [min(int((z[i] > z[i, j]).sum()) for j in range(9) if captions[j] == captions[i]) for i in range(9)]
    turned = [min(int((z.T[i] > z.T[i, j]).sum()) for j in range(9) if captions[j] == captions[i]) for i in range(9)]
    found = retrieval(seen, said, captions)
    for way, ranks in (("captions", rank), ("seen", turned)):
        assert found[f"{way}_r1"] == pytest.approx(np.mean(np.array(ranks) < 1))
        assert found[f"{way}_r5"] == pytest.approx(np.mean(np.array(ranks) < 5))
    assert recall(torch.eye(3), torch.eye(3, dtype=torch.bool), 5) == 1.0


def test_same_captions_are_no_wrong_answers(start):
    begun = load_start(str(start))
    tuned = Tuned(begun.tower, begun.text, begun.scale)
    seen, said = torch.randn(3, 12), torch.randn(3, 12)
    two = tuned.found(seen[:2], said[:2], ["red", "blue"])
    copies = tuned.found(seen[[0, 0, 1]], said[[0, 0, 1]], ["red", "red", "blue"])
    parts = [tuned.found(seen[[i, 1]], said[[i, 1]], ["red", "blue"]) for i in (0,)]
    assert float(two.detach()) == pytest.approx(float(parts[0].detach()))
    assert float(copies.detach()) < float(tuned.found(seen[[0, 0, 1]], said[[0, 0, 1]], ["a", "b", "c"]).detach())


def test_tuning_learns_clips_and_pictures_together(start):
    begun = load_start(str(start))
    found = some_films(6, frames=3)
    tuned = Tuned(begun.tower, with_words(begun.text, found.captions), begun.scale)
    frames, pictures = found.pictures(np.arange(6), np.arange(3)), pool(6).batch(np.arange(6), 32)
    optimiser = torch.optim.Adam(tuned.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = tuned.loss(pictures.values, pictures.captions, frames, found.captions, normalise=True)
        losses.append(float(loss.total.detach()))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert float(loss.parts["clips"].detach()) < 1.2


# --- the run ---


def table(folder):
    with (folder / "losses.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    about = fit(run_at(start), folder, stage=silent)
    return folder, about


def test_run_leaves_captions_measures_and_an_encoder(whole):
    folder, about = whole
    assert about["finished"]
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    for row in rows:
        assert set(row) == {"clip", "captioner", "frames", "title", "merged", "exact"}
        assert len(row["frames"]) == 2
        assert row["merged"] == merged(row["captioner"], row["frames"], row["title"])
    assert set(about["captions"]) == {"clip", "frames", "metadata", "merged", "exact"}
    assert about["captions"]["exact"]["all"] == 1.0
    assert set(about["retrieval"]) == {"before", "metadata", "merged"}
    last = about["held_out"][-1]
    for when in about["retrieval"]:
        for what in ("pictures", "clips"):
            for found in ("captions_r1", "captions_r5", "seen_r1", "seen_r5"):
                assert 0 <= last[f"{when}_{what}_{found}"] <= 1
    assert last["says_merged_motion"] == about["captions"]["merged"]["motion"]
    encoder = tp.load_encoder(f"vision:{folder}")
    assert encoder.layers[-1].name == "projection"
    again = load_start(str(folder))  # a start like any other
    assert "moves" in again.text.vocabulary.words
    assert "then 16 generated clips" in again.config["pretrained_on"]


def test_each_tuning_starts_from_the_same_tower(start):
    run = run_at(start, compare=["exact", "none"], tuning={"steps": 2})
    seen = {}
    while run.step < run.spec.steps:
        name, i = run.spec.place(run.step)
        if name.startswith("tune") and i == 0:
            run._begin(name)
            seen[name] = {key: value.clone() for key, value in run.tuned.state_dict().items()}
        run.advance()
    assert list(seen) == ["tune exact", "tune none", "tune merged"]
    first, *others = seen.values()
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    assert any(not torch.equal(value, first[key]) for key, value in run.tuned.state_dict().items())
    assert all(torch.equal(value, first[f"tower.{key}"]) for key, value in run.frozen.state_dict().items())


@pytest.mark.parametrize("until", [4, 6, 8, 15, 19])  # in every part, and between two
def test_stopped_run_goes_on_to_the_same_numbers(start, whole, until, tmp_path):
    fit(run_at(start), tmp_path, stage=silent, until=until)
    about = fit(run_at(start), tmp_path, stage=silent)
    assert about["held_out"] == whole[1]["held_out"]
    assert table(tmp_path) == table(whole[0])
    assert (tmp_path / "captions.jsonl").read_text() == (whole[0] / "captions.jsonl").read_text()
    for name in ("model.safetensors", "text.safetensors"):
        mine, theirs = load_file(tmp_path / name), load_file(whole[0] / name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_another_start_is_noticed(start, tmp_path):
    fit(run_at(start), tmp_path / "run", stage=silent, until=1)
    other = run_at(start)
    other.frozen.positions.data += 1
    with pytest.raises(SpecError, match="began with another tower"):
        fit(other, tmp_path / "run", stage=silent)


def test_captions_that_say_nothing_are_refused(start):
    run = run_at(start)
    run.written = {"clip": [""] * 16, "frames": [["", ""]] * 16}
    run.material.titles = [""] * 15 + ["my red disc"]
    with pytest.raises(DataError, match="say something of 1 clips only, a batch has 4"):
        run.captions_of("merged")


def test_starts_without_a_text_tower_and_of_another_class_are_refused(start, tmp_path):
    fit(run_of("self-distillation", tower={"pool": "cls", "embed": None}, images=8), tmp_path / "dino", stage=silent)
    with pytest.raises(EncoderError, match="holds no text tower"):
        run_at(tmp_path / "dino")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(EncoderError, match="vision-zoo"):
        run_at(tmp_path)
    with pytest.raises(EncoderError, match="no folder vision/pe-minni"):
        run_at("vision/pe-minni")


# --- through tsprobe ---


@pytest.fixture
def installed(monkeypatch):
    point = EntryPoint("vision", "vision.pretraining:load_recipe", recipes.GROUP)
    monkeypatch.setattr(recipes, "entry_points", lambda group: [point])


def sets(*settings):
    return [part for text in settings for part in ("--set", text)]


def test_command_line_runs_it_and_prints_the_retrieval(installed, start, tmp_path, capsys):
    drawn = scenes(12, size=32)
    assert scene_captions(drawn)
    small = settings_for(start, world={"pool": 12, "folder": str(tmp_path / "pool")})
    changed = sets(*(f"{name}={json.dumps(value)}" for name, value in small.items() if name != "recipe"))
    tsprobe("pretrain", CONFIG, "--out", tmp_path / "out", "--device", "cpu", *changed)
    printed = capsys.readouterr().out
    assert "Retrieval among 16 held-out pictures and 8 clips" in printed
    assert f"encoder: vision:{tmp_path / 'out'}" in printed
    tsprobe("list", "recipes")
    assert "vision/video" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recipe=vision/vidio", "did you mean 'vision/video'"),
        ("captioners=1", "unknown setting 'captioners'; did you mean 'captioner'"),
        ("clips.frame=4", "unknown setting 'frame'; did you mean 'frames'"),
        ("clips.frames=1", "a clip needs at least 2 frames to show motion, not 1"),
        ("captioner.frames=9", "clips have 8 frames"),
        ("titles.missing=0.9", "the missing and the wrong are more than all"),
        ("compare=[title]", "compare"),
        ("start=/no/such/folder", "start: there is no folder /no/such/folder"),
        ("titles={missing: 1.0, wrong: 0.0}", "0 clips have a title, a batch has 16"),
        ("size=60", "60 pixels are not two or more whole patches"),
    ],
)
def test_mistake_in_a_config_is_one_clear_line(installed, start, setting, message, capsys, tmp_path):
    small = (f"start={start}", f"world.folder={tmp_path}", "world.pool=70", "world.held_out=4", "clips.exact=60",
             "clips.unlabelled=20", "clips.held_out=4")  # fmt: skip
    tsprobe("pretrain", CONFIG, "--out", tmp_path / "out", *sets(*small, setting), expect=2)
    assert message in " ".join(capsys.readouterr().err.split())
