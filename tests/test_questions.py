"""Questions in words: how texts are compared and scored, what is generated, the user's own, bad input."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tsprobe.data import questions as made
from tsprobe.data.text import Question, Vocabulary, normal, read_span, words
from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.metrics import get_metric
from tsprobe.tasks import Questions, load_task


def test_exact_match_and_interval_iou_agree_with_a_loop():
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.multinomial(9, np.full(9, 1 / 9), 5))
    y, said = rng.integers(0, 3, 9), rng.integers(-1, 3, (2, 9, 1))
    match = get_metric("exact_match")
    np.testing.assert_allclose(match(torch.from_numpy(y), torch.from_numpy(said)), (said[..., 0] == y).mean(1))
    starts = rng.integers(0, 20, (3, 9))
    spans = np.stack([starts, starts + rng.integers(1, 20, (3, 9))], -1).astype(float)
    spans[1, 0] = 0  # nothing found
    spans[1, 1] = spans[0, 1]
    spans[2, 2] = spans[2, 2, ::-1]  # ends before it begins
    truth, found = spans[0], spans[1:]

    def one(a: np.ndarray, b: np.ndarray) -> float:
        first, second = (set(range(int(s), int(e))) for s, e in (a, b))
        return len(first & second) / len(first | second)

    loop = np.array([[one(a, b) for a, b in zip(truth, row, strict=True)] for row in found])
    assert loop[0, 0] == 0
    assert loop[0, 1] == 1
    iou = get_metric("interval_iou")
    np.testing.assert_allclose(iou(torch.from_numpy(truth), torch.from_numpy(found)), loop.mean(1))
    weighed = iou(torch.from_numpy(truth), torch.from_numpy(found), counts)
    np.testing.assert_allclose(weighed, counts.numpy() @ loop.T / 9)


def test_texts_are_compared_by_words_and_numbers():
    assert words("About -3.5 steps, 16-step!") == ["about", "-3.5", "steps", ",", "16", "-", "step", "!"]
    assert normal("  It RISES. ") == normal("it rises")
    assert normal("…?!") == ""
    assert [read_span(t) for t in ("from step 8 to step 24.", "24 to 8", "at 8", "8 to 8")] == [(8, 24)] + [(0, 0)] * 3
    vocabulary = Vocabulary(["It rises.", "how long?"])
    said = vocabulary.answer("it rises")
    assert vocabulary.text(said + said) == "it rises"
    assert vocabulary.answer("zebra falls")[:2] == [Vocabulary.UNKNOWN] * 2
    assert vocabulary.answer("?!") == []


def test_generated_questions_are_balanced_and_their_series_repeat():
    asking = made.ask(300, choices=True, seed=3)
    for kind in made.KINDS.values():
        answers = Counter(q.answer for q in asking.questions if q.question == kind.question)
        assert set(answers) == set(kind.answers(512))
        assert max(answers.values()) - min(answers.values()) <= 3
    places = Counter(q.choices.index(q.answer) for q in asking.questions)
    assert min(places.values()) > 50
    again = made.ask(300, choices=True, seed=3)
    assert again.questions == asking.questions
    np.testing.assert_array_equal(again.values, asking.values)
    assert not np.array_equal(made.ask(300, choices=True, seed=4).values, asking.values)


def test_generated_answers_are_true_of_the_series():
    rng = np.random.default_rng(0)
    draw = made.Draw(512, rng)
    still = made.Parts(noise=0.0)
    for answer in range(4):
        rise = np.diff(draw.values(replace(still, trend=answer)))
        change = {0: (1, 1), 1: (-1, -1), 2: (1, -1), 3: (-1, 1)}[answer]
        assert tuple(np.sign(rise[[0, -1]])) == change
        (step,) = np.flatnonzero(np.diff(draw.values(replace(still, shift=answer))))
        assert (step >= 256, np.diff(draw.values(replace(still, shift=answer))).sum() < 0) == (
            answer >= 2,
            answer % 2 == 1,
        )
    for count in range(5):
        spikes = np.flatnonzero(draw.values(replace(made.Parts(noise=0.0), outliers=count)))
        assert len(spikes) == count
        assert count < 2 or np.diff(spikes).min() >= 16
    x = draw.values(made.Parts(noise=0.0, period=64))
    np.testing.assert_allclose(x[64:], x[:-64], atol=1e-9)
    x, y = made._moves(draw, 2)
    assert np.corrcoef(x[:-64], y[64:])[0, 1] > 0.8 > 0.6 > abs(np.corrcoef(x, y)[0, 1])
    x, y = made._moves(draw, 1)
    assert np.corrcoef(x, y)[0, 1] < -0.8


def test_seasons_change_in_size_and_pace_and_have_the_shape_that_is_said(monkeypatch):
    monkeypatch.setattr(made.Draw, "values", lambda draw, parts, cells=None: np.zeros(draw.length))  # the season alone
    draw = made.Draw(512, np.random.default_rng(0))
    for _ in range(5):
        for answer, said in enumerate(made.SIZES):
            wave = made._about_size(draw, answer)
            first, middle, last = (wave[a : a + 64].std() for a in (0, 224, 448))
            there = (first < middle < last, first > middle > last, middle > 1.3 * first > last, middle < first / 1.3)
            assert there[answer] if answer < 4 else max(first, middle, last) < 1.1 * min(first, middle, last), said
        for answer, said in enumerate(made.PACES):
            sign = np.sign(made._about_pace(draw, answer))
            first, last = ((np.diff(part) != 0).sum() for part in (sign[:200], sign[-200:]))
            if answer == 3:
                assert first > last == 0, said
            else:
                assert (last - first > 1, first - last > 1, abs(last - first) <= 1)[answer], said
        for answer, said in enumerate(made.SHAPES):
            wave = made._about_shape(draw, answer)
            step = np.diff(wave)
            up, down, still = ((step > 1e-9).mean(), (step < -1e-9).mean(), (np.abs(step) <= 1e-9).mean())
            assert (0.4 < up < 0.6 and still < 0.1, still > 0.8, up > 0.8, down > 0.8)[answer], said
            assert 0.4 < wave.std() < 1.0  # of one strength


def test_generated_spans_are_where_the_series_is_unlike():
    asking = made.locate(60, seed=1)
    for x, question in zip(asking.values[:, 0], asking.questions, strict=True):
        a, b = question.answer
        assert a % 16 == b % 16 == 0 <= a < b <= 512
        assert 48 <= b - a <= 160
        inside, outside = x[a:b], np.delete(x, np.arange(a, b))
        if "level" in question.question:
            assert inside.mean() > outside.mean() + 1
        if "noise" in question.question:
            assert np.abs(np.diff(inside)).std() > 1.3 * np.abs(np.diff(outside)).std()


X = np.zeros((3, 1, 64))
GOOD = (X, [Question("which?", "red", ("red", "blue"))] * 3)
MISTAKES = {
    "empty answer": ([Question("which?", "…")] * 3, "question 0 has the answer '…', which has no word or number"),
    "empty question": ([Question("?", "red")] * 3, r"question 0 is '\?', which has no word"),
    "empty choice": ([Question("which?", "red", ("red", ""))] * 3, "has the choice '', which has no word"),
    "answer not offered": ([Question("which?", "red", ("green", "blue"))] * 3, "'red', which is none of its choices"),
    "one choice": ([Question("which?", "red", ("red",))] * 3, "give two or more that differ"),
    "choices alike": ([Question("which?", "red", ("red", "Red."))] * 3, "give two or more that differ"),
    "span outside": ([Question("where?", (60, 80))] * 3, r"has the span \(60, 80\) in a series of 64 steps"),
    "span of three": ([Question("where?", (6, 8, 9))] * 3, "give a text, a pair of steps"),
    "span of text": ([Question("where?", ("6", 8))] * 3, "give whole steps"),
    "empty caption": ([Question("what?", ("red", "!"))] * 3, "question 0 has the answer '!', which has no word"),
    "no caption": ([Question("what?", ())] * 3, "give a text, a pair of steps"),
    "caption of choices": ([Question("what?", ("red", "blue"), ("red", "blue"))] * 3, "or no choices for a caption"),
    "kinds mixed": ([Question("where?", (6, 8)), *GOOD[1][:2]], "kinds choice, grounding; make one task of each"),
    "too few": ([], "3 training series but 0 questions"),
    "no question": (["which?"] * 3, r"a str is no question; give Question\(question, answer\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_questions_are_named(mistake):
    questions, message = MISTAKES[mistake]
    test = GOOD if mistake == "no question" else (X, questions or GOOD[1])
    with pytest.raises(DataError, match=message):
        Questions("mine", (X, questions), test)


def test_no_training_question_and_names_that_there_are_not():
    with pytest.raises(DataError, match="no series in the set"):
        Questions("mine", (X[:0], []), GOOD)
    with pytest.raises(UnknownNameError, match="did you mean 'language/choice'"):
        load_task("language/choise")
    with pytest.raises(SpecError, match="no setting 'n'"):
        load_task("language/choice?n=3")
    with pytest.raises(SpecError, match="a multiple of 32 steps"):
        load_task("language/pair?length=100")
    assert load_task("language/pair?n_train=12&n_test=8").train.channels == 2


def write(folder, lines: list[dict], n: int = 4):
    folder.mkdir(exist_ok=True)
    np.savez(folder / "series.npz", train=np.zeros((n, 64)), test=np.zeros((n, 1, 64)))
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return folder


LINE = {"split": "train", "series": 0, "question": "which?", "answer": "red", "choices": ["red", "blue"]}


def test_a_folder_of_questions(tmp_path):
    lines = [LINE, LINE | {"answer": "blue"}, LINE | {"series": 3}, LINE | {"split": "test", "series": 2}]
    task = load_task(write(tmp_path / "mine", lines))
    assert (task.name, task.kind, len(task.train), len(task.test)) == ("mine", "choice", 3, 1)
    assert task.y_train.tolist() == [0, 1, 0]
    assert task.groups.tolist() == [0, 0, 3]  # what is asked of one series stays in one fold
    spans = [{"split": s, "series": 0, "question": "where?", "answer": [8, 16]} for s in ("train", "test")]
    assert load_task(write(tmp_path / "spans", spans)).y_test.tolist() == [[8, 16]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"series": 4}, r"train series 4, of 4 \(they count from 0\)"),
        ({"series": -1}, "line 1: series is -1"),
        ({"split": "val"}, "line 1: split is 'val'"),
        ({"answer": 5}, "line 1: question, answer and choices must be texts"),
        ({"colour": 5}, "line 1: got an unexpected keyword argument 'colour'"),
        ({"split": "test"}, "no train question"),
    ],
)
def test_mistakes_in_a_folder_are_named(change, message, tmp_path):
    folder = write(tmp_path, [LINE | change, LINE | {"split": "test"}])
    with pytest.raises(DataError, match=message):
        load_task(folder)


def test_damaged_files_of_a_folder_are_named(tmp_path):
    folder = write(tmp_path, [LINE])
    (folder / "questions.jsonl").write_text("{")
    with pytest.raises(DataError, match="jsonl, line 1"):
        load_task(folder)
    whole = (folder / "series.npz").read_bytes()
    for damaged in (b"PK", whole[: len(whole) // 2]):
        (folder / "series.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="npz cannot be read"):
            load_task(folder)
