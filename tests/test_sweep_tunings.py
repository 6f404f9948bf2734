"""Sweeps over tunings of an encoder whose answer was hidden on purpose: what is chosen, by what, and what is kept."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from alignable import planted, spec, task

import tsprobe as tp
from tsprobe.alignment import run as aligning
from tsprobe.alignment.train import Tuning
from tsprobe.cli import main
from tsprobe.errors import SpecError
from tsprobe.sweep import (
    Sweep,
    make_sweep_spec,
    make_tuning_sweep_spec,
    read_sweep_spec,
    run_sweep,
    run_tuning_sweep,
    tunings,
)
from tsprobe.sweep.tuning_bench import TuningBench, Tunings, asked_of
from tsprobe.sweep.tuning_spec import Range
from tsprobe.tasks.base import Task

STILL, MOVING = 1e-30, 1e-2  # a rate at which float32 weights stay what they are, and one that finds the answer
STEPS = 8


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    align = spec(steps=STEPS, keep_every=1e-9).model_dump(mode="json") | changes.pop("align", {})
    given = {"align": align, "space": {"rate": [STILL, MOVING]}, "sampler": "grid", "tracking": {"enabled": False}}
    return given | {"storage": f"journal:{folder}/journal.log"} | changes


def sweep(folder: Path, one: Task | None = None, encoder: Any = None, **changes: Any) -> Sweep:
    fresh = changes.pop("fresh", False)
    made = make_tuning_sweep_spec(settings(folder, **changes))
    return run_tuning_sweep(
        made, folder, encoder=encoder or planted(), tasks={"dense/planted": one or task()}, fresh=fresh
    )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """How many steps were made in this process, at each rate."""
    made: Counter[float] = Counter()
    advance = Tuning.advance

    def counted(self: Tuning) -> None:
        advance(self)
        made[self.spec.rate] += 1

    monkeypatch.setattr(Tuning, "advance", counted)
    return made


@pytest.fixture
def unaligned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was chosen, where the alignment that would follow is no matter."""
    settings: list[dict[str, Any]] = []

    def alignment(spec: Any, _: Path, bench: TuningBench, chosen: Any) -> dict[str, Any]:
        settings.append(chosen.setting)
        return {
            "trial": chosen.trial.number, "setting": chosen.setting, "inner_score": 0.0, "price": 0.0, "inner": {},
            "lifted": list(bench.lifted), "message": chosen.message, "price_at_most": spec.price_at_most,
            "looks_at_test": 1, "test": [], "folder": "", "encoder": "", "teachers": [],
        }  # fmt: skip

    monkeypatch.setattr(tunings, "_aligned", alignment)
    return settings


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """One sweep, for tests that only look."""
    folder = tmp_path_factory.mktemp("searched")
    return sweep(folder, cost="price", align={"free": ["standardised"]}, storage=None)


def test_the_tuning_that_brings_the_answer_out_is_chosen(searched: Sweep) -> None:
    still, moving = searched.trials.to_dict("records")
    assert still["score"] == pytest.approx(0, abs=1e-9)
    assert moving["score"] > 0.9
    best = searched.best
    assert (best["trial"], best["setting"]) == (moving["number"], {"rate": MOVING})
    assert best["inner_score"] == moving["score"] == -moving["price"]  # there is no other family to pay
    (change,) = best["test"]
    assert change["family"] == "dense"
    assert change["change_low"] <= change["change"] <= change["change_high"]
    assert searched.figures["test.dense"] == change["change"] > 0.9


