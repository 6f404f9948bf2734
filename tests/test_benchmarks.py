"""The benchmarks run, at sizes that say nothing about time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_ridge_from_statistics_and_from_kept_features(script: Any) -> None:
    module = script("ridge_statistics")
    case = module.Case(N=600, L=2, T=2, D=4)
    encoder, task = module.problem(case)
    folds, reading = task.folds(5, 0), module.Reading(module.POOLINGS)
    assert module.by_statistics(encoder, task, reading, folds) > 0
    assert module.by_kept_features(encoder, task, reading, folds) > 0


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of fits that stop early
@pytest.mark.parametrize("probe", ["logistic", "ridge"])
def test_probes_against_scikit_learn(script: Any, probe: str) -> None:
    module = script("probes")
    rows = module.measure(module.Case(probe, 2, 60, 8, 3, 2), rounds=1)
    assert len(rows) == 2
    for row in rows:
        assert abs(row["accuracy"][0] - row["accuracy"][1]) < 0.1
        assert all(row["way"] in module.line(row) for row in rows)


@pytest.mark.filterwarnings("ignore")  # of plotting libraries, when the report is drawn
def test_a_whole_study_against_the_number_of_series(script: Any, tmp_path: Path) -> None:
    module = script("many_series")
    row = module.study(400, tmp_path / "study")
    assert row.n == 400
    assert 0 < row.best < 1
    assert (tmp_path / "study" / "verdicts.csv").exists()
    assert "| 400 |" in module.table([row])
