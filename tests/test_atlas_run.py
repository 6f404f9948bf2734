"""The small atlas from end to end: parts, tables beside those that are kept here, the document, and what fails."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from tsprobe.atlas import Atlas, parts, read_atlas_spec, run_atlas
from tsprobe.cli import app
from tsprobe.errors import SpecError, UnknownNameError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
CONFIG = Path("configs/atlas_small.yaml")
KEPT = Path(__file__).parent / "atlas_small"  # written by `tsprobe atlas configs/atlas_small.yaml`
NEAR = 0.03  # by which scores may differ on another machine


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    folder = tmp_path_factory.mktemp("atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_atlas(read_atlas_spec(CONFIG), folder, config=str(CONFIG))


def copied(made: Atlas, to: Path) -> Path:
    """The folder, but for what takes place."""
    return Path(shutil.copytree(made.folder, to / "out", ignore=shutil.ignore_patterns("features", "encoder")))


@pytest.mark.parametrize("name", sorted(path.stem for path in KEPT.glob("*.csv")))
def test_the_tables_are_those_that_are_kept(made: Atlas, name: str) -> None:
    kept, found = pd.read_csv(KEPT / f"{name}.csv"), pd.read_csv(made.folder / "tables" / f"{name}.csv")
    keys = [c for c in ("encoder", "objective", "family", "task", "picker", "control") if c in kept]
    kept, found = (table.fillna({"control": ""}).sort_values(keys).reset_index(drop=True) for table in (kept, found))
    assert list(found.columns) == list(kept.columns)
    assert found[keys].equals(kept[keys])
    for column in ("final_score", "chosen_score", "gap", "change", "regret"):
        if column in kept:
            assert np.allclose(found[column], kept[column], atol=NEAR, equal_nan=True), column


def test_tables_kept_cover_each_question() -> None:
    assert {path.stem for path in KEPT.glob("*.csv")} == {"gaps", "objectives", "league", "tradeoff"}


def test_every_table_has_its_rows(made: Atlas) -> None:
    tables = made.tables
    assert len(tables["gaps"]) == 2 * 4
    assert tables["gaps"].untrained_gap.notna().all()
    assert np.allclose(tables["gaps"].gap, tables["gaps"].chosen_score - tables["gaps"].final_score)
    assert set(tables["objectives"].family) == {"classification", "dense", "all families"}
    assert set(tables["heads"].layer) == {"head", "projector"}
    diagnostics = set(tables["league"].query("kind == 'diagnostic'").picker)
    assert diagnostics == {"effective_rank", "anisotropy", "curvature", "infonce"}
    assert {"last", "middle", "all labels", "any layer", "5 labelled series"} <= set(tables["league"].picker)
    assert set(tables["tradeoff"].family) == {"classification", "dense", "all families"}
    assert tables["tradeoff"].set_index("family").lifted.to_dict() == {
        "classification": False, "dense": True, "all families": False,
    }  # fmt: skip
    lift = pd.read_csv(made.folder / "dense" / "lift.csv")
    whole = tables["tradeoff"].set_index("family").loc["all families"]
    assert whole.kept == pytest.approx((lift.final_after - lift.hidden_before).mean(), abs=1e-6)
    assert whole.change == pytest.approx((lift.final_after - lift.final_before).mean(), abs=1e-6)
    assert set(tables["published"].verdict) <= {"agrees", "disagrees", "undecided"}
    assert tables["curves"].relative.between(0, 1).all()


def test_a_study_keeps_to_its_own_verdicts(made: Atlas) -> None:
    own = pd.read_csv(made.folder / "series" / "verdicts.csv")
    joined = made.tables["gaps"].merge(own, on=["encoder", "task"], suffixes=("", "_own"))
    assert len(joined) == 8
    assert np.allclose(joined.gap, joined.gap_own)
    assert (joined.verdict == joined.verdict_own).all()
    twin = own[own.encoder == "zoo/contrastive@untrained"].set_index("task").gap
    mine = made.tables["gaps"].query("encoder == 'zoo/contrastive'").set_index("task").untrained_gap
    assert np.allclose(mine, twin[mine.index])


def test_the_document_answers_three_questions_with_figures_intervals_and_commands(made: Atlas) -> None:
    assert made.document is not None
    text = made.document.read_text()
    first = text[: text.index("## Tables")]
    for number in (1, 2, 3):
        part = re.split(r"\n## \d\. ", first)[number]
        assert "What would change this:" in part
        assert re.search(r"\[[−+\d.e-]+, [−+\d.e-]+\]", part), number
        (command,) = re.findall(r"Again: `(tsprobe atlas [^`]+)`", part)
        assert str(CONFIG) in command
        for _, file in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", part):
            assert (made.document.parent / file).read_text().startswith("<svg")
    assert len(re.findall(r"!\[", first)) == 3
    assert "nan" not in text
    assert "None" not in text
    assert str(made.folder) not in text  # no path of this machine


def test_what_is_finished_is_not_run_again(made: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = copied(made, tmp_path)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(parts, "run_study", never)
    monkeypatch.setattr(parts, "run_alignment", never)
    again = run_atlas(read_atlas_spec(CONFIG), folder, config=str(CONFIG))
    for name, table in again.tables.items():
        assert table.equals(made.tables[name]), name
    with pytest.raises(AssertionError, match="run again"):
        run_atlas(read_atlas_spec(CONFIG, ("labels=[6]",)), folder)


def test_a_part_that_fails_is_named_and_the_others_go_on(
    made: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    copied(made, tmp_path)
    settings = yaml.safe_load(CONFIG.read_text())
    study = {"tasks": ["ucr/GunPoint"]}
    settings["alignments"]["broken"] = {"encoder": "zoo/nothing", "recipe": "dense", "study": study}
    settings["alignments"]["later"] = {"encoder": "zoo/jepa", "recipe": "dense", "study": study}
    (tmp_path / "atlas.yaml").write_text(yaml.safe_dump(settings))
    page = tmp_path / "docs" / "PAGE.md"
    arguments = ["atlas", str(tmp_path / "atlas.yaml"), "--out", str(tmp_path / "out"), "--document", str(page)]
    ran = CliRunner().invoke(app, [*arguments, "--only", "broken"])
    assert ran.exit_code == 1
    assert "failed: broken: unknown" in ran.stderr
    text = page.read_text()
    assert "- broken (alignment): failed" in text
    assert "- later (alignment): missing" in text
    assert "**dense** (dense, 1 tuning)" in text
    assert (page.parent / "page" / "tradeoff.svg").exists()
    assert "(page/tradeoff.svg)" in text


def test_an_unknown_part_and_another_document_are_refused_and_without_a_study_there_is_none(tmp_path: Path) -> None:
    text = "studies: {s: {encoders: [fracast], tasks: [ucr/GunPoint]}}\n"
    text += "alignments: {a: {encoder: zoo/nothing, recipe: dense, study: {tasks: [ucr/GunPoint]}}}\n"
    (tmp_path / "atlas.yaml").write_text(text)
    spec = read_atlas_spec(tmp_path / "atlas.yaml")
    with pytest.raises(UnknownNameError, match="unknown part of the atlas 'b'"):
        run_atlas(spec, tmp_path / "out", only=("b",))
    with pytest.raises(SpecError, match=r"ends in \.md"):
        run_atlas(spec, tmp_path / "out", document=tmp_path / "page.html")
    arguments = ["atlas", str(tmp_path / "atlas.yaml"), "--out", str(tmp_path / "out"), "--only", "a"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 1
    assert "document: as soon as a study is finished" in ran.stdout


def test_a_mark_says_what_was_asked(made: Atlas) -> None:
    mark = json.loads((made.folder / "dense" / parts.MARK).read_text())
    assert mark["asked"]["alignment"]["steps"] == 20