def test_the_chosen_folder_is_an_alignment_and_trials_are_tunings_alone(searched: Sweep) -> None:
    still, moving = (searched.folder / folder for folder in searched.trials["folder"])
    made = [cell.stat().st_mtime for cell in sorted((searched.folder / "before").glob("cells/*/*/*.npz"))]
    assert {"lift.csv", "families.csv", "report.html", "before", "after", "encoder"} <= {
        p.name for p in moving.iterdir()
    }
    for folder in (searched.folder, moving):  # the study before is made once
        assert [cell.stat().st_mtime for cell in sorted((folder / "before").glob("cells/*/*/*.npz"))] == made
    assert set(pd.read_csv(moving / "lift.csv")["control"].dropna()) == {"standardised"}
    assert not {"lift.csv", "before", "after", "inner"} & {path.name for path in still.iterdir()}
    assert json.loads((still / "inner.json").read_text())["setting"] == {"rate": STILL}
    assert tp.load_encoder(f"aligned:{moving / 'encoder'}", base=planted()).tuned.recipe == "dense"


def test_inner_scores_are_those_of_the_studies_before_and_after(searched: Sweep) -> None:
    chosen = searched.folder / searched.best["folder"]

    def final(folder: Path) -> float:
        (cell,) = (
            node for node in tp.Study.open(folder).tree.leaves if "planted" in node.path and "chance" not in node.path
        )
        return float(cell["inner"].sel(layer="block.2").squeeze())

    assert searched.best["inner_score"] == pytest.approx(final(chosen / "after") - final(chosen / "before"), abs=1e-6)


def test_what_is_written_is_that_of_any_sweep(searched: Sweep) -> None:
    names = {path.name for path in searched.folder.iterdir()}
    assert {"trials.csv", "best.json", "spec.yaml", "provenance.json", "report.html", "study.db", "before"} <= names
    assert list(pd.read_csv(searched.folder / "trials.csv")) == [
        "number", "state", "rate", "score", "price", "folder", "seconds", "why",
    ]  # fmt: skip
    page = (searched.folder / "report.html").read_text()
    assert f'href="{searched.best["folder"]}/report.html"' in page
    assert "Score against cost" in page
    again = yaml.safe_load((searched.folder / "spec.yaml").read_text())
    assert make_tuning_sweep_spec(again).same_run(again)
    assert json.loads((searched.folder / "provenance.json").read_text())["states"] == {"complete": 2}


def test_the_choice_is_blind_to_test_targets(tmp_path: Path, unaligned: list[dict[str, Any]]) -> None:
    one = task()
    order = np.random.default_rng(0).permutation(len(one.y_test))
    lies = replace(one, y_test=one.y_test[order])
    straight, crooked = sweep(tmp_path / "straight", one), sweep(tmp_path / "lies", lies)
    columns = ["number", "state", "rate", "score", "price"]
    pd.testing.assert_frame_equal(straight.trials[columns], crooked.trials[columns])
    assert unaligned == [{"rate": MOVING}] * 2
    tested = [pd.read_csv(found.folder / "before" / "scores.csv")["score"].max() for found in (straight, crooked)]
    assert tested[0] > 0.9 > 0.5 > tested[1]  # on which the lies are told


