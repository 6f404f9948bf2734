"""The language recipe: a decoder teaches the encoder, whole or cut, what it is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from alignable import spec

from tsprobe.alignment import read_align_spec
from tsprobe.alignment.series import HELD_OUT, Labelled
from tsprobe.alignment.train import Tuning, tune
from tsprobe.alignment.words import Words
from tsprobe.encoders import load_encoder
from tsprobe.errors import DataError, MissingPackageError, SpecError
from tsprobe.probes.language import Texts
from tsprobe.study.progress import silent
from tsprobe.tasks import load_task

ASKED = "language/choice?n_train=60&n_test=20&length=128&about=trend"
SETTINGS = {"recipe": "language", "labelled": (ASKED,), "mask": 0.0, "stochastic_depth": 0.0, "layer_scale": False}


@pytest.fixture(scope="module")
def questions():
    return load_task(ASKED)


@pytest.fixture
def encoder():
    return load_encoder("zoo/contrastive").truncate("block.1")


def tuning(given, questions, **changes):
    asked = spec(**(SETTINGS | {"steps": 4, "batch": 8, "rate": 1e-3} | changes))
    return Tuning(asked, given, (given.final,), [questions])


def test_the_loss_is_the_mean_surprise_of_the_words(encoder, questions):
    lessons = [Labelled(encoder, [questions], 0).lesson(HELD_OUT, 8)]
    words = Words(encoder, [questions], lessons, decoder="tiny", seed=0)
    tokens, inputs = words._read(encoder, lessons[0])
    (loss,) = words(tokens, inputs, lessons[0]).values()
    asked = [questions.asked.train[row] for row in lessons[0].rows.tolist()]
    counts = [len(words.reader.decoder.answer(q.answer)) for q in asked]
    z = (words._segments(tokens, inputs, lessons[0]) - words.mean) / words.spread
    each = [
        words.reader.likelihood(z[None, i : i + 1], Texts.of(words.reader.decoder, [(q.question, q.answer)]))
        for i, q in enumerate(asked)
    ]
    assert float(loss.detach()) == pytest.approx(-float(sum(each).detach()) / sum(counts), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in words.weights.values())
    with torch.no_grad():
        words.weights["words"].zero_()
        (blank,) = words(tokens, inputs, lessons[0]).values()
    assert float(blank) == pytest.approx(np.log(len(words.reader.decoder._vocabulary)))  # every word is as likely


def test_segments_are_those_that_a_study_reads(encoder, questions):
    from tsprobe.capture import Reading, extract

    lesson = Labelled(encoder, [questions], 0).lesson(HELD_OUT, 8)
    words = Words(encoder, [questions], [lesson], decoder="tiny", seed=0)
    mine = words._segments(*words._read(encoder, lesson), lesson)
    read = extract(
        encoder, questions.train.take(lesson.rows.tolist()), Reading(("segments16",)), layers=[encoder.final]
    )
    theirs = torch.from_numpy(read.arrays[encoder.final]).float().view(mine.shape)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_encoder_waits_for_the_projector_and_then_learns(encoder, questions, tmp_path):
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    run = tuning(encoder, questions, steps=6, projector_first=3, decay=0.0)
    module = run.student.encoder.module
    for step in range(6):
        run.advance()
        same = all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
        assert same == (step < 3)


def test_learning_lowers_the_loss_of_held_out_questions(encoder, questions):
    run = tuning(encoder, questions, steps=60, batch=16, rate=2e-3)
    run.look()
    while run.step < 60:
        run.advance()
    run.look()
    first, last = (row for row in run.rows if row["held_out"])
    assert last[ASKED] < 0.75 * first[ASKED]


def test_a_cut_encoder_is_saved_and_loaded_as_such(questions, tmp_path):
    whole = load_encoder("zoo/contrastive")
    run = tuning(whole.truncate("block.1"), questions, steps=2, encoder="zoo/contrastive", cut="block.1")
    found = tune(run, tmp_path, stage=silent, name="language")
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["cut"] == "block.1"
    again = load_encoder(f"aligned:{tmp_path / 'encoder'}")
    assert again.final == "block.1"
    assert list(again.taps) == ["embedding", "block.0", "block.1"]
    for name, value in found.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value)


def test_a_task_without_questions_is_refused(encoder):
    task = load_task("ucr/GunPoint")
    with pytest.raises(SpecError, match="learns from questions"):
        Tuning(spec(**(SETTINGS | {"labelled": (task.name,)})), encoder, (encoder.final,), [task])


@pytest.mark.parametrize(
    ("name", "message"),
    [("language/choice?about=trnd", "trend"), ("language/grounding?about=trend", "choice, pair and answer")],
)
def test_kinds_of_question_are_named(name, message):
    with pytest.raises(SpecError, match=message):
        load_task(name)
    only = {q.question for q in load_task("language/choice?n_train=20&n_test=8&about=pace").asked.train}
    assert only == {"how does the pace of the season change?"}


def test_several_kinds_of_question_are_joined_by_a_plus():
    both = load_task("language/choice?n_train=60&n_test=8&length=128&about=trend+pace")
    alone = [load_task(f"language/choice?n_train=60&n_test=8&length=128&about={kind}") for kind in ("trend", "pace")]
    asked = [{q.question for q in task.asked.train} for task in (both, *alone)]
    assert asked[0] & asked[1]
    assert asked[0] & asked[2]
    assert asked[0] <= asked[1] | asked[2]


@pytest.mark.parametrize("config", sorted((Path(__file__).parents[1] / "configs").glob("align_*.yaml")), ids=str)
def test_the_tasks_of_shipped_configs_can_be_loaded(config):
    """Names are parsed; data that a config needs and that is not here is not its mistake."""
    spec = read_align_spec(config)
    for name in (*spec.study.tasks, *spec.labelled, *spec.series):
        small = re.sub(r"n_(train|test)=\d+", r"n_\1=8", name)
        try:
            load_task(small)
        except (MissingPackageError, DataError):
            continue
