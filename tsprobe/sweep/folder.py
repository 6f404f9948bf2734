"""What every sweep does with its folder: refuse that of another, run what is missing, write tables and provenance."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tsprobe.errors import DataError, SpecError
from tsprobe.files import replace_text
from tsprobe.report.sweep import write_sweep_report
from tsprobe.study import provenance as made_by
from tsprobe.study.progress import Stage
from tsprobe.sweep import storage
from tsprobe.sweep.plots import drawings
from tsprobe.sweep.search import SearchSpec
from tsprobe.sweep.storage import WHY, Place
from tsprobe.sweep.trials import Bench, run_trials
from tsprobe.tasks.base import Task

FILES = (
    "trials.csv", "best.json", "grid.csv", "spec.yaml", "provenance.json", "report.html", "costs.json", "study.json",
    "study.db",
)  # fmt: skip
FOLDERS = ("features", "before", "tunings")


@dataclass(frozen=True)
class Sweep:
    """What a sweep left in its folder: a row for each trial, and the one that was chosen.

    `figures` are numbers of the chosen one. `message` says why there was nothing to search, or what is to be known of
    the choice; without a chosen trial `best` is empty.
    """

    folder: Path
    trials: pd.DataFrame
    best: dict[str, Any]
    token: str
    figures: dict[str, float]
    message: str = ""


def open_folder(spec: SearchSpec, folder: Path, *, fresh: bool) -> tuple[Place, Any]:
    """Where the trials are, and Optuna's study of them. Raises `SpecError` for the folder of another sweep."""
    if fresh:
        _forget(folder)
    _refuse_other(spec, folder)
    place = Place.of(spec, folder)
    study = storage.begin(spec, place, folder, fresh=fresh)
    replace_text(folder / "spec.yaml", yaml.safe_dump(spec.dump(), sort_keys=False))
    return place, study


def run_missing(spec: SearchSpec, bench: Bench, place: Place, study: Any, stage: Stage) -> float:
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


def complete(spec: SearchSpec, study: Any) -> list[Any]:
    """The trials that have a score. Raises `DataError` where none has."""
    from optuna.trial import TrialState

    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not found:
        reasons = [trial.user_attrs[WHY] for trial in storage.finished(study) if WHY in trial.user_attrs]
        raise DataError(f"no trial of {spec.name} has a score: {reasons[0] if reasons else 'all were pruned'}")
    return list(found)


def provenance_of(
    spec: SearchSpec, folder: Path, device: str, encoders: Mapping[str, Any], tasks: Mapping[str, Task],
    clock: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Of `encoders` the facts are given."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": made_by.versions() | {"optuna": version("optuna")},
        "device": made_by.describe_device(device), "workers": spec.workers, "cores": os.cpu_count(),
        "seed": spec.seed, "storage": storage.hidden_password(Place.of(spec, folder).storage),
        "encoders": dict(encoders), "tasks": made_by.describe_tasks(tasks.values()),
        "seen_in_pretraining": made_by.seen_in_pretraining(dict(encoders), dict(tasks)),
        "seconds": {name: round(value, 2) for name, value in clock.items()},
    }  # fmt: skip


def write(
    spec: SearchSpec, folder: Path, study: Any, trials: pd.DataFrame, best: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """`trials.csv`, `best.json`, `provenance.json` and the report."""
    replace_text(folder / "best.json", json.dumps(best, indent=2))
    replace_text(folder / "trials.csv", trials.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    states = {str(state): int(n) for state, n in trials["state"].value_counts().items()}
    provenance = provenance | {"states": states}
    replace_text(folder / "provenance.json", json.dumps(provenance, indent=2))
    with storage.quietly():
        plots = drawings(study, spec)
    write_sweep_report(folder / "report.html", spec.dump(), trials, best, provenance, plots)


def table(
    spec: SearchSpec, study: Any, more: Callable[[Any], dict[str, Any]] | None = None, columns: tuple[str, ...] = ()
) -> pd.DataFrame:
    """A row for each trial: number, state, parameters, score and cost, seconds, and why it has no score.

    `more` gives further `columns` of a trial that is complete.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = []
    for trial in trials:
        values = dict(zip(("score", spec.cost or ""), trial.values or (), strict=False))
        seconds = trial.duration.total_seconds() if trial.duration else math.nan
        rows.append(
            {"number": trial.number, "state": trial.state.name.lower(), **trial.params, **values, "seconds": seconds,
             "why": trial.user_attrs.get(WHY, "")} | (more(trial) if more and trial.values else {})
        )  # fmt: skip
    costs = [spec.cost] if spec.cost else []
    measured = dict.fromkeys(("number", "state", *names, "score", *costs, *columns, "seconds", "why"))
    return pd.DataFrame(rows, columns=list(measured))


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - begin


def _refuse_other(spec: SearchSpec, folder: Path) -> None:
    path = folder / "spec.yaml"
    if not path.exists():
        return
    other, mine = yaml.safe_load(path.read_text()) or {}, spec.dump()
    if any(field.is_required() and name not in other for name, field in type(spec).model_fields.items()):
        raise SpecError(f"{folder} holds something else than such a sweep; take --fresh, or another --out")
    if not spec.same_run(other):
        differ = [key for key in mine if key not in spec.LOOSE and mine[key] != other.get(key)]
        raise SpecError(f"{folder} holds a sweep with another {' and '.join(differ)}; take --fresh, or another --out")


def _forget(folder: Path) -> None:
    """Remove what a sweep wrote into a folder, but for the mark of its study, and nothing else."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in FILES:
        if name not in ("study.json", "study.db"):  # the study is deleted in its storage
            (folder / name).unlink(missing_ok=True)