def test_a_killed_sweep_goes_on_in_the_middle_of_a_tuning(
    tmp_path: Path, steps: Counter[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Tuning.advance

    def killed(self: Tuning) -> None:
        if self.spec.rate == MOVING and self.step == 3:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path)
    assert steps == {STILL: STEPS, MOVING: 3}
    found = sweep(tmp_path)
    assert list(found.trials["state"]) == ["complete", "fail", "complete"]
    assert steps == {STILL: STEPS, MOVING: STEPS}  # the alignment of the chosen one takes the tuning that is there


def test_a_finished_sweep_is_there_and_its_folder_belongs_to_it(
    searched: Sweep, steps: Counter[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(searched.folder, tmp_path / "copy")
    again = sweep(tmp_path / "copy", cost="price", align={"free": []}, storage=None)  # what follows the choice
    pd.testing.assert_frame_equal(again.trials, searched.trials)
    assert not steps
    assert again.best["looks_at_test"] == 1
    with pytest.raises(SpecError, match="holds a sweep with another align; take --fresh"):
        sweep(tmp_path / "copy", cost="price", align={"batch": 8}, storage=None)
    with pytest.raises(SpecError, match="holds something else than such a sweep"):
        run_sweep(make_sweep_spec({"encoders": ["a"], "tasks": ["b"]}), tmp_path / "copy")
    monkeypatch.setattr(Tuning, "advance", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # forgotten, so that it is tuned again
        sweep(tmp_path / "copy", cost="price", align={"batch": 8}, storage=None, fresh=True)
    assert not (tmp_path / "copy" / "best.json").exists()


@pytest.mark.usefixtures("unaligned")
def test_a_setting_that_is_drawn_twice_is_tuned_once(tmp_path: Path, steps: Counter[float]) -> None:
    found = sweep(tmp_path, sampler="random", trials=5)
    assert len(found.trials) == 5
    assert steps == {STILL: STEPS, MOVING: STEPS}
    assert found.trials.groupby("rate")["score"].nunique().eq(1).all()


def test_of_two_workers_that_draw_a_setting_one_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, tuned = fake_bench(tmp_path), []

    def slowly(self: TuningBench, setting: dict[str, Any]) -> dict[str, Any]:
        tuned.append(setting)
        time.sleep(0.3)
        (self.place(setting) / "inner.json").write_text(json.dumps({"score": len(tuned)}))
        return {"score": len(tuned)}

    monkeypatch.setattr(TuningBench, "_tune", slowly)
    scores: list[float] = []
    threads = [threading.Thread(target=lambda: scores.extend(bench.scores({"rate": 1.0}))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == [1, 1]


@pytest.mark.integration
@pytest.mark.usefixtures("unaligned")
def test_two_workers_share_a_sweep(tmp_path: Path) -> None:
    found = sweep(tmp_path, workers=2, space={"rate": [STILL, MOVING], "mask": [0.0, 0.25]})
    assert list(found.trials["state"]) == ["complete"] * 4
    assert found.best["setting"]["rate"] == MOVING
    seconds = json.loads((tmp_path / "provenance.json").read_text())["seconds"]
    assert seconds["workers' processors"] > 0


@pytest.mark.usefixtures("unaligned")
def test_a_tuning_that_fails_is_a_failed_trial_with_its_reason(tmp_path: Path) -> None:
    found = sweep(tmp_path, space={"rate": [1e38, MOVING]})
    failed, complete = found.trials.to_dict("records")
    assert (failed["state"], complete["state"]) == ("fail", "complete")
    assert "is not finite" in failed["why"]
    assert found.best["trial"] == complete["number"]


def fake_bench(folder: Path, **changes: Any) -> TuningBench:
    before = {"a": ("dense", 0.25), "b": ("dense", 0.5), "c": ("language", 0.5), "d": ("classification", 0.75)}
    made = make_tuning_sweep_spec(settings(folder) | changes)
    return TuningBench(made, folder, Tunings(made.space), Any, {}, before, ("dense",))  # type: ignore[arg-type]


def test_the_score_is_the_gain_of_the_lifted_and_the_price_the_largest_loss_of_the_others(tmp_path: Path) -> None:
    bench = fake_bench(tmp_path)
    found = bench._gained({"a": 0.5, "b": 1.0, "c": 0.5625, "d": 0.625})
    assert (found["score"], found["price"]) == (0.375, 0.125)
    assert found["families"] == {"dense": 0.375, "language": 0.0625, "classification": -0.125}
    assert bench._gained({"a": 0.5, "b": 1.0, "c": 0.5625, "d": 1.0})["price"] == -0.0625  # all gain
    assert bench._gained({"a": 0.0, "b": 0.5, "c": 0.5625, "d": 1.0})["price"] == -0.0625  # but for the lifted one
    joint = replace(bench, lifted=("dense", "language", "classification"))
    found = joint._gained({"a": 0.5, "b": 1.0, "c": 0.5625, "d": 0.625})
    assert (found["score"], found["price"]) == ((0.375 + 0.0625 - 0.125) / 3, 0.125)  # any may pay for the others


def test_inner_folds_of_targets_that_were_learnt_from_say_nothing() -> None:
    same, other = task(), task("dense/other", size=12)
    tasks = {"dense/planted": same, "dense/same-series": replace(same, name="s"), "dense/other": other}
    work = SimpleNamespace(
        spec=SimpleNamespace(labelled=("dense/planted",), recipe="state", lift=("dense",)), tasks=tasks
    )
    assert asked_of(work, tasks) == ({"dense/other": "dense"}, ("dense",))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="whose targets are not learnt from, is of the families to lift"):
        asked_of(work, ["dense/planted", "dense/same-series"])  # type: ignore[arg-type]


def test_the_price_may_be_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unaligned: list[dict[str, Any]]
) -> None:
    def priced(self: TuningBench, setting: dict[str, Any]) -> dict[str, Any]:
        found = {"score": setting["mask"], "price": setting["mask"] - 0.125, "families": {}}
        (self.place(setting) / "inner.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(TuningBench, "_tune", priced)
    space = {"mask": [0.25, 0.5, 0.75]}
    found = sweep(tmp_path, space=space)
    assert list(found.trials["price"]) == [0.125, 0.375, 0.625]
    assert found.message == sweep(tmp_path, space=space, price_at_most=0.4).message == ""  # a bound may change
    found = sweep(tmp_path, space=space, price_at_most=0.0)
    assert found.message == "no trial costs 0 or less in every other family: this is the cheapest, 0.125"
    assert found.message in (tmp_path / "report.html").read_text().lower()
    assert unaligned == [{"mask": 0.75}, {"mask": 0.5}, {"mask": 0.25}]


def test_where_nothing_is_hidden_nothing_is_tuned(tmp_path: Path, steps: Counter[float]) -> None:
    plain = planted()
    torch.nn.init.zeros_(plain.module.blocks[2].down.weight)
    found = sweep(tmp_path, encoder=plain)
    assert "no repair needed" in found.message
    assert not found.best
    assert found.trials.empty
    assert not steps
    assert "no repair needed" in json.loads((tmp_path / "provenance.json").read_text())["message"]


def test_values_are_drawn_as_the_space_says() -> None:
    space = {"rate": Range(low=1e-4, high=1e-2), "steps": Range(low=2, high=9), "mask": Range(low=0, high=0.5),
             "teacher": ("auto", ("block.0", "block.1"))}  # fmt: skip
    asked: list[tuple[str, Any]] = []

    class Trial:
        def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
            asked.append((name, log))
            return high

        def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
            asked.append((name, log))
            return low

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            asked.append((name, choices))
            return choices[1]

    setting = Tunings(space).ask(Trial())
    assert setting == {"rate": 1e-2, "steps": 2, "mask": 0.5, "teacher": ("block.0", "block.1")}
    assert asked == [("rate", True), ("steps", True), ("mask", False), ("teacher", ("auto", "block.0 + block.1"))]
    assert type(setting["steps"]) is int


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"rates": [1e-3]}}, "unknown setting of an alignment 'rates'; did you mean 'rate'"),
        ({"space": {"controls": [[], ["unregularised"]]}}, "controls is the same for all trials: set it in align"),
        ({"space": {"encoder": ["a", "b"]}}, "encoder is the same for all trials"),
        ({"space": {"rate": [1e-3, -1]}}, "space.rate cannot hold -1: setting 'rate': Input should be greater than 0"),
        ({"space": {"mask": {"low": 0.0, "high": 1.5}}}, "space.mask cannot hold 1.5"),
        ({"space": {"rate": {"low": 1, "high": 0.1}}}, "low 1 is not below high 0.1"),
        ({"space": {"rate": {"low": 1e-4, "high": 0.1, "lgo": 1}}}, "unknown setting 'lgo'; did you mean"),
        ({"space": {"mask": {"low": 0, "high": 0.5, "log": True}}}, "a logarithmic scale has no 0"),
        ({"space": {"steps": {"low": 1.5, "high": 4}}}, "space.steps"),
        ({"space": {"teacher": {"low": 1, "high": 2}}}, "teacher is no number"),
        ({"space": {"rate": 1e-3}}, "rate needs a list of values, or low and high"),
        ({"space": {"rate": []}}, "rate has no values"),
        ({"space": {"rate": [1e-3, "1e-3"]}}, "space.rate names a value twice"),
        ({"space": {"rate": [1e-3]}}, "nothing to search; take tsprobe align"),
        ({"space": {"rate": {"low": 1e-4, "high": 1e-3}}}, "a grid needs lists of values"),
        ({"space": ["rate"]}, "name settings of the alignment"),
        ({"space": {"teacher": ["block.1", "blok.0"]}}, "did you mean 'block.0'"),
        ({"space": {"cut": [None, "block.7"]}}, "block.7"),
        ({"cost": "latency"}, "cost"),
        ({"align": {"recipe": "dens"}}, "unknown recipe 'dens'; did you mean 'dense'"),
        ({"align": {"stepz": 3}}, "unknown setting 'stepz'; did you mean 'steps'"),
        ({"align": {"lift": ["language"]}}, "no task of the study is of the families to lift"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tp.errors.TsprobeError) as caught:
        sweep(tmp_path, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tunings").exists()


def test_an_alignment_may_be_a_file_and_its_settings_overridden(tmp_path: Path) -> None:
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(spec().model_dump(mode="json")))
    config = tmp_path / "find.yaml"
    config.write_text(yaml.safe_dump({"align": str(tmp_path / "align.yaml"), "space": {"rate": ["1e-4", "1e-3"]}}))
    made = read_sweep_spec(config, ("align.steps=7", "trials=3"))
    assert (made.align.steps, made.trials, made.name) == (7, 3, "find")
    assert made.space == {"rate": (1e-4, 1e-3)}  # YAML takes them for texts
    with pytest.raises(SpecError, match="no such config"):
        read_sweep_spec(config, (f"align={tmp_path}/gone.yaml",))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["tsprobe", "sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_says_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aligning, "load_encoder", lambda _: planted())
    monkeypatch.setattr(aligning, "load_task", lambda _: task())
    config, out = tmp_path / "find.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(settings(tmp_path)))
    assert command(monkeypatch, str(config), "--out", str(out)) == 0
    said = capsys.readouterr().out
    best = json.loads((out / "best.json").read_text())
    assert f"chosen:  {out / best['folder'] / 'report.html'}" in said
    assert f"encoder: aligned:{out / best['encoder']}" in said
    assert "trials:  2 complete" in said
    assert command(monkeypatch, str(config), "--out", str(out), "--set", "space.rate=[0]") == 2
    assert "space.rate cannot hold 0" in capsys.readouterr().err


def test_the_command_says_that_nothing_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain(_: str) -> Any:
        encoder = planted()
        torch.nn.init.zeros_(encoder.module.blocks[2].down.weight)
        return encoder

    monkeypatch.setattr(aligning, "load_encoder", plain)
    monkeypatch.setattr(aligning, "load_task", lambda _: task())
    config = tmp_path / "find.yaml"
    config.write_text(yaml.safe_dump(settings(tmp_path)))
    assert command(monkeypatch, str(config), "--out", str(tmp_path / "out")) == 0
    assert "no repair needed" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_trials_and_the_change_on_the_test_set_are_logged(searched: Sweep, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    from tsprobe.tracking import log_sweep

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parent = log_sweep(searched, {"name": "sweep"}, uri)
    client = MlflowClient(uri)
    metrics = client.get_run(parent).data.metrics
    assert metrics["test.dense"] == pytest.approx(searched.best["test"][0]["change"])
    assert metrics["price"] == pytest.approx(searched.best["price"])
    children = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    by_name = {run.info.run_name: run for run in children}
    first = searched.trials.iloc[0]
    assert by_name["trial 0"].data.metrics["price"] == pytest.approx(first["price"])
    assert float(by_name["trial 0"].data.params["rate"]) == first["rate"]
