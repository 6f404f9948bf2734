"""Several tunings of one alignment: where they lie, what their mean is, how sure it is, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from alignable import planted, spec, task
from typer.testing import CliRunner

from tsprobe.alignment import AlignSpec, run_alignment
from tsprobe.alignment.families import _deepest, retention, tradeoff
from tsprobe.alignment.lift import over_seeds
from tsprobe.alignment.train import Tuning
from tsprobe.cli import app
from tsprobe.errors import SpecError
from tsprobe.report.tradeoff import depths, matrix, write_tradeoff
from tsprobe.settings import validated
from tsprobe.study.progress import silent


def test_a_resample_draws_seeds_and_takes_the_same_series_of_each() -> None:
    series = torch.linspace(-0.1, 0.1, 4001)
    series[0] = 0.0
    scores = [series + level for level in (0.0, 0.0, 1.0)]
    found = over_seeds(scores)
    assert found[0] == pytest.approx(1 / 3)
    drawn = (found[1:] - series[1:]).numpy()  # what is left when the common series are taken off: the seeds
    shares = [np.isclose(drawn, k / 3, atol=1e-5).mean() for k in range(4)]
    assert shares == pytest.approx([8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.03)
    assert torch.equal(over_seeds(scores[:1]), scores[0])
    assert torch.equal(over_seeds([scores[0], scores[0]]), scores[0])  # seeds that agree add no doubt


def test_tunings_of_several_seeds_lie_beside_each_other_and_are_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = task(size=6)
    noisy = planted()
    noisy.module.noise[0] = 0.3  # how much comes to the output can be told from the score
    request = {"teacher": "block.1", "locality": 0.0, "steps": 3, "controls": ("unregularised",), "free": ("concat",)}
    given = {"stage": silent, "tasks": {asked.name: asked}, "encoder": noisy}
    one = run_alignment(spec(**request), tmp_path, **given)
    assert not (tmp_path / "seeds").exists()
    assert not (tmp_path / "lift_by_seed.csv").exists()

    steps = []
    advance = Tuning.advance
    monkeypatch.setattr(Tuning, "advance", lambda self: (steps.append(self.spec.seed), advance(self))[1])
    both = run_alignment(spec(**request, seeds=[0, 4]), tmp_path, **given)
    assert steps == [4] * 6  # the recipe, then its control; seed 0 was there
    assert both.encoder is not None
    assert both.encoder.fingerprint() == one.encoder.fingerprint()
    assert [path.name for path in (tmp_path / "seeds").iterdir()] == ["4"]
    assert {"encoder", "after", "losses.csv", "controls"} <= {p.name for p in (tmp_path / "seeds" / "4").iterdir()}

    each = pd.read_csv(tmp_path / "lift_by_seed.csv").fillna({"control": ""})
    assert list(each["seed"]) == [0, 4] * 2
    assert each["final_after"].nunique() == 4
    for row in both.lift.to_dict("records")[:2]:
        own = each[each["control"] == row["control"]]
        assert row["final_after"] == pytest.approx(own["final_after"].mean())
    assert one.lift["final_after"][0] == pytest.approx(each["final_after"][0])
    assert list(both.lift["control"]) == ["", "unregularised", "concat"]
    kept = json.loads((tmp_path / "provenance.json").read_text())
    assert [row["final_after"] for row in kept["by_seed"]] == pytest.approx(list(each["final_after"]))
    assert "Means of 2 tunings, seeds 0, 4" in (tmp_path / "report.html").read_text()


def test_one_seed_and_several_are_asked_for_in_one_way() -> None:
    plain = {"encoder": "planted", "recipe": "dense", "study": {"tasks": ["dense/planted"]}}
    assert validated(AlignSpec, plain).seeds == (0,)
    assert validated(AlignSpec, plain | {"seed": 3}).seeds == (3,)
    several = validated(AlignSpec, plain | {"seeds": [2, 5]})
    assert (several.seed, several.seeded(5).seed, several.seeded(5).seeds) == (2, 5, (5,))
    assert several.same_run(validated(AlignSpec, plain | {"seed": 2}).dump())
    assert not several.same_run(validated(AlignSpec, plain | {"seed": 5}).dump())
    with pytest.raises(SpecError, match=r"seed=1 is not the first of seeds=\[0, 2\]"):
        validated(AlignSpec, plain | {"seed": 1, "seeds": [0, 2]})
    with pytest.raises(SpecError, match="seeds are distinct numbers"):
        validated(AlignSpec, plain | {"seeds": [1, 1]})
    with pytest.raises(SpecError, match="seeds"):
        validated(AlignSpec, plain | {"seeds": "many"})


def family(recipe: str, control: str, name: str, change: float, after: float = 1.0) -> dict[str, object]:
    tuned = control != "concat"
    return {
        "encoder": "planted", "recipe": recipe, "control": control, "family": name, "tasks": 2, "change": change,
        "change_low": change - 0.1, "change_high": change + 0.1, "layer_before": "block.1", "depth_before": 0.5,
        "layer_after": "block.2" if tuned else "", "depth_after": after if tuned else np.nan, "retention": 0.9,
    }  # fmt: skip


def test_what_recipes_brought_and_cost_is_one_table(tmp_path: Path) -> None:
    for recipe, sign in (("dense", 1), ("joint", -1)):
        rows = [family(recipe, c, n, sign * x) for c in ("", "concat") for n, x in (("dense", 0.2), ("<b>", -0.01))]
        (tmp_path / recipe).mkdir()
        pd.DataFrame(rows).to_csv(tmp_path / recipe / "families.csv", index=False)
    table = tradeoff([tmp_path / "dense", tmp_path / "joint"])
    assert list(table["control"]) == ["", "", "concat", "concat"] * 2
    heat = matrix(table)
    assert heat["families"] == ["dense", "<b>"]
    assert [row["label"] for row in heat["rows"]] == ["dense", "dense, concat", "joint", "joint, concat"]
    first = heat["rows"][0]["cells"]
    assert [cell["colour"] for cell in first] == ["rgba(11,122,75,0.55)", "rgba(179,38,30,0.11)"]  # 0.01 of 0.05
    assert [row["label"] for row in depths(table)] == ["dense", "dense", "joint", "joint"]  # nothing after for concat
    page = write_tradeoff(tmp_path / "page.html", table).read_text()
    assert "&lt;b&gt;" in page
    assert "<b></th>" not in page
    with pytest.raises(SpecError, match="holds no finished alignment"):
        tradeoff([tmp_path])
    said = CliRunner().invoke(app, ["report", str(tmp_path / "dense"), str(tmp_path / "joint")])
    assert said.exit_code == 0
    assert "block.1 -> block.2" in said.output
    assert (tmp_path / "tradeoff.html").read_text() == page


def test_families_say_where_the_best_layer_is_and_what_is_retained() -> None:
    assert retention(0.8, 0.4) == 0.5
    assert retention(-1.0, -2.0) == 0.5  # an error that is twice as large
    assert np.isnan(retention(-0.1, 0.3))
    once = {"embedding": 0.1, "block.0": 0.1005, "block.1": 0.1, "block.2": 0.0}
    assert _deepest([once], planted()) == ("block.1", pytest.approx(2 / 3))  # as good as block.0, and deeper
    other = dict.fromkeys(once, 0.0) | {"block.2": 0.3}
    assert _deepest([once, other], planted()) == ("block.2", 1.0)  # over seeds


def test_a_change_is_averaged_over_the_tasks_of_a_family(tmp_path: Path) -> None:
    asked, again = task(), task("dense/again", size=8)
    study = {"tasks": [asked.name, again.name], "probes": ("ridge",)}
    run_alignment(
        spec(study=study, teacher="block.1", steps=30), tmp_path, stage=silent, encoder=planted(),
        tasks={asked.name: asked, again.name: again},
    )  # fmt: skip
    lift = pd.read_csv(tmp_path / "lift.csv")
    (row,) = tradeoff([tmp_path]).to_dict("records")
    assert row["tasks"] == 2
    assert row["change"] == pytest.approx((lift["final_after"] - lift["final_before"]).mean())
    assert row["change_low"] < row["change"] < row["change_high"]
    assert row["layer_before"] == "block.1"
    assert row["retention"] == pytest.approx((lift["final_after"] / lift["hidden_before"]).mean())
