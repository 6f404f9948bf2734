"""Captions: the score against its library, generated captions, known answers through probe and study, bad input."""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.signal import medfilt
from torch import nn

import tsprobe as tp
from tsprobe.data import captions as made
from tsprobe.data.text import Question, numbered
from tsprobe.errors import DataError, MissingPackageError
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe, language
from tsprobe.probes.base import Target
from tsprobe.tasks import Questions, load_task

pytest.importorskip("pycocoevalcap")  # of the extra `language`

TOKENS, WIDTH = 4, 6


def spoken(rng: np.random.Generator, longest: int = 9, words: int = 12) -> list[int]:
    return rng.integers(1, words, rng.integers(1, longest)).tolist()


def filled(row: list[int], width: int) -> list[int]:
    return row + [0] * (width - len(row))


def test_cider_agrees_with_its_library_and_weighs_rows():
    from pycocoevalcap.cider.cider import Cider

    rng = np.random.default_rng(0)
    n = 23
    references = [[spoken(rng) for _ in range(rng.integers(1, 4))] for _ in range(n)]
    y = torch.tensor([filled([w for r in refs for w in (*r, 0)], 40) for refs in references], dtype=torch.float64)
    said = [[spoken(rng) for _ in range(n)] for _ in range(4)]
    said[1] = [refs[-1] for refs in references]
    said[2][0] = []
    said[2][1] = [-1, 3, -2, -1]  # words that no reference has
    said[3] = said[0][:12] + said[1][12:]

    def plain(row: list[list[int]]) -> np.ndarray:
        text = lambda words: " ".join(f"w{w}" for w in words)  # noqa: E731
        return Cider().compute_score(
            {i: [text(r) for r in refs] for i, refs in enumerate(references)}, {i: [text(c)] for i, c in enumerate(row)}
        )[1]

    theirs = np.stack([plain(row) for row in said])
    assert theirs[1].mean() > 2 * theirs[0].mean()
    p = torch.tensor([[filled(c, 11) for c in row] for row in said]).float()
    cider = get_metric("cider")
    np.testing.assert_allclose(cider(y, p), theirs.mean(1))
    np.testing.assert_allclose(cider(y, p.view(2, 2, n, 11)), theirs.mean(1).reshape(2, 2))
    counts = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), 5))
    np.testing.assert_allclose(cider(y, p, counts), counts.numpy() @ theirs.T / n)
    np.testing.assert_allclose(cider(y, nn.functional.pad(p, (0, 7))), theirs.mean(1))


def test_captions_that_cannot_be_scored_are_named():
    cider, y, p = get_metric("cider"), torch.tensor([[1.0, 2, 0], [3, 0, 0]]), torch.ones(2, 2)
    for wrong in (torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([1, 2]), y[:0]):
        with pytest.raises(DataError, match="where references"):
            cider(wrong, p)
    for wrong in (p[:1], torch.full((2, 2), torch.nan)):
        with pytest.raises(DataError, match="where numbers of words"):
            cider(y, wrong)


def test_words_have_numbers_and_strange_words_numbers_of_their_own():
    assert numbered("Rises, then falls; then STOPS: then rises?", {"rises": 1, "then": 2}) == [1, 2, -1, 2, -2, 2, 1]
    assert numbered("…", {}) == []


def test_generated_captions_are_balanced_and_their_voices_agree():
    asking = made.describe(540, seed=3)
    said = [q.answer for q in asking.questions]
    first, second, third = ({s[v] for s in said} for v in range(3))
    assert len(first) == len(second) == len(third) == len(set(said)) > 300
    for part in range(4):
        _, drift, season, outliers, noise = made.VOICES[0].sentence.split("{")
        assert (drift, season, outliers, noise) == ("drift} with ", "season}, ", "outliers} and ", "noise}")
        shares = Counter(_facts(caption[0])[part] for caption in said)
        assert max(shares.values()) - min(shares.values()) <= 1
    again = made.describe(540, seed=3)
    assert again.questions == asking.questions
    np.testing.assert_array_equal(again.values, asking.values)


def _facts(caption: str) -> tuple[str, str, str, str]:
    """Drift, season, outliers and noise, from a caption of the first voice."""
    drift, rest = caption.split(" with ")
    season, rest = rest.split(", ")
    return drift, season, *rest.split(" and ")


