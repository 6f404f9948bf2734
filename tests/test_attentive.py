"""The attentive probe: truths that attention alone can read, chance, what heads must not know of, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tsprobe as tp
from tests.test_probes import Data, N, mistakes
from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import Metric, get_metric
from tsprobe.probes import attention, attentive, get_probe, probes_for
from tsprobe.probes.base import Readout, Steps, Target

TOKENS, WIDTH, CLASSES = 16, 6, 3
METRICS = {"classification": "accuracy", "multilabel": "auroc", "regression": "r2"}


def of_kind(kind: str, classes: torch.Tensor) -> torch.Tensor:
    """Targets of any kind that follow from classes."""
    if kind == "classification":
        return classes
    hot = F.one_hot(classes, CLASSES).double()
    return hot if kind == "multilabel" else hot @ torch.tensor([[5.0, 1e6], [7, 3e6], [6, 8e6]]).double()


def flagged(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[n, P D]` that each show a class, and that of the one with a flag, `[n]`, which alone counts."""
    generator = torch.Generator().manual_seed(seed)
    shown = torch.randint(CLASSES, (n, TOKENS), generator=generator)
    at = torch.arange(n), torch.randint(TOKENS, (n,), generator=generator)
    x = 0.1 * torch.randn(n, TOKENS, WIDTH, generator=generator)
    x[..., :CLASSES] += F.one_hot(shown, CLASSES)
    x[*at, CLASSES] += 3
    return x.flatten(1), shown[at]


class Case:
    """A truth that is flagged, white noise, and nothing, as three groups of 400 + 200 series."""

    def __init__(self, kind: str = "classification", n: int = 400, m: int = 200) -> None:
        (x, y), (x_test, y_test) = flagged(n, 0), flagged(m, 1)
        noise = torch.randn(n + m, x.shape[1], generator=torch.Generator().manual_seed(2))
        self.x = torch.stack([x, noise[:n], torch.ones_like(x)])
        self.x_test = torch.stack([x_test, noise[n:], torch.ones_like(x_test)])
        self.target = Target(kind, of_kind(kind, y), CLASSES if kind == "classification" else None, tokens=TOKENS)
        self.y_test, self.metric = of_kind(kind, y_test), get_metric(METRICS[kind])
        self.folds = torch.arange(n) % 3

    def fit(self, groups: slice | list[int] = slice(None), probe: str = "attentive", **changes) -> Readout:
        return get_probe(probe)(self.x[groups], self.target, self.x_test[groups], self.folds, self.metric, **changes)


@pytest.mark.parametrize("kind", METRICS)
def test_a_truth_in_one_token_of_many_is_read_and_noise_is_at_chance(kind):
    case = Case(kind)
    readout = case.fit()
    oracle, noise, nothing = case.metric(case.y_test, readout.prediction).tolist()
    best, chance = {"classification": (0.98, 1 / CLASSES), "multilabel": (0.99, 0.5), "regression": (0.95, 0)}[kind]
    assert oracle > best
    assert abs(noise - chance) < 0.12
    assert abs(nothing - chance) < 0.08
    assert readout.strengths == attentive.STEPS
    # the mean of the tokens holds a 16th of the truth, and a linear readout of all of them no more
    for x, x_test in ((case.x, case.x_test), [x.unflatten(2, (TOKENS, -1)).mean(2) for x in (case.x, case.x_test)]):
        linear = get_probe("ridge")(x[:1], case.target, x_test[:1], case.folds, case.metric)
        assert case.metric(case.y_test, linear.prediction) < chance + 0.5 * (best - chance)


