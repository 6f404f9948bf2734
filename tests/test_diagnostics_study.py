"""Diagnostics in a study: chosen in the spec, taken in the pass, kept beside it, and the same after a restart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import planted_encoder, planted_task

import tsprobe as tp
from tsprobe.diagnostics import CATALOGUE, chosen, of_kind
from tsprobe.errors import SpecError
from tsprobe.study import make_spec
from tsprobe.study.diagnosed import watched_series

QUICK = {"controls": (), "resamples": 200, "tracking": {"enabled": False}}
ALL = {"measures": "all", "samples": 20, "tokens": 16}


def run(folder: Path, diagnostics: object = ALL, **more: object) -> tp.Study:
    return tp.probe(planted_encoder(2), planted_task(n=40), out=folder, diagnostics=diagnostics, **QUICK, **more)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tp.Study:
    return run(tmp_path_factory.mktemp("all") / "study")


def test_every_measure_of_every_layer_is_a_row(study: tp.Study) -> None:
    table = study.diagnostics
    assert set(table.diagnostic) == set(CATALOGUE)
    assert not table.duplicated(["layer", "pooling", "diagnostic"]).any()
    assert len(table) == 6 * len(CATALOGUE)
    assert set(table.pooling) == {"mean", "tokens"}
    assert (table.value.isna() == table.note.notna()).all()
    missing = table[table.value.isna()]
    assert set(missing.diagnostic) == {"attention_mass", "attention_distance", "displacement", "relative_change"}
    assert "attention" in missing.set_index("diagnostic").note["attention_mass"].iloc[0]


def test_likeness_of_all_layers_is_in_the_tree_and_the_report(study: tp.Study) -> None:
    node = study.tree.leaves[0]
    cka = node["cka"].sel(pooling="mean")
    assert cka.dims == ("layer", "other_layer")
    assert np.allclose(cka, cka.T)
    final = study.diagnostics.query("diagnostic == 'cka_final'").set_index("layer").value
    assert np.allclose(cka.sel(other_layer=node.attrs["final_layer"]), final[list(node["layer"].values)])
    assert len(study.cka) == 36
    page = (study.folder / "report.html").read_text()
    assert "Which layers are alike" in page
    assert "over the tokens of a series" in page


def test_provenance_says_what_was_measured_on_what(study: tp.Study) -> None:
    said = study.provenance["diagnostics"]
    assert said["measures"] == list(CATALOGUE)
    assert (said["views"], said["views_of"], said["tokens_of"]) == (2, 20, 16)
    ((how, tasks),) = said["views_are"].items()
    assert "stretched" in how
    assert tasks == ["planted-task"]


@pytest.mark.parametrize("features", ["kept", "statistics"])
def test_tokens_are_measured_alike_in_the_pass_and_after_it(study: tp.Study, tmp_path: Path, features: str) -> None:
    """What lies beside the features is found again; without it the series are read once more."""
    again = run(tmp_path / "study", features=features)
    columns = ["layer", "diagnostic"]
    tokens = [s.diagnostics.query("pooling == 'tokens'").set_index(columns).value for s in (study, again)]
    pd.testing.assert_series_equal(*tokens, rtol=1e-6)
    if features == "statistics":
        return
    before = (again.folder / "diagnostics.csv").read_text()
    (beside,) = again.folder.glob("features/*/*.tokens.json")
    shutil.rmtree(again.folder / "cells")
    assert (run(again.folder).folder / "diagnostics.csv").read_text() == before
    beside.write_text(beside.read_text().replace("0.", "9.", 3))
    shutil.rmtree(again.folder / "cells")
    assert (run(again.folder).folder / "diagnostics.csv").read_text() != before  # it was what lies beside
    beside.unlink()
    shutil.rmtree(again.folder / "cells")
    found = run(again.folder).diagnostics
    pd.testing.assert_frame_equal(found, study.diagnostics, rtol=1e-6)


def test_another_choice_measures_again_and_none_measures_nothing(tmp_path: Path) -> None:
    first = run(tmp_path / "study", ["two_nn", "curvature"])
    assert set(first.diagnostics.diagnostic) == {"two_nn", "curvature"}
    assert len(first.cka) == 0
    none = run(tmp_path / "study", "none")
    assert len(none.diagnostics) == 0
    assert "Diagnostics by depth" not in (none.folder / "report.html").read_text()


def spec(diagnostics: object):
    return make_spec({"encoders": ["a"], "tasks": ["b"], "diagnostics": diagnostics}).diagnostics


def test_what_a_spec_may_say() -> None:
    assert spec({}).names == chosen("standard")
    assert spec("all").names == tuple(CATALOGUE)
    assert spec("all").n_views == 2
    assert spec(None).names == spec("none").names == spec([]).names == ()
    assert spec({"views": 3}).names == tuple(CATALOGUE)
    assert spec({"views": 3, "measures": ["lidar"]}).names == ("lidar",)
    assert spec(["curvature"]).n_views == 0
    assert not of_kind(spec("standard").names, "views")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("curvatur", "did you mean 'curvature'"), ({"views": 1}, "two or more"), ({"sample": 3}, "samples")],
)
def test_a_wrong_spec_is_one_clear_line(wrong: object, words: str) -> None:
    with pytest.raises((SpecError, KeyError), match=words) as error:
        spec(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("n", "tokens", "count"), [(500, 32, 32), (500, 30, 32), (5, 32, 5), (1, 1, 1), (20, 100, 20)])
def test_watched_series_stand_in_runs_that_are_read_together(n: int, tokens: int, count: int) -> None:
    lengths = np.random.default_rng(1).integers(30, 60, n)
    found = watched_series(lengths, spec({"tokens": tokens}))
    assert len(set(found)) == len(found) == count
    assert found == watched_series(lengths, spec({"tokens": tokens}))
    place = lengths.argsort(kind="stable").argsort()[found]
    assert len(set(place // 4)) == -(-count // 4)
    assert n < 100 or found != watched_series(lengths, spec({"tokens": tokens, "seed": 1}))