def test_generated_captions_are_true_of_the_series():
    asking = made.describe(400, seed=1)
    checked = Counter()
    for x, question in zip(asking.values[:, 0], asking.questions, strict=True):
        drift, season, outliers, noise = _facts(question.answer[0])
        rough = np.median(np.abs(np.diff(x)))
        if season in ("no season", "a season of 128 steps"):
            assert (rough < 0.2) == (noise == "weak noise")
        if season in ("no season", "a season of 128 steps") and noise == "weak noise":
            at = np.flatnonzero(np.abs(x - medfilt(x, 5)) > 2)
            count = {"no": 0, "an": 1, "a": 1, "two": 2, "three": 3}[outliers.split()[0]]
            assert len(at) == count
            if count == 1:
                low, high = {"early": (0.06, 0.29), "central": (0.37, 0.6), "late": (0.68, 0.91)}[outliers.split()[1]]
                assert low <= at[0] / 512 <= high
            checked["outliers"] += 1
        smooth = medfilt(x, 9)
        if season != "no season" and drift == "steady level":
            strength = np.abs(np.fft.rfft(smooth - smooth.mean()))
            assert 512 // int(strength.argmax()) == int(season.split()[3])
            checked["season"] += 1
        level = smooth.reshape(4, -1).mean(1)
        if season != "a season of 128 steps" and "trend" in drift and "then" not in drift:
            assert (level[3] > level[0]) == (drift == "rising trend")
            checked["trend"] += 1
        if "shift" in drift:
            ends = smooth[:32].mean(), smooth[256 - 16 : 256 + 16].mean(), smooth[-32:].mean()
            early, up = drift.startswith("early"), drift.endswith("up")
            assert (ends[2] > ends[0]) == up
            assert (abs(ends[1] - ends[0]) > abs(ends[2] - ends[1])) == early
            checked["shift"] += 1
    assert min(checked[part] for part in ("outliers", "season", "trend", "shift")) > 25


CAPTIONS = (
    ("a red ball on a table", "on the table lies a red ball"),
    ("a blue kite in the sky", "high up flies a blue kite"),
    ("two green frogs by a pond", "near a pond sit two green frogs"),
    ("one yellow car without wheels", "the wheels of a yellow car are gone"),
)


def truths(n: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Captions by number, balanced, and features `[n, P D]` of which one token shows which."""
    rng = np.random.default_rng(seed)
    number = rng.permutation(np.arange(n) % 4)
    x = 0.3 * rng.standard_normal((n, TOKENS, WIDTH))
    x[np.arange(n), 2, number] += 3
    return number, torch.from_numpy(x.reshape(n, -1)).float()


def told(n: int = 120, m: int = 80) -> tuple[Questions, torch.Tensor, torch.Tensor]:
    """A task whose series are features that show the truth, and these."""
    (number, x), (number_test, x_test) = truths(n, 0), truths(m, 1)
    parts = [
        (series[:, None].numpy(), [Question("describe it", CAPTIONS[i]) for i in numbers])
        for series, numbers in ((x, number), (x_test, number_test))
    ]
    return Questions("told", *parts), x, x_test


def best_of_one_caption(task: Questions) -> tuple[float, float]:
    """What the truth scores, in the better voice, and what one caption for all, the best of them."""
    known = {word: i for i, word in enumerate(task.labels, 1)}
    row = lambda text: filled(numbered(text, known), 12)  # noqa: E731
    truth = torch.tensor([[row(q.answer[v]) for q in task.questions_test] for v in (0, 1)])
    one = torch.tensor([[row(text)] * len(task.test) for texts in CAPTIONS for text in texts])
    scores = [get_metric("cider")(torch.from_numpy(task.y_test), p).max() for p in (truth, one)]
    return float(scores[0]), float(scores[1])


def test_the_truth_is_told_and_noise_and_nothing_say_one_caption_for_all():
    task, x, x_test = told()
    noise = torch.randn(200, TOKENS * WIDTH, generator=torch.Generator().manual_seed(5))
    features = torch.stack([x, noise[:120], torch.ones_like(x)])
    tests = torch.stack([x_test, noise[120:], torch.ones_like(x_test)])
    metric, y = get_metric(task.metric), torch.from_numpy(task.y_test)
    target = Target("caption", torch.from_numpy(task.y_train), asked=task.asked, tokens=TOKENS)
    readout = get_probe("language")(
        features, target, tests, torch.from_numpy(task.folds(5, 0)), metric, strengths=(100, 160)
    )
    oracle, white, nothing = metric(y, readout.prediction)
    ceiling, one = best_of_one_caption(task)
    assert oracle > 0.95 * ceiling
    assert one < 0.3 * ceiling
    assert white < one + 0.12 * ceiling
    assert nothing < one + 1e-6
    assert readout.prediction.shape == (3, 80, max(len(text.split()) for texts in CAPTIONS for text in texts))
    assert all(q.answer == "" for q in task.asked.test)  # the probe is not told
    assert len(readout.prediction[2].unique(dim=0)) == 1


def test_all_references_of_a_caption_are_learnt(monkeypatch):
    task, x, _ = told(12, 8)
    seen = Counter()
    take = language.Texts.take

    def spy(texts, rows):
        seen.update(rows.tolist())
        return take(texts, rows)

    monkeypatch.setattr(language.Texts, "take", spy)
    z = x.view(1, 12, TOKENS, WIDTH)
    generator = torch.Generator().manual_seed(0)
    reader = language.Reader(z, language.tiny_decoder(task.asked.train, TOKENS, 1, generator), generator)
    list(reader.train(z, task.asked.train, [4], generator))
    assert seen == dict.fromkeys(range(24), 2)  # two references of twelve series, each in every second pass


class Passing(nn.Module):
    """Patches of the series as tokens; the second block drops them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), nn.Dropout(0.0)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x.reshape(len(x), -1, WIDTH)).roll(1, 0) * 0)


