"""A trial of a sweep of tunings: settings of an alignment, tuned in a folder of their own and scored on inner folds.

The score is what the final layer gained: the mean over the families to lift of the mean over their tasks of its score
on inner folds after the tuning, less that before. The price is the largest loss of a family that is not to be lifted
(where all are, of any of them); it is negative where all gain. The cells of a tuned encoder hold test scores too, which
nobody reads here; they are thrown away.

The encoder has seen the targets of the tasks in `labelled`, so that inner folds of these series say nothing: they are
left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.alignment.lift import After, Before
from tsprobe.alignment.run import Work
from tsprobe.alignment.spec import AlignSpec
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, SpecError, StorageError
from tsprobe.files import kept_json, lock, replace_text
from tsprobe.study.progress import Stage, silent
from tsprobe.sweep.space import Asks, Recorder, one_of
from tsprobe.sweep.tuning_spec import NUMBERS, Range, TuningSweepSpec, label
from tsprobe.tasks.base import Task

TUNINGS, FOUND = "tunings", "inner.json"
_CELLS = "inner"  # what the score of a trial was made of; gone when it is there
_LOOK = 0.2  # seconds between looks at a folder in which another worker tunes

Tuned = dict[str, Any]  # settings of an alignment, of one trial


@dataclass(frozen=True)
class Tunings:
    """What a trial may choose."""

    space: Mapping[str, tuple[Any, ...] | Range]

    @property
    def size(self) -> int | None:
        """The number of settings; None for a space that is not finite."""
        if any(isinstance(values, Range) for values in self.space.values()):
            return None
        return sum(1 for _ in self.settings())

    def ask(self, trial: Asks) -> Tuned:
        return {name: self._choose(trial, name, values) for name, values in self.space.items()}

    def _choose(self, trial: Asks, name: str, values: tuple[Any, ...] | Range) -> Any:
        if not isinstance(values, Range):
            by_label = {label(value): value for value in values}
            return by_label[one_of(trial, name, tuple(by_label))]
        log = values.logarithmic(name)
        if NUMBERS[name] is int:
            return trial.suggest_int(name, int(values.low), int(values.high), log=log)
        return trial.suggest_float(name, values.low, values.high, log=log)

    def settings(self) -> Iterator[Tuned]:
        """All settings of a space of lists."""
        for chosen in itertools.product(*(values for values in self.space.values() if isinstance(values, tuple))):
            yield dict(zip(self.space, chosen, strict=True))

    def parameters(self, setting: Tuned) -> dict[str, Any]:
        """What a trial has to answer to come to a setting."""
        recorder = Recorder({name: label(value) for name, value in setting.items()})
        self.ask(recorder)
        return recorder.asked


@dataclass(frozen=True)
class Source:
    """Where the encoder and the tasks come from: those given, else by their names, in the process that uses them."""

    align: AlignSpec
    folder: Path
    encoder: Encoder | None
    tasks: Mapping[str, Task]
    stage: Stage

    @cached_property
    def work(self) -> Work:
        return Work.of(self.align, self.folder, self.stage, self.encoder, self.tasks)

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads for itself what has a name, and tells nobody how far it is."""
        return {name: value for name, value in vars(self).items() if name != "work"} | {"stage": silent}


@dataclass(frozen=True)
class TuningBench:
    """Where tunings are tried.

    `teachers` are the layers that each value of `teacher` stands for, and why not to tune; `before` the families and
    inner scores of the tasks that are asked.
    """

    spec: TuningSweepSpec
    folder: Path
    choices: Tunings
    source: Source
    teachers: Mapping[str | tuple[str, ...], tuple[tuple[str, ...], str]]
    before: Mapping[str, tuple[str, float]]
    lifted: tuple[str, ...]  # families

    steps = 1

    def scores(self, setting: Tuned) -> Iterator[float]:
        """One score. Raises what tuning raises."""
        yield float(self.found(setting)["score"])

    def cost(self, setting: Tuned) -> float:
        """The price; NaN for a tuning that failed."""
        return float(self.kept(setting).get("price", math.nan))

    def setting(self, parameters: Mapping[str, Any]) -> Tuned:
        """That of a trial that has been run."""
        return self.choices.ask(Recorder(dict(parameters)))

    def place(self, setting: Tuned) -> Path:
        """The folder of a setting, the same whenever it is drawn."""
        text = json.dumps(setting, sort_keys=True, default=str)
        return self.folder / TUNINGS / hashlib.sha256(text.encode()).hexdigest()[:10]

    def kept(self, setting: Tuned) -> dict[str, Any]:
        """What the folder of a setting says of it; nothing where it was not tuned to the end."""
        return kept_json(self.place(setting) / FOUND)

    def found(self, setting: Tuned) -> dict[str, Any]:
        """Tune, or read what was found when this setting was tuned; of several who draw it, one does."""
        with _in_turn(self.place(setting)):
            return self.kept(setting) or self._tune(setting)

    def _tune(self, setting: Tuned) -> dict[str, Any]:
        begin, where, source = time.perf_counter(), self.place(setting), self.source.work
        align = self.spec.aligned(setting)
        work = Work.of(align, where, source.stage, source.base, source.tasks)
        source.tasks.update(work.tasks)  # series that this setting names, loaded once
        teachers, why = self.teachers[align.teacher]
        if not teachers or (why and not align.force):
            raise SpecError(why)
        tuned = work.tune("", align.seed, where, teachers)
        after = work.final_cells(tuned, where / _CELLS, list(self.before))
        found = {"setting": setting} | self._gained({name: inner_of(one) for name, one in after.items()})
        found["seconds"] = round(time.perf_counter() - begin, 2)
        replace_text(where / FOUND, json.dumps(found, indent=2))
        shutil.rmtree(where / _CELLS, ignore_errors=True)
        return found

    def _gained(self, after: Mapping[str, float]) -> dict[str, Any]:
        tasks, families = {}, dict[str, list[float]]()
        for name, (family, before) in self.before.items():
            if math.isnan(after[name] - before):
                raise DataError(f"{name} has no score on inner folds {'before' if math.isnan(before) else 'after'}")
            tasks[name] = {"before": before, "after": after[name]}
            families.setdefault(family, []).append(after[name] - before)
        means = {family: float(np.mean(values)) for family, values in families.items()}
        paying = [family for family in means if family not in self.lifted] or list(means)
        price = max(0.0 - means[family] for family in paying)
        score = float(np.mean([means[family] for family in self.lifted]))
        return {"score": score, "price": price, "families": means, "tasks": tasks}


def inner_of(of: Before | After) -> float:
    """The score of the final layer on inner folds, a mean over seeds, by the readout that they choose."""
    return float(of.grid.values("inner").mean(-1)[of.final])


def asked_of(work: Work, names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Of the tasks of a study those that trials are scored on, each with its family, and the families to lift.

    Raises `SpecError` where no task is left for these.
    """
    spec, tasks = work.spec, work.tasks
    taught = {tasks[name].train.fingerprint() for name in spec.labelled}
    asked = {name: tasks[name].family for name in names if tasks[name].train.fingerprint() not in taught}
    families = tuple(dict.fromkeys(asked.values()))
    lifted = families if spec.recipe == "joint" else tuple(family for family in families if family in spec.lift)
    if not lifted:
        rest = ", whose targets are not learnt from," if spec.labelled else ""
        raise SpecError(f"no task of the study{rest} is of the families to lift ({', '.join(spec.lift)})")
    return asked, lifted


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other worker is in a folder. One that was killed is in none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (held := lock(folder)) is None:
            time.sleep(_LOOK)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        os.close(held)
