"""What tuning is compared with: layers of the untouched encoder, and its own objective gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from alignable import planted, spec, task
from torch import nn

import tsprobe as tp
from tsprobe.alignment import AlignSpec, run_alignment
from tsprobe.alignment.free import Free, mixture, why_not
from tsprobe.alignment.lift import After
from tsprobe.alignment.pretext import Pretext, why_unknown
from tsprobe.alignment.spec import CONTROLS
from tsprobe.alignment.train import Tuning, tune
from tsprobe.capture import Reading, extract
from tsprobe.encoders import load_encoder
from tsprobe.encoders.rows import right_aligned
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.metrics import get_metric
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives import OBJECTIVES
from tsprobe.probes import get_probe
from tsprobe.probes.base import Target
from tsprobe.settings import validated
from tsprobe.study import make_spec
from tsprobe.study.pair import Pair
from tsprobe.study.progress import silent
from tsprobe.tasks.base import Task


def waves(test_seed: int = 1) -> Task:
    """Whole series, with values that are asked for."""
    rng, other = np.random.default_rng(0), np.random.default_rng(test_seed)
    x, z = (r.standard_normal((n, 1, 32)).astype(np.float32) for r, n in ((rng, 40), (other, 20)))
    return tp.Regression("waves", (x, x[:, 0, :3].mean(1)), (z, z[:, 0, :3].mean(1)))


class WithClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [R, S]
        tokens = x.unflatten(1, (-1, 4))
        x = torch.cat([tokens.amax(1, keepdim=True) * 3 + 1, tokens], 1)
        for block in self.blocks:
            x = block(x)
        return x


def pair(encoder: tp.encoders.Encoder, asked: Task, folder: Path, **settings: object) -> Pair:
    request = {"encoders": [encoder.name], "tasks": [asked.name], "controls": [], **settings}
    return Pair(encoder, encoder.fingerprint(), asked, make_spec(request), folder, silent)


def test_a_mixture_finds_the_layer_that_knows_and_does_no_worse_than_any_layer_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 120, 6, generator=rng)
    y = x[2] @ torch.randn(6, 2, generator=rng) + 0.3 * torch.randn(120, 2, generator=rng)
    y[5, 1] = torch.nan
    weights = mixture(x, Target("regression", y), torch.arange(120) % 5)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] > 0.9
    blurred = torch.stack([x[0] + x[1], x[0] - x[1], x[2], x[3]])  # what is asked for takes two layers
    y = x[0] @ torch.randn(6, 2, generator=rng)
    weights = mixture(blurred, Target("regression", y), torch.arange(120) % 5)
    assert weights[:2].tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_mixture_in_a_series_of_more_dimensions_than_rows_and_of_classes() -> None:
    x = torch.randn(3, 30, 64, generator=torch.Generator().manual_seed(0))
    y = (x[1, :, :2].sum(1) > 0).long()
    x[1, :, :2] *= 4
    weights = mixture(x, Target("classification", y, 2), torch.arange(30) % 3)
    assert weights.argmax() == 1


def test_free_controls_are_made_of_training_rows_alone(tmp_path: Path) -> None:
    encoder = load_encoder("zoo/jepa")
    found = []
    for seed in (1, 2):  # other test series with other answers
        source = pair(encoder, waves(seed), tmp_path / str(seed), poolings=["mean", "max"])
        found.append([Free.of(source, c, tmp_path / f"{c}{seed}").features[0].arrays[c] for c in CONTROLS if c in FREE])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


FREE = ("scalar-mix", "concat", "compressed", "standardised")


def test_all_layers_side_by_side_are_read_as_any_layer_is(tmp_path: Path) -> None:
    encoder, asked = load_encoder("zoo/jepa"), waves()
    source = pair(encoder, asked, tmp_path)
    train, test = (
        torch.from_numpy(np.concatenate([f.matrix(layer.name, "mean") for layer in encoder.layers[:-1]], 1))[None]
        for f in source.features
    )
    target, folds = Target("regression", torch.from_numpy(asked.y_train)), torch.from_numpy(asked.folds(5, 0))
    readout = get_probe("ridge")(train, target, test, folds, get_metric("r2"))
    after = After.of(Free.of(source, "concat", tmp_path / "concat"))
    assert encoder.layers[-1].depth is None  # the predictor, past the trunk, is no layer of it
    assert after.grid.predictions(*after.final)[0].numpy() == pytest.approx(readout.prediction[0].numpy(), abs=1e-5)
    again = Free.of(source, "concat", tmp_path / "concat")
    (kept,) = [cell for *_, cell in again.cells()]
    assert "features" not in vars(again)  # the cell was on disk
    assert kept.score[0] == pytest.approx(float(after.samples[0]), abs=1e-6)


def test_all_layers_are_compressed_to_the_width_of_the_last_by_the_training_rows(tmp_path: Path) -> None:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    encoder, asked = load_encoder("zoo/jepa"), waves()
    source = pair(encoder, asked, tmp_path, poolings=["max", "mean"])
    wide = Free.of(source, "concat", tmp_path / "a").features
    few = Free.of(source, "compressed", tmp_path / "b").features
    for slot in (0, 1):
        train, test = (f.arrays["concat"][:, slot] for f in wide)
        scaler = StandardScaler().fit(train)
        pca = PCA(39).fit(scaler.transform(train))  # of 40 rows
        expected = [pca.transform(scaler.transform(x)) for x in (train, test)]
        found = [f.arrays["compressed"][:, slot].astype(np.float64) for f in few]
        assert found[0].shape == (40, 128)
        np.testing.assert_allclose(found[1] @ found[0].T, expected[1] @ expected[0].T, atol=0.05)  # but for a rotation
        assert found[0].std(0).min() > 0.1 * found[0].std(0).max()  # no feature that is noise alone


def test_a_class_token_stands_beside_the_mean_on_the_scale_of_the_training_rows(tmp_path: Path) -> None:
    encoder = load_encoder(
        WithClassToken(), blocks="blocks.*", prepare="bs", tokens={"patch": 4, "prefix": 1}, name="with CLS"
    )
    asked = waves()
    train, test = Free.of(pair(encoder, asked, tmp_path, poolings=["mean", "cls"]), "standardised", tmp_path).features
    raw = [extract(encoder, p, Reading(("mean", "cls"))).arrays["block.1"] for p in (asked.train, asked.test)]
    beside = [np.concatenate([x, x[:, ::-1]], -1) for x in raw]  # the mean with the class token, and the other way
    mean, deviation = beside[0].mean(0), beside[0].std(0)
    assert train.arrays["standardised"] == pytest.approx((beside[0] - mean) / deviation, abs=1e-4)
    assert test.arrays["standardised"] == pytest.approx((beside[1] - mean) / deviation, abs=1e-4)
    plain = Free.of(pair(planted(), asked, tmp_path / "b"), "standardised", tmp_path / "b").features[0]
    assert plain.arrays["standardised"].shape == (40, 1, 8)  # no class token


def test_controls_without_tuning_are_rows_of_the_table(tmp_path: Path) -> None:
    asked = task()
    outcome = run_alignment(
        spec(teacher="block.1", steps=2, controls=("same-budget",), free=FREE), tmp_path, stage=silent,
        encoder=planted(), tasks={asked.name: asked},
    )  # fmt: skip
    rows = {row["control"]: row for row in outcome.lift.to_dict("records")}
    assert list(rows) == ["", *FREE]
    assert rows["standardised"]["final_after"] == pytest.approx(rows["standardised"]["final_before"])  # ridge does it
    assert min(rows["scalar-mix"]["lift"], rows["concat"]["lift"]) > 0.99
    assert outcome.left_out == (f"same-budget: {why_unknown(planted())}",)
    page = (tmp_path / "report.html").read_text()
    assert all(CONTROLS[name] in page for name in FREE)
    assert "not here to go on with" in page


def test_what_a_mixture_cannot_learn_from_is_said(tmp_path: Path) -> None:
    source = pair(planted(), task(), tmp_path)
    assert not why_not(source, "scalar-mix")
    vars(source)["passes"] = object()
    assert "too large" in why_not(source, "concat")
    with pytest.raises(ValueError, match="unknown control without tuning 'conkat'; did you mean 'concat'"):
        spec(free=("conkat",))


@pytest.mark.parametrize("name", ["zoo/jepa", "zoo/contrastive", "zoo/forecasting"])
def test_the_same_budget_goes_on_with_the_objective_of_pretraining(name: str, tmp_path: Path) -> None:
    encoder = load_encoder(name)
    asked = spec(encoder=name, steps=4, rate=1e-4, batch=4).controlled("same-budget")
    tuning = Tuning(asked, encoder, (), [], pretext=True)
    lesson = tuning.lessons.lesson(0, 4)
    model = tuning.student.encoder.module
    with torch.no_grad():
        (found,) = tuning.losses(lesson, tuning=True, seed=5).values()
        series = Series(*right_aligned(lesson.batch))
        rng = torch.Generator().manual_seed(5)
        due = OBJECTIVES[encoder.facts.objective](encoder.module).loss(encoder.module, series, rng).total
    assert float(found) == float(due)
    assert isinstance(tuning.criterion, Pretext)
    slow = [p.clone() for p in tuning.criterion.parameters()]
    tuning.advance()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), encoder.module.parameters(), strict=True))
    assert bool(slow) == (name == "zoo/jepa")
    followed = [not torch.equal(a, b) for a, b in zip(slow, tuning.criterion.parameters(), strict=True)]
    assert any(followed) == bool(slow)
    whole = tune(Tuning(asked, encoder, (), [], pretext=True), tmp_path / "a", stage=silent, name="a")
    tune(Tuning(asked, encoder, (), [], pretext=True), tmp_path / "b", stage=silent, name="b", until=2)
    again = tune(Tuning(asked, encoder, (), [], pretext=True), tmp_path / "b", stage=silent, name="b")
    assert whole is not None
    assert again is not None
    assert whole.fingerprint() == again.fingerprint()


def test_series_of_tasks_can_be_pretrained_on_too() -> None:
    encoder = load_encoder("zoo/reconstruction")
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((1, int(n))).astype(np.float32) for n in rng.integers(40, 90, 20)]
    asked = tp.Classification("ragged", (x, np.arange(20) % 2), (x, np.arange(20) % 2))
    request = spec(encoder="zoo/reconstruction", recipe="labels", labelled=["ragged"], steps=2, rate=1e-4)
    tuning = Tuning(request.controlled("same-budget"), encoder, (), [asked], pretext=True)
    tuning.look()
    tuning.advance()
    assert np.isfinite([row["pretext"] for row in tuning.rows]).all()


def test_a_control_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'same-budget'"):
        spec(controls=("same-budjet",))
    with pytest.raises(SpecError, match="targets= are for tuning=lora"):
        validated(AlignSpec, spec().dump() | {"targets": ["qkv"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": "block.99"}, "block.99"),
        ({"locality_from": "tides"}, "segmenter 'tides'"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_the_study(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises((SpecError, UnknownNameError), match=message):
        run_alignment(
            spec(steps=2, **change), tmp_path, stage=silent, encoder=planted(), tasks={"dense/planted": task()}
        )
    assert not (tmp_path / "before").exists()


def test_a_recipe_without_teacher_has_no_wrong_one() -> None:
    with pytest.raises(ValueError, match="wrong-teacher is for dense and joint"):
        spec(recipe="labels", labelled=("t",), controls=("wrong-teacher",))