def test_a_study_of_captions_from_features_to_a_verdict(monkeypatch):
    monkeypatch.setattr(language, "STEPS", (80,))
    encoder = tp.load_encoder(Passing(), blocks="blocks.*", prepare="bs", tokens=WIDTH, name="passing")
    task, *_ = told(80, 40)
    study = tp.probe(
        encoder, [task], poolings=("segments4",), probes=("ridge", "language"), controls=("chance",), resamples=100
    )
    scores = study.scores.set_index(["encoder", "layer"]).score
    ceiling, one = best_of_one_caption(task)
    assert set(study.scores.metric) == {"cider"}
    assert scores["passing", "block.0"] > 0.9 * ceiling
    assert scores["passing", "block.1"] <= one + 1e-6
    assert scores["baseline/chance", "features"] <= one + 1e-6
    verdict = study.verdicts[study.verdicts.encoder == "passing"].iloc[0]
    assert (verdict.chosen_layer, verdict.verdict) == ("block.0", "hidden")
    assert verdict.gap_low > 0.4 * ceiling


def test_captions_in_a_folder_and_those_that_are_generated(tmp_path):
    lines = [
        {"split": s, "series": i, "question": "describe it", "answer": list(CAPTIONS[i])[: i + 1]}
        for s in ("train", "test")
        for i in range(2)
    ]
    np.savez(tmp_path / "series.npz", train=np.zeros((2, 64)), test=np.zeros((2, 64)))
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = load_task(tmp_path)
    assert (task.kind, task.metric) == ("caption", "cider")
    assert [q.answer for q in task.questions_test] == [CAPTIONS[0][:1], CAPTIONS[1]]
    words = [task.labels[int(n) - 1] for n in task.y_test[0] if n]
    assert " ".join(words) == CAPTIONS[0][0]
    generated = load_task("language/caption?n_train=20&n_test=10")
    assert (generated.kind, generated.train.n, generated.test.n) == ("caption", 20, 10)
    assert generated.questions_train[0].answer != generated.questions_test[0].answer


def test_one_test_series_is_too_few():
    one = (np.zeros((1, 1, 64)), [Question("describe it", CAPTIONS[0])])
    with pytest.raises(DataError, match="captions of one test series"):
        Questions("mine", (np.zeros((2, 1, 64)), [one[1][0]] * 2), one)


def test_without_the_package_captions_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider", None)
    with pytest.raises(MissingPackageError, match=r"needs the package 'pycocoevalcap'.*tsprobe\[language\]"):
        load_task("language/caption?n_train=20&n_test=10")
