"""Settings in the names of tasks: those of a generated source, `process/k2?n_train=200`, and those that any name may
carry, `ucr/GunPoint?shots=5&seed=1&metric=balanced_accuracy`:

| setting | meaning |
|---|---|
| metric | another metric that is defined for the task's kind |
| shots | so many training series of each class, drawn at random, in place of all; of a task of one class a series |
| seed | of that draw, 0 by default; without `shots` it is the source's own setting, where it has one |

What is left of the settings goes to the source. The test series stay as they are.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import numpy as np

from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import get_metric

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from tsprobe.tasks.base import Task

    Made = TypeVar("Made", bound=Task)
    Settings = TypeVar("Settings", bound=DataclassInstance)


def read_settings(name: str, query: str, default: Settings) -> Settings:
    """The settings of a source, a frozen dataclass, with what a query says: `n_train=200&seed=1`.

    Raises `SpecError` for a setting that there is not, a value of another type, and a negative `seed`.
    """
    kinds = {key: type(value) for key, value in dataclasses.asdict(default).items()}
    given = {}
    for key, text in _pairs(query):
        if key not in kinds:
            raise SpecError(f"task {name!r}: no setting {key!r}; there are {', '.join(kinds)}")
        given[key] = _number(name, key, text, kinds[key])
    if given.get("seed", 0) < 0:
        raise SpecError(f"task {name!r}: seed={given['seed']} must not be negative")
    return dataclasses.replace(default, **given)


def _pairs(query: str) -> list[tuple[str, str]]:
    """Keys and values; a plus joins names, where in an address it would be a space."""
    return parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)


def written(settings: Settings, default: Settings) -> str:
    """What settings add to a name: those that differ from the default, as a query, or nothing."""
    usual = dataclasses.asdict(default)
    changed = [f"{key}={value}" for key, value in dataclasses.asdict(settings).items() if value != usual[key]]
    return "?" + "&".join(changed) if changed else ""


def _number(name: str, key: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise SpecError(f"task {name!r}: {key}={text!r} is not {kind.__name__}") from None


def split(name: str) -> tuple[str, dict[str, str]]:
    """A name without the settings of this module, and these."""
    base, _, query = name.partition("?")
    given = dict(_pairs(query))
    ours = {"metric", "shots", *(("seed",) if "shots" in given else ())} & set(given)
    if not ours:
        return name, {}
    rest = "&".join(part for part in query.split("&") if part.partition("=")[0] not in ours)
    return base + (rest and f"?{rest}"), {key: given[key] for key in ours}


def apply(task: Made, given: dict[str, str]) -> Made:
    """The task with these settings. Raises as `few_shot` and `scored_by` do, `SpecError` for what is no number."""
    if "shots" in given:
        task = few_shot(task, *(_number(task.name, key, given.get(key, "0"), int) for key in ("shots", "seed")))
    return scored_by(task, given["metric"]) if "metric" in given else task


def few_shot(task: Made, shots: int, seed: int = 0) -> Made:
    """The task with `shots` training series of each class, at least 2; the test series stay as they are.

    Of one seed, the series of fewer shots are among those of more. Rows keep their order. There are at most `shots`
    folds, so that each fit of the inner folds has seen as many series of one class as of another.

    Raises `SpecError` for shots below 2 (folds of one series a class leave nothing to learn the class from), a negative
    seed, or a task that is not one of one class a series; `DataError` where a class has fewer training series.
    """
    if task.kind != "classification" or task.dense:
        raise SpecError(
            f"task {task.name!r}: shots are for one class a series, not for {'dense ' * task.dense}{task.kind}"
        )
    if shots < 2 or seed < 0:
        raise SpecError(
            f"task {task.name!r}: shots={shots}&seed={seed}; give at least 2 shots, so that inner folds can hold one "
            "out and learn from the other, and a seed that is not negative"
        )
    counts = np.bincount(task.y_train, minlength=task.n_classes)
    if counts.min() < shots:
        raise DataError(
            f"task {task.name!r}: {shots} shots, but class {task.labels[counts.argmin()]!r} has {counts.min()} "
            f"training series; give at most {counts.min()}"
        )
    rng = np.random.default_rng(seed)
    rows = np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(task.y_train == c))[:shots] for c in range(len(counts))])
    )
    return dataclasses.replace(
        task,
        name=_named(task.name, f"shots={shots}" + (f"&seed={seed}" if seed else "")),
        train=task.train.take(rows),
        y_train=task.y_train[rows],
        groups=None if task.groups is None else task.groups[rows],
        shots=(shots, seed),
    )


def scored_by(task: Made, metric: str) -> Made:
    """The task with another metric; raises `UnknownNameError`, or `SpecError` for one that is not for such a task."""
    found = get_metric(metric)
    if metric == task.metric:
        return task
    if task.kind not in found.kinds or (found.by_series and not task.dense):
        due = f"{'dense ' * found.by_series}{' or '.join(found.kinds)}"
        raise SpecError(
            f"task {task.name!r}: metric {metric!r} is for {due}, not for {'dense ' * task.dense}{task.kind}"
        )
    return dataclasses.replace(task, name=_named(task.name, f"metric={metric}"), metric=metric)


def _named(name: str, settings: str) -> str:
    return f"{name}{'&' if '?' in name else '?'}{settings}"
