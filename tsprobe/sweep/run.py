"""From a spec to a folder: series read once, trials on inner folds, one look at the test set, and what came of it."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, SpecError
from tsprobe.files import alone, replace_text
from tsprobe.report.sweep import write_sweep_report
from tsprobe.study import provenance as made_by
from tsprobe.study.progress import Stage, silent
from tsprobe.study.run import pick_device
from tsprobe.sweep import storage
from tsprobe.sweep.bench import Bench
from tsprobe.sweep.grid import score_grid
from tsprobe.sweep.judged import inner_interval, judge
from tsprobe.sweep.plots import drawings
from tsprobe.sweep.reading import Reader
from tsprobe.sweep.space import Setting, setting_of
from tsprobe.sweep.spec import SweepSpec
from tsprobe.sweep.storage import WHY, Place
from tsprobe.sweep.trials import run_trials
from tsprobe.tasks.base import Task

FILES = (
    "trials.csv", "best.json", "grid.csv", "spec.yaml", "provenance.json", "report.html", "costs.json", "study.json",
    "study.db",
)  # fmt: skip
_EQUAL = 1e-6  # scores that are nearer than solvers agree


@dataclass(frozen=True)
class Sweep:
    """What a sweep left in its folder: a row for each trial, and the one that was chosen."""

    folder: Path
    trials: pd.DataFrame
    best: dict[str, Any]
    token: str


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
        if fresh:
            _forget(folder)
        _refuse_other(spec, folder)
        place = Place.of(spec, folder)
        study = storage.begin(spec, place, folder, fresh=fresh)
        replace_text(folder / "spec.yaml", yaml.safe_dump(spec.dump(), sort_keys=False))
        clock: dict[str, float] = {}
        with _timed(clock, "reading"):
            reader = Reader.of(spec, folder, pick_device(spec.device), stage, encoders or {}, tasks or {})
            bench = reader.bench()
            storage.refuse_changed(study, place, reader.fingerprints)
        with _timed(clock, "trials"):
            others = _run_missing(spec, bench, place, study, stage)
        chosen = _chosen(spec, study)
        compared = None
        if spec.compare:
            with _timed(clock, "grid"):
                compared = _compare(spec, folder, bench, study, stage)
        with _timed(clock, "test"):
            best = _judged(spec, folder, bench, reader, chosen)
        best |= {"compared": compared} if compared else {}
        replace_text(folder / "best.json", json.dumps(best, indent=2))
        return _write(spec, folder, study, best, reader, clock | {"workers' processors": others})


def _run_missing(spec: SweepSpec, bench: Bench, place: Place, study: Any, stage: Stage) -> float:
    """Gives the processor seconds of the workers."""
    with storage.telling(place.storage), storage.quietly():
        count = spec.trials
        if spec.sampler == "grid":
            asked = [bench.choices.parameters(setting) for setting in bench.choices.settings()]
            storage.ask_for(study, asked)
            count = len(asked)
        done = len(storage.finished(study))
        before = len(study.get_trials(deepcopy=False))
    with stage(spec.name, count) as advance:
        advance(min(done, count))
        return run_trials(bench, spec, place, count - done, advance, since=before) if done < count else 0.0


def _chosen(spec: SweepSpec, study: Any) -> Any:
    """The trial with the best score; among equals the cheapest, then the first."""
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = [trial.user_attrs[WHY] for trial in storage.finished(study) if WHY in trial.user_attrs]
        raise DataError(f"no trial of {spec.name} has a score: {reasons[0] if reasons else 'all were pruned'}")
    return max(complete, key=lambda trial: (trial.values[0], *(-cost for cost in trial.values[1:]), -trial.number))


def _judged(spec: SweepSpec, folder: Path, bench: Bench, reader: Reader, trial: Any) -> dict[str, Any]:
    """What is said of the chosen trial. Its test score is taken once; another one's is a further look, and counted."""
    kept = _json(folder / "best.json")
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


def _write(
    spec: SweepSpec, folder: Path, study: Any, best: dict[str, Any], reader: Reader, clock: dict[str, float]
) -> Sweep:
    trials = table(spec, study)
    replace_text(folder / "trials.csv", trials.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    states = {str(state): int(n) for state, n in trials["state"].value_counts().items()}
    seconds = {name: round(value, 2) for name, value in clock.items()}
    provenance = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": made_by.versions() | {"optuna": version("optuna")},
        "device": made_by.describe_device(reader.device), "workers": spec.workers, "cores": os.cpu_count(),
        "seed": spec.seed, "storage": storage.hidden_password(Place.of(spec, folder).storage), "states": states,
        "encoders": reader.facts, "tasks": {name: made_by.describe_task(task) for name, task in reader.tasks.items()},
        "seen_in_pretraining": made_by.seen_in_pretraining(reader.facts, reader.tasks), "seconds": seconds,
    }  # fmt: skip
    replace_text(folder / "provenance.json", json.dumps(provenance, indent=2))
    with storage.quietly():
        plots = drawings(study, spec)
    write_sweep_report(folder / "report.html", spec.dump(), trials, best, provenance, plots)
    return Sweep(folder, trials, best, _json(folder / "study.json")["token"])


def table(spec: SweepSpec, study: Any) -> pd.DataFrame:
    """A row for each trial: number, state, parameters, score and cost, seconds, and why it has no score."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = []
    for trial in trials:
        values = dict(zip(("score", spec.cost or ""), trial.values or (), strict=False))
        seconds = trial.duration.total_seconds() if trial.duration else math.nan
        rows.append(
            {"number": trial.number, "state": trial.state.name.lower(), **trial.params, **values, "seconds": seconds,
             "why": trial.user_attrs.get(WHY, "")}
        )  # fmt: skip
    columns = ["number", "state", *names, "score", *([spec.cost] if spec.cost else []), "seconds", "why"]
    return pd.DataFrame(rows, columns=columns)


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - begin


def _refuse_other(spec: SweepSpec, folder: Path) -> None:
    path = folder / "spec.yaml"
    if path.exists():
        other, mine = yaml.safe_load(path.read_text()) or {}, spec.dump()
        if not spec.same_run(other):
            differ = [key for key in mine if key not in spec.LOOSE and mine[key] != other.get(key)]
            raise SpecError(
                f"{folder} holds a sweep with another {' and '.join(differ)}; take --fresh, or another --out"
            )


def _forget(folder: Path) -> None:
    """Remove what a sweep wrote into a folder, but for the mark of its study, and nothing else."""
    shutil.rmtree(folder / "features", ignore_errors=True)
    for name in FILES:
        if name not in ("study.json", "study.db"):  # the study is deleted in its storage
            (folder / name).unlink(missing_ok=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
