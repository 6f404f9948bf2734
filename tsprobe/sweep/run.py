"""From a spec to a folder: series read once, trials on inner folds, one look at the test set, and what came of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tsprobe.encoders.base import Encoder
from tsprobe.files import alone, kept_json, replace_text
from tsprobe.study.progress import Stage, silent
from tsprobe.study.run import pick_device
from tsprobe.sweep import storage
from tsprobe.sweep.bench import Bench
from tsprobe.sweep.folder import (
    Sweep,
    complete,
    open_folder,
    provenance_of,
    run_missing,
    table,
    timed,
    write,
)
from tsprobe.sweep.grid import score_grid
from tsprobe.sweep.judged import inner_interval, judge
from tsprobe.sweep.reading import Reader
from tsprobe.sweep.space import Setting, setting_of
from tsprobe.sweep.spec import SweepSpec
from tsprobe.tasks.base import Task

_EQUAL = 1e-6  # scores that are nearer than solvers agree


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    tasks: Mapping[str, Task] | None = None,
    stage: Stage = silent,
    fresh: bool = False,
) -> Sweep:
    """Run the trials that are missing and write the artefacts. Objects in `encoders` and `tasks` stand for their names.

    Trials are scored on inner folds of the training series; the test series are read when all are done, for the setting
    with the best score. Raises `SpecError` for a request that makes no sense, or a folder of another sweep,
    `StorageError` where the storage or the disk refuse, `DataError` where no trial has a score.
    """
    with alone(folder):
        place, study = open_folder(spec, folder, fresh=fresh)
        clock: dict[str, float] = {}
        with timed(clock, "reading"):
            reader = Reader.of(spec, folder, pick_device(spec.device), stage, encoders or {}, tasks or {})
            bench = reader.bench()
            storage.refuse_changed(study, place, reader.fingerprints)
        with timed(clock, "trials"):
            others = run_missing(spec, bench, place, study, stage)
        chosen = _chosen(spec, study)
        compared = None
        if spec.compare:
            with timed(clock, "grid"):
                compared = _compare(spec, folder, bench, study, stage)
        with timed(clock, "test"):
            best = _judged(spec, folder, bench, reader, chosen)
        best |= {"compared": compared} if compared else {}
        trials, clock = table(spec, study), clock | {"workers' processors": others}
        made = provenance_of(spec, folder, reader.device, reader.facts, reader.tasks, clock)
        write(spec, folder, study, trials, best, made)
        figures = {"inner_score": best["inner_score"]} | {
            f"test.{name}": best["test"][name] for name in ("score", "low", "high")
        }
        return Sweep(folder, trials, best, kept_json(folder / "study.json")["token"], figures)


def _chosen(spec: SweepSpec, study: Any) -> Any:
    """The trial with the best score; among equals the cheapest, then the first."""

    def worth(trial: Any) -> tuple[float, ...]:
        return trial.values[0], *(-cost for cost in trial.values[1:]), -trial.number

    return max(complete(spec, study), key=worth)


def _judged(spec: SweepSpec, folder: Path, bench: Bench, reader: Reader, trial: Any) -> dict[str, Any]:
    """What is said of the chosen trial. Its test score is taken once; another one's is a further look, and counted."""
    kept = kept_json(folder / "best.json")
    if kept.get("trial") == trial.number and kept.get("resamples") == spec.resamples:
        kept.pop("compared", None)
        return kept
    setting = setting_of(bench.choices, trial.params)
    features = reader.test_features(setting)
    return {
        "trial": trial.number, "params": trial.params, "setting": setting.as_dict(), "inner_score": trial.values[0],
        "test": judge(bench, setting, reader.tasks, features, spec.resamples), "cost": reader.cost(setting),
        "resamples": spec.resamples, "looks_at_test": kept.get("looks_at_test", 0) + 1,
    }  # fmt: skip


def _compare(spec: SweepSpec, folder: Path, bench: Bench, study: Any, stage: Stage) -> dict[str, Any]:
    """The best of all settings against the best of the trials, and after how many trials that was found."""
    path = folder / "grid.csv"
    if not path.exists():
        with stage(f"{spec.name}: grid", bench.choices.size or 0) as advance:
            scores = score_grid(bench, advance)
        rows = [_flat(setting) | {"score": scores[setting]} for setting in bench.choices.settings()]
        replace_text(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    grid = pd.read_csv(path)
    at = int(grid["score"].fillna(-math.inf).argmax())
    best = next(itertools.islice(bench.choices.settings(), at, None))
    top = float(grid["score"][at])
    low, high = inner_interval(bench, best, spec.resamples)
    found = [trial.values[0] if trial.values else -math.inf for trial in storage.finished(study)]
    return {
        "cells": len(grid), "best": top, "low": low, "high": high, "setting": best.as_dict(),
        "best_of_sweep": max(found),
        "within": max(found) >= min(low, top), "trials_to_within": _first(found, min(low, top)),
        "trials_to_best": _first(found, top - _EQUAL),
    }  # fmt: skip


def _first(values: list[float], least: float) -> int | None:
    """How many trials it took to reach a score; None where none did."""
    return next((i for i, value in enumerate(values, 1) if value >= least), None)


def _flat(setting: Setting) -> dict[str, Any]:
    return {name: "+".join(value) if isinstance(value, tuple) else value for name, value in vars(setting).items()}
