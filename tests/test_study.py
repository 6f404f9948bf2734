"""The pipeline on planted answers, its artefacts, and what a stopped study leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted import planted_encoder, planted_task

import tsprobe as tp
from tsprobe.encoders.baselines import Chance
from tsprobe.errors import DamagedWarning, DataError, SpecError, StorageError
from tsprobe.study import make_spec, read_spec, run_study
from tsprobe.study.entries import build_source
from tsprobe.study.pair import Pair
from tsprobe.study.result import DIAGNOSTICS, SCORES, VERDICTS

QUICK = {"controls": (), "resamples": 200, "tracking": {"enabled": False}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tp.Study:
    """One small study with all artefacts, for tests that only look."""
    return tp.probe(
        [planted_encoder(2), planted_encoder(None, "open")],
        [planted_task(name="a/b"), planted_task(seed=1, name="../c")],
        poolings=("mean", "std"), probes=("ridge", "knn"), seeds=(0, 1), controls=("untrained", "chance"),
        resamples=300, tracking={"enabled": False}, out=tmp_path_factory.mktemp("kept") / "study",
    )  # fmt: skip


def test_a_planted_label_is_found_hidden_at_its_block() -> None:
    study = tp.probe(planted_encoder(2), planted_task(), **QUICK)
    row = study.verdicts.iloc[0]
    assert row.verdict == "hidden"
    assert row.chosen_layer in ("embedding", "block.0", "block.1", "block.2")  # rotations carry the label on, unchanged
    assert row.chosen_score > 0.9
    assert row.final_score < 0.65  # chance, give or take two standard errors of 120 test samples
    by_layer = study.scores.set_index("layer").score
    assert by_layer["block.2"] > 0.9
    assert by_layer["block.3"] < 0.65


def test_a_label_that_survives_is_not_called_hidden() -> None:
    row = tp.probe(planted_encoder(None), planted_task(), **QUICK).verdicts.iloc[0]
    assert row.verdict == "exposed"
    assert row.final_score > 0.9


@pytest.mark.slow
def test_noise_labels_are_rarely_called_hidden(tmp_path: Path) -> None:
    """200 seeded studies without any signal: false verdicts at or under the level of 5 %."""
    encoder = planted_encoder(2)
    verdicts = []
    for seed in range(200):
        task = planted_task(n=60, seed=seed, noise_labels=True)
        spec = make_spec({"encoders": ["planted"], "tasks": [task.name], "diagnostics": "none", **QUICK})
        folder = tmp_path / str(seed)
        study = run_study(spec, folder, encoders={"planted": encoder}, tasks={task.name: task})
        verdicts.append(study.verdicts.verdict[0])
        shutil.rmtree(folder)
    assert len(verdicts) == 200
    assert verdicts.count("hidden") <= 0.05 * 200
    assert (
        verdicts.count("hidden") + verdicts.count("undecided") > 0
    )  # other layers were chosen, so it could have erred


def test_artefacts_have_the_agreed_names_and_columns(kept: tp.Study) -> None:
    folder = kept.folder
    names = {
        "study.zarr",
        "scores.csv",
        "verdicts.csv",
        "diagnostics.csv",
        "spec.yaml",
        "provenance.json",
        "report.html",
    }
    assert names <= {path.name for path in folder.iterdir()}
    for name, columns in (("scores", SCORES), ("verdicts", VERDICTS), ("diagnostics", DIAGNOSTICS)):
        assert tuple(pd.read_csv(folder / f"{name}.csv").columns) == columns
    assert set(pd.read_csv(folder / "verdicts.csv").verdict) <= {"hidden", "exposed", "undecided"}
    for table in (kept.scores.query("encoder != 'baseline/chance'"), kept.diagnostics):
        assert sorted(table.depth.unique()) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert kept.scores.score.notna().all()
    assert (kept.diagnostics.value.isna() == kept.diagnostics.note.notna()).all()  # what is missing says why


def test_names_never_become_paths_outside_the_folder(kept: tp.Study) -> None:
    assert not (kept.folder.parent / "c").exists()
    assert {p.parent.name for p in (kept.folder / "cells").glob("*/*")} == {
        p.name for p in (kept.folder / "cells").iterdir()
    }
    assert set(kept.verdicts.task) == {"a/b", "../c"}


def test_scores_cover_every_setting_once(kept: tp.Study) -> None:
    settings = ["encoder", "task", "layer", "pooling", "probe", "seed"]
    assert not kept.scores.duplicated(settings).any()
    planted = kept.scores[kept.scores.encoder == "planted"]
    assert len(planted) == 6 * 2 * 2 * 2 * 2  # layers, tasks, poolings, probes, seeds
    assert set(kept.scores.encoder) == {"planted", "planted@untrained", "open", "open@untrained", "baseline/chance"}


def test_tree_and_tables_say_the_same(kept: tp.Study) -> None:
    assert len(kept.tree.leaves) == len(kept.verdicts) == 5 * 2
    node = next(n for n in kept.tree.leaves if (n.attrs["encoder"], n.attrs["task"]) == ("planted", "a/b"))
    row = kept.scores.query("encoder == 'planted' and task == 'a/b' and layer == 'block.1' and pooling == 'std'")
    row = row.query("probe == 'knn' and seed == 1").iloc[0]
    stored = node["score"].sel(layer="block.1", pooling="std", probe="knn", seed=1)
    assert float(stored) == pytest.approx(row.score, abs=1e-9)
    assert {"layer", "pooling", "probe", "seed"} == set(node["score"].dims)


def test_curves_take_the_readout_of_the_inner_folds(kept: tp.Study) -> None:
    curve = kept.curves.query("encoder == 'planted' and task == 'a/b'").set_index("layer")
    assert (curve.low <= curve.score + 1e-9).all()
    assert (curve.score <= curve.high + 1e-9).all()
    assert curve.low["block.1"] > curve.high["block.4"]
    assert curve.chance.between(0.4, 0.6).all()


def test_provenance_says_what_made_the_results(kept: tp.Study) -> None:
    p = kept.provenance
    assert p["versions"]["tsprobe"]
    assert set(p["encoders"]) == set(kept.scores.encoder)
    assert len({facts["weights_sha256"] for facts in p["encoders"].values()}) == 5
    assert p["controls"]["baseline/chance"] == "chance"
    assert p["controls"]["planted@untrained"] == "untrained"
    assert all(len(task["sha256"]) == 64 for task in p["tasks"].values())
    assert set(p["seconds"]) == {"loading", "reading", "forward", "probing", "statistics"}
    assert p["device"]["pooling"] in ("native", "blocked", "triton")
    assert p["share_of_time_not_forward"] < 1  # some of it was


def test_the_layer_is_chosen_without_the_test_set() -> None:
    """Test labels that say the opposite change the scores and nothing of the choice."""
    task = planted_task()
    flipped = tp.Classification(task.name, train=(task.train, task.y_train), test=(task.test, 1 - task.y_test))
    straight, crooked = (tp.probe(planted_encoder(2), t, **QUICK).verdicts.iloc[0] for t in (task, flipped))
    assert straight.chosen_layer == crooked.chosen_layer
    assert straight.chosen_score == pytest.approx(1 - crooked.chosen_score, abs=1e-9)


def test_finished_cells_are_never_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "study"
    settings = {"probes": ("ridge", "knn"), "out": out, **QUICK}
    first = tp.probe(planted_encoder(2), planted_task(), **settings)
    before = (out / "scores.csv").read_bytes()
    victim = next(out.glob("cells/*/*/*knn*.npz"))
    victim.write_bytes(victim.read_bytes()[:100])  # a damaged cell is no cell
    rest = victim.with_name(".writing-abc")  # as a killed process leaves it
    rest.write_bytes(b"half")
    computed = []
    compute = Pair._compute
    monkeypatch.setattr(Pair, "_compute", lambda self, *key: computed.append(key) or compute(self, *key))
    monkeypatch.setattr("tsprobe.study.pair.extract", lambda *_, **__: pytest.fail("features were read again"))
    with pytest.warns(DamagedWarning, match="knn"):
        again = tp.probe(planted_encoder(2), planted_task(), **settings)
    assert computed == [("mean", "knn", 0)]
    assert (out / "scores.csv").read_bytes() == before
    assert not rest.exists()
    pd.testing.assert_frame_equal(first.verdicts, again.verdicts)


def test_other_data_or_weights_are_other_cells(tmp_path: Path) -> None:
    out = tmp_path / "study"
    tp.probe(planted_encoder(2), planted_task(), out=out, **QUICK)
    other = tp.probe(planted_encoder(None), planted_task(), out=out, **QUICK)
    assert other.verdicts.final_score[0] > 0.9  # not the score that lies there under the same names
    shuffled = tp.probe(planted_encoder(None), planted_task(noise_labels=True), out=out, **QUICK)
    assert shuffled.verdicts.final_score[0] < 0.7


def test_layers_can_be_named(tmp_path: Path) -> None:
    study = tp.probe(planted_encoder(2), planted_task(), layers=("block.1",), **QUICK)
    assert list(study.scores.layer) == ["block.1", "block.4"]
    assert list(study.scores.layer_index) == [2, 5]
    assert study.verdicts.verdict[0] == "hidden"


def test_an_encoder_that_cannot_take_a_task_is_left_out_with_the_reason() -> None:
    x = np.random.default_rng(0).standard_normal((40, 1, 12))  # no whole number of patches
    odd = tp.Classification("odd", train=(x, np.arange(40) % 2), test=(x, np.arange(40) % 2))
    study = tp.probe(planted_encoder(2), [odd, planted_task()], **QUICK)
    (left,) = study.provenance["left_out"]
    assert (left["encoder"], left["task"]) == ("planted", "odd")
    assert left["reason"]
    assert list(study.verdicts.task) == ["planted-task"]


def test_regression_and_masked_targets_run_through() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 1, 32))
    y = np.stack([x[:, 0, ::8].mean(1), rng.standard_normal(160)], 1)
    y[::3, 0] = np.nan
    task = tp.Regression("two", train=(x[:80], y[:80]), test=(x[80:], y[80:]))
    study = tp.probe(planted_encoder(2), task, probes=("ridge", "logistic"), **QUICK)
    assert set(study.scores.probe) == {"ridge"}  # logistic does not read numbers
    by_layer = study.scores.set_index("layer").score
    assert by_layer["block.2"] > by_layer["block.3"] + 0.3


def test_mistakes_in_a_spec_are_one_clear_line(tmp_path: Path) -> None:
    good = {"encoders": ["fracast"], "tasks": ["ucr/GunPoint"]}
    for change, message in [
        ({"encoders": []}, "setting 'encoders'"),
        ({"poolingz": ["mean"]}, "unknown setting 'poolingz'; did you mean 'poolings'"),
        ({"tracking": {"url": "x"}}, "unknown setting 'url'; did you mean 'uri'"),
        ({"poolings": ["meen"]}, "unknown pooling 'meen'"),
        ({"probes": ["rigde"]}, "unknown probe 'rigde'; did you mean 'ridge'"),
        ({"folds": 1}, "setting 'folds'"),
        ({"seeds": [0, 0]}, "named twice: 0"),
        ({"controls": ["none"]}, "setting 'controls"),
    ]:
        with pytest.raises((SpecError, KeyError), match=message):
            make_spec(good | change)
    with pytest.raises(SpecError, match="no such config"):
        read_spec(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(SpecError, match="must hold settings"):
        read_spec(tmp_path / "list.yaml")
    (tmp_path / "tag.yaml").write_text("encoders: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(SpecError, match="not plain YAML"):
        read_spec(tmp_path / "tag.yaml")


def test_overrides_reach_nested_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("encoders: [fracast]\ntasks: [ucr/GunPoint]\n")
    spec = read_spec(path, ("tracking.enabled=false", "seeds=[3, 4]"))
    assert (spec.name, spec.tracking.enabled, spec.seeds) == ("mine", False, (3, 4))
    with pytest.raises(SpecError, match="NAME=VALUE"):
        read_spec(path, ("seeds",))


def test_a_task_asked_for_by_another_spelling_goes_by_its_own_name(tmp_path: Path) -> None:
    given = {"own?n=1": planted_task(name="own"), "own?n=1&m=2": planted_task(name="own")}
    encoders = {"planted": planted_encoder(2)}
    spec = make_spec(QUICK | {"encoders": ["planted"], "tasks": ["own?n=1"]})
    study = run_study(spec, tmp_path / "one", encoders=encoders, tasks=given)
    assert list(study.provenance["tasks"]) == list(study.verdicts.task) == ["own"]
    spec = make_spec(QUICK | {"encoders": ["planted"], "tasks": list(given)})
    with pytest.raises(SpecError, match=r"own\?n=1 and own\?n=1&m=2 are one task, own"):
        run_study(spec, tmp_path / "two", encoders=encoders, tasks=given)


def test_a_probe_that_cannot_read_any_task_is_refused_before_anything_runs(tmp_path: Path) -> None:
    y = np.random.default_rng(0).standard_normal(120)
    task = planted_task()
    numbers = tp.Regression("numbers", train=(task.train, y), test=(task.test, y))
    with pytest.raises(SpecError, match="none of the probes logistic can read numbers"):
        tp.probe(planted_encoder(2), numbers, probes=("logistic",), out=tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


def test_missing_values_are_refused_on_request() -> None:
    task = planted_task()
    series = task.train.stack().copy()
    series[0, 0, 0] = np.nan
    holed = tp.Classification("holed", train=(series, task.y_train), test=(task.test, task.y_test))
    study = tp.probe(planted_encoder(2), holed, **QUICK)
    assert study.provenance["missing_values"]["planted on holed"]["train"]["missing_values"] == 1
    with pytest.raises(DataError, match="holed: 1 values are missing"):
        tp.probe(planted_encoder(2), holed, missing="error", **QUICK)


def test_things_that_are_no_encoder_or_task_say_what_would_be() -> None:
    with pytest.raises(SpecError, match="a Linear is no encoder; wrap a module with load_encoder"):
        tp.probe(torch.nn.Linear(2, 2), planted_task())
    with pytest.raises(SpecError, match="a dict is no task"):
        tp.probe(planted_encoder(2), {})


def test_open_refuses_what_is_no_finished_study(tmp_path: Path, kept: tp.Study) -> None:
    with pytest.raises(StorageError, match=r"is no finished study: scores\.csv"):
        tp.Study.open(tmp_path)
    assert tp.Study.open(kept.folder).verdicts.equals(kept.verdicts)


def test_a_full_disk_is_one_error_and_leaves_finished_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "study"
    from tsprobe.study.cells import Cell

    save, saved = Cell.save, []

    def fail_on_the_second(self: Cell, path: Path, key: object) -> None:
        if saved:
            raise StorageError(f"cannot write {path}: No space left on device")
        saved.append(path)
        save(self, path, key)  # type: ignore[arg-type]

    monkeypatch.setattr(Cell, "save", fail_on_the_second)
    with pytest.raises(StorageError, match="No space left"):
        tp.probe(planted_encoder(2), planted_task(), probes=("ridge", "knn"), out=out, **QUICK)
    assert saved[0].exists()
    monkeypatch.setattr(Cell, "save", save)
    assert len(tp.probe(planted_encoder(2), planted_task(), probes=("ridge", "knn"), out=out, **QUICK).scores) == 12


def test_provenance_is_json(kept: tp.Study) -> None:
    json.loads((kept.folder / "provenance.json").read_text())


def test_a_module_of_the_users_own_by_path_is_the_same_every_time(tmp_path: Path) -> None:
    """Weights drawn while it is built come from a fixed seed, so that a second run finds its cells."""
    encoder = {
        "source": "python:planted:build_random",
        "name": "mine",
        "blocks": "blocks.*",
        "prepare": "bs",
        "tokens": 8,
    }
    task = planted_task()
    spec = make_spec({"encoders": [encoder], "tasks": [task.name], **QUICK})
    digests = []
    for name in ("one", "two"):
        torch.rand(1)  # moves the global generator on
        study = run_study(spec, tmp_path / name, tasks={task.name: task})
        digests.append(study.provenance["encoders"]["mine"]["weights_sha256"])
    assert digests[0] == digests[1]
    for wrong in ("python:planted:nothing", "python:nowhere:build", "python:", "python:planted:planted_task"):
        make = make_spec({"encoders": [{**encoder, "source": wrong}], "tasks": [task.name], **QUICK})
        with pytest.raises(SpecError, match=r"cannot be found|not a torch.nn.Module"):
            run_study(make, tmp_path / "wrong", tasks={task.name: task})


def test_a_module_of_the_users_own_that_raises_is_one_line_that_says_where() -> None:
    with pytest.raises(SpecError, match=r"json:loads' raised TypeError \(.*missing 1 .*\) at .*entries.py, line"):
        build_source("python:json:loads")
    with pytest.raises(SpecError, match=r"raised ZeroDivisionError \(integer .* by zero\) at .*planted.py, line"):
        build_source("python:planted:build_badly")


def test_tasks_with_the_same_series_share_features_and_the_weights_are_hashed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = planted_task()
    flipped = tp.Classification("flipped", train=(task.train, 1 - task.y_train), test=(task.test, 1 - task.y_test))
    encoder = planted_encoder(2)
    calls: list[str] = []
    for owner, name in ((Chance, "features"), (type(encoder), "fingerprint")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, original=original, name=name: calls.append(name) or original(*a))
    tp.probe(encoder, [task, flipped], **QUICK | {"controls": ("chance",)})
    assert sorted(calls) == ["features", "fingerprint"]