def test_the_place_of_a_token_may_be_the_answer():
    case = Case()
    x, x_test = (x[:1].unflatten(2, (TOKENS, -1))[..., CLASSES:] for x in (case.x, case.x_test))
    y, y_test = ((part[0, ..., 0].argmax(1) >= TOKENS // 2).long() for part in (x, x_test))
    target = Target("classification", y, 2, tokens=TOKENS)
    readout = attentive.fit_predict(x.flatten(2), target, x_test.flatten(2), case.folds, case.metric)
    assert case.metric(y_test, readout.prediction) > 0.97


def test_one_token_is_read_as_well_as_by_ridge():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 600, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    y = (x[0] @ torch.randn(12, 2, generator=generator)).double()
    y += 0.5 * y.std(0) * torch.randn(600, 2, generator=generator)
    scores = [
        get_probe(name)(x[:, :400], Target("regression", y[:400]), x[:, 400:], torch.arange(400) % 5, get_metric("r2"))
        for name in ("attentive", "ridge")
    ]
    ours, ridge = (get_metric("r2")(y[400:], readout.prediction).item() for readout in scores)
    assert ridge > 0.7
    assert ours > ridge - 0.05


@pytest.mark.parametrize("kind", METRICS)
def test_layers_do_not_depend_on_each_other(kind, monkeypatch):
    case = Case(kind, n=90, m=30)
    together = case.fit(strengths=(3, 12))
    assert torch.equal(together.prediction, case.fit(strengths=(3, 12)).prediction)
    size = together.prediction.abs().amax((0, 1))
    for groups in ([0], [1, 2]):
        apart = case.fit(groups, strengths=(3, 12))
        torch.testing.assert_close(apart.inner, together.inner[groups], atol=1e-4, rtol=0)
        torch.testing.assert_close(apart.prediction / size, together.prediction[groups] / size, atol=1e-4, rtol=0)
    monkeypatch.setattr("tsprobe.probes.base.CHUNK_BYTES", 1)  # a group at a time
    alone = case.fit(strengths=(3, 12))
    torch.testing.assert_close(alone.prediction / size, together.prediction / size, atol=1e-4, rtol=0)


def test_the_order_of_test_rows_does_not_matter():
    case = Case(m=30)
    readout = case.fit(strengths=(5,))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    case.x_test = case.x_test[:, order]
    torch.testing.assert_close(case.fit(strengths=(5,)).prediction, readout.prediction[:, order], atol=1e-5, rtol=0)
    case.x_test = case.x_test[:, :7] * 100  # and what others are like even less
    few = case.fit(strengths=(5,))
    assert torch.equal(few.inner, readout.inner)


def test_targets_of_a_fold_have_no_part_in_what_is_predicted_for_it():
    case = Case(n=90)
    seen: list[torch.Tensor] = []
    metric = Metric("seen", lambda y, p, w: seen.append(p) or torch.zeros(p.shape[:-2]), ("classification",), "")
    case.metric = metric
    case.fit([0], strengths=(20,))
    held = case.folds == 1
    case.target = replace(case.target, y=torch.where(held, (case.target.y + 1) % CLASSES, case.target.y))
    case.fit([0], strengths=(20,))
    before, after = seen
    assert torch.equal(before[:, :, held], after[:, :, held])
    assert not torch.isclose(before[:, :, ~held], after[:, :, ~held]).all(-1).any()


def test_fewer_steps_win_a_tie_and_each_layer_has_its_own():
    case = Case(n=90)

    def fit(first: list[float], second: list[float], strengths=(20, 5)) -> Readout:
        scores = torch.tensor([first, second], dtype=torch.float64)
        case.metric = Metric("given", lambda y, p, w: scores, ("classification",), "")
        return case.fit([0, 1], strengths=strengths)

    late, early, mixed = fit([1, 0], [1, 0]), fit([1, 1], [1, 1]), fit([1, 0], [0, 0])
    assert early.chosen.tolist() == [1, 1]
    assert mixed.chosen.tolist() == [0, 1]
    assert torch.equal(mixed.prediction, torch.stack([late.prediction[0], early.prediction[1]]))
    assert not torch.isclose(late.prediction, early.prediction).all((1, 2)).any()


def test_what_does_not_vary_in_a_fit():
    case = Case(n=90)
    y = torch.where(case.folds == 0, case.target.y, case.target.y % 2)  # class 2 is in fold 0 alone
    case.target = Target("classification", y, CLASSES + 1, tokens=TOKENS)
    readout = case.fit(strengths=(50,))
    assert (readout.prediction[..., CLASSES] == 0).all()
    torch.testing.assert_close(readout.prediction.sum(-1), torch.ones(3, 200).double())

    labels = of_kind("multilabel", y)
    labels[:, 0] = torch.where(torch.arange(90) % 3 == 1, 1, torch.nan)  # always 1, where it is known
    case.target, case.metric = Target("multilabel", labels, tokens=TOKENS), get_metric("auroc")
    prediction = case.fit(strengths=(50,)).prediction
    assert (prediction[..., 0] > 0.999).all()
    assert (prediction[..., 0].amax(1) == prediction[..., 0].amin(1)).all()  # else noise would rank samples
    assert prediction[0, :, 1].std() > 0.1

    values = torch.full((90, 1), torch.nan).double()
    values[case.folds == 0] = torch.randn(30, 1, generator=torch.Generator().manual_seed(0)).double()
    case.target, case.metric = Target("regression", values, tokens=TOKENS), get_metric("r2")
    np.testing.assert_allclose(case.fit(strengths=(50,)).inner, 0, atol=1e-12)  # scored rows are the mean of all


def test_many_classes_are_read_through_values_of_fewer_numbers():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(900) % 12
    x = F.one_hot(y, 12).repeat(1, 4).float() + 0.1 * torch.randn(900, 48, generator=generator)
    target = Target("classification", y[:600], tokens=4)
    assert target.width > attention.VALUE
    readout = attentive.fit_predict(
        x[None, :600], target, x[None, 600:], torch.arange(600) // 300, get_metric("accuracy")
    )
    assert get_metric("accuracy")(y[600:], readout.prediction) > 0.99


class Dense:
    """Steps that show a class each; the truth of a step is what the one `lag` steps before it shows."""

    def __init__(self, lag: int, *, causal: bool = False, kept: float = 1.0, n: int = 70, m: int = 40, t: int = 12):
        generator = torch.Generator().manual_seed(0)
        shown = torch.randint(CLASSES, (n + m, t), generator=generator)
        x = F.one_hot(shown, CLASSES) + 0.1 * torch.randn(n + m, t, CLASSES, generator=generator)
        told = torch.rand(n + m, t, generator=generator) < kept
        where = [part.nonzero(as_tuple=True) for part in (told[:n], told[n:])]
        (self.x, self.x_test), (self.y, self.y_test) = (
            (part[:n][told[:n]], part[n:][told[n:]]) for part in (x, shown.roll(lag, 1))
        )
        self.x, self.x_test = self.x[None], self.x_test[None]
        self.steps = Steps((where[0][0], where[1][0]), (40 + 8 * where[0][1], 40 + 8 * where[1][1]), causal)
        self.folds = where[0][0] % 3

    def fit(self, probe: str = "attentive", **changes) -> Readout:
        target = Target("classification", self.y, CLASSES, series=self.steps.series[0], steps=self.steps)
        return get_probe(probe)(self.x, target, self.x_test, self.folds, get_metric("accuracy"), **changes)

    def score(self, probe: str = "attentive") -> float:
        return get_metric("accuracy")(self.y_test, self.fit(probe).prediction).item()


@pytest.mark.parametrize("causal", [False, True])
def test_an_answer_in_the_step_before_is_read(causal):
    data = Dense(1, causal=causal)
    assert data.score() > 0.92  # the step before the first of 12 is the last, which a causal task does not see
    assert data.score("ridge") < 0.45


def test_a_later_step_is_read_unless_the_task_is_causal():
    assert Dense(-1).score() > 0.93
    assert Dense(-1, causal=True).score() < 0.45


def test_steps_without_a_target_leave_their_place_empty():
    """The truth is two steps before, which for four of five steps is among the rows: the row before, or the second."""
    data = Dense(2, kept=0.8, n=100)
    assert data.score() > 0.82  # at best 0.8 + 0.2 / 3
    data.steps = replace(data.steps, time=tuple(torch.arange(len(part)) for part in data.steps.time))
    assert data.score() < 0.79  # where only their order is known


def test_order_of_rows_and_numbers_of_series_do_not_matter():
    data = Dense(1, causal=True, m=20)
    before = data.fit(strengths=(10,)).prediction
    series, time = data.steps.series[1], data.steps.time[1]
    order = torch.randperm(len(time), generator=torch.Generator().manual_seed(0))
    data.x_test, number = data.x_test[:, order], 100 - series[order]
    data.steps = replace(data.steps, series=(data.steps.series[0], number), time=(data.steps.time[0], time[order]))
    torch.testing.assert_close(data.fit(strengths=(10,)).prediction, before[:, order], atol=1e-5, rtol=0)


def test_a_series_is_not_told_of_others():
    data = Dense(1, m=20)
    before = data.fit(strengths=(10,)).prediction
    last = data.steps.series[1] == 19
    data.x_test[:, last] *= -50
    after = data.fit(strengths=(10,)).prediction
    torch.testing.assert_close(after[:, ~last], before[:, ~last], atol=1e-6, rtol=0)
    assert (after[:, last] - before[:, last]).abs().max() > 0.05


def test_long_series_are_cut():
    data = Dense(1, n=9, m=2, t=150)
    parts = attentive.Part.both(
        Target("classification", data.y, steps=data.steps), len(data.y), len(data.y_test), torch.device("cpu")
    )
    assert [part.index.shape for part in parts] == [(18, 128), (4, 128)]
    assert sorted(parts[1].index[parts[1].index >= 0].tolist()) == list(range(300))
    assert get_metric("accuracy")(data.y_test, data.fit(strengths=(100,)).prediction) > 0.93


class Passing(nn.Module):
    """Tokens of 4 steps, the first of which is the class that the token shows, and the second its flag."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), nn.LayerNorm(4, elementwise_affine=False)])

    def forward(self, x):
        x = x.reshape(len(x), -1, 4)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_study_gives_it_segments_and_steps(monkeypatch):
    encoder = tp.load_encoder(Passing(), blocks="blocks.*", prepare="bs", tokens=4, name="passing")
    rng = np.random.default_rng(0)
    shown, at = rng.choice([-1, 1], (140, 8)), rng.integers(0, 8, 140)
    x = 0.1 * rng.standard_normal((140, 8, 4))
    x[..., 0] += shown
    x[np.arange(140), at, 1] += 3
    x, y = x.reshape(140, 1, 32), shown[np.arange(140), at]
    whole = tp.Classification("whole", (x[:100], y[:100]), (x[100:], y[100:]))
    told = np.full((140, 32), None)
    told[:, 3::4] = np.roll(shown, -1, 1)  # that of the next token
    dense, causal = (
        tp.tasks.Dense(name, (x[:100, 0], told[:100]), (x[100:, 0], told[100:]), steps=8, metric="accuracy", causal=so)
        for name, so in (("dense", False), ("causal", True))
    )
    given = []
    monkeypatch.setattr(attentive, "STEPS", (100,))
    fit = attentive.fit_predict
    monkeypatch.setattr(
        attentive, "fit_predict", lambda x, target, *rest: given.append(target) or fit(x, target, *rest)
    )
    study = tp.probe(
        encoder, [whole, dense, causal], poolings=("mean", "segments8"), probes=("ridge", "attentive"),
        controls=("chance",), folds=2, resamples=100, tracking={"enabled": False},
    )  # fmt: skip
    ours = study.scores[study.scores.encoder == "passing"]
    cells = ours[ours.task == "whole"][["pooling", "probe"]].drop_duplicates().to_records(index=False).tolist()
    assert sorted(cells) == [("mean", "ridge"), ("segments8", "attentive"), ("segments8", "ridge")]
    first = ours[ours.layer == "block.0"].set_index(["task", "pooling", "probe"]).score
    assert first["whole", "segments8", "attentive"] > 0.9
    assert first["whole", "segments8", "ridge"] < 0.75
    assert first["dense", "steps", "attentive"] > 0.85  # the last of 8 has no next one
    assert first["dense", "steps", "ridge"] < 0.65
    assert first["causal", "causal", "attentive"] < 0.65
    assert {(target.tokens, target.steps is None) for target in given} == {(8, True), (1, True), (1, False)}
    steps = [target.steps for target in given if target.steps is not None]
    assert {one.causal for one in steps} == {False, True}
    assert steps[0].time[1].tolist() == list(range(3, 32, 4)) * 40
    assert steps[0].series[1].tolist() == np.arange(40).repeat(8).tolist()


@pytest.mark.parametrize(("changes", "error", "message"), mistakes().values(), ids=mistakes())
def test_bad_input_is_named_as_other_probes_do(changes, error, message):
    data = Data("classification")
    given = {"x": data.x[:, :N], "target": data.target, "x_test": data.x[:, N:], "folds": data.folds}
    with pytest.raises(error, match=message):
        attentive.fit_predict(**{**given, "metric": get_metric("accuracy"), **changes})


def test_what_the_probe_refuses():
    case = Case(n=30, m=9)
    with pytest.raises(SpecError, match="steps of training: give whole numbers"):
        case.fit(strengths=(1.5,))
    with pytest.raises(SpecError, match=r"reads classification, .*, detection targets, not forecast"):
        attentive.fit_predict(case.x, Target("forecast", case.target.y), case.x_test, case.folds, case.metric)
    case.target = replace(case.target, tokens=7)
    with pytest.raises(DataError, match="features of width 96 are not 7 tokens"):
        case.fit()
    data = Dense(1, n=9, m=5)
    series, time = data.steps.series, data.steps.time
    data.steps = Steps(series[::-1], time)
    with pytest.raises(
        DataError, match=r"series of steps of shapes \[60\] and \[108\] for 108 training and 60 test rows"
    ):
        data.fit()
    data.steps = Steps(series, (time[0], time[1][1:]))
    with pytest.raises(DataError, match="times of steps"):
        data.fit()
    data.steps = Steps(series, time)
    with pytest.raises(DataError, match="needs to know the steps"):
        attentive.fit_predict(
            data.x, Target("classification", data.y, series=series[0]), data.x_test, data.folds, case.metric
        )
    assert probes_for("attentive") == ("classification", "multilabel", "regression", "detection")
