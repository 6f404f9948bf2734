"""A sweep of tunings: the study before once, tunings on inner folds, and for the chosen one the whole alignment.

The chosen trial is the best of those whose price is within `price_at_most`; where none is, the cheapest. It alone is
tuned with all seeds and controls, and its change is measured on the test set, by `run_alignment` in its own folder.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsprobe.alignment import families
from tsprobe.alignment.lift import Before
from tsprobe.alignment.run import BEFORE, Work, refuse_early, run_alignment
from tsprobe.alignment.teachers import find_teachers
from tsprobe.encoders.base import Encoder
from tsprobe.errors import SpecError
from tsprobe.files import alone, kept_json, replace_text
from tsprobe.study import provenance as made_by
from tsprobe.study.progress import Stage, silent
from tsprobe.sweep import storage
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
from tsprobe.sweep.space import known_layers
from tsprobe.sweep.tuning_bench import Source, TuningBench, Tunings, asked_of, inner_of
from tsprobe.sweep.tuning_spec import TuningSweepSpec
from tsprobe.tasks.base import Task


def run_tuning_sweep(
    spec: TuningSweepSpec,
    folder: Path,
    *,
    encoder: Encoder | None = None,
    tasks: Mapping[str, Task] | None = None,
    stage: Stage = silent,
    fresh: bool = False,
) -> Sweep:
    """Run the trials that are missing, align with the settings that were chosen, and write the artefacts.

    Where nothing is hidden, and the alignment does not say `force`, nothing is tuned: `message` says so. Raises
    `SpecError` for a request that makes no sense, or a folder of another sweep, `StorageError` where the storage or the
    disk refuse, `DataError` where no trial has a score, and what the study before raises.
    """
    if spec.workers > 1 and encoder is not None:
        _refuse_unsendable(encoder)
    with alone(folder):
        place, study = open_folder(spec, folder, fresh=fresh)
        token, clock = str(kept_json(folder / "study.json")["token"]), dict[str, float]()
        source = Source(spec.placed, folder, encoder, dict(tasks or {}), stage)
        work = source.work
        _refuse_tunings(spec, work)
        prints = {work.base.name: work.base.fingerprint()} | {n: task.fingerprint() for n, task in work.tasks.items()}
        storage.refuse_changed(study, place, prints)
        with timed(clock, "study before"):
            before = work.before()
        teachers, message = find_teachers(work.spec, before)
        if not teachers or (message and not work.spec.force):
            about = provenance_of(spec, folder, work.spec.device, _facts(work), work.tasks, clock)
            replace_text(folder / "provenance.json", json.dumps(about | {"message": message}, indent=2))
            return Sweep(folder, table(spec, study), {}, token, {}, message)
        bench = _bench(spec, folder, source, before)
        with timed(clock, "trials"):
            others = run_missing(spec, bench, place, study, stage)
        chosen = _chosen(spec, bench, study)
        with timed(clock, "alignment of the chosen trial"):
            best = _aligned(spec, folder, bench, chosen)
        trials = table(spec, study, lambda trial: _entries(bench, trial), ("price", "folder"))
        clock |= {"workers' processors": others}
        write(spec, folder, study, trials, best, provenance_of(
            spec, folder, work.spec.device, _facts(work), work.tasks, clock
        ))  # fmt: skip
        return Sweep(folder, trials, best, token, _figures(best), best["message"])


@dataclass(frozen=True)
class Chosen:
    """A trial, what its folder says of it, and what is to be known of the choice."""

    trial: Any
    setting: dict[str, Any]
    found: dict[str, Any]
    message: str


def _refuse_unsendable(encoder: Encoder) -> None:
    try:
        pickle.dumps(encoder)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SpecError(f"{encoder.name} cannot be sent to workers ({error}); take workers: 1") from error


def _refuse_tunings(spec: TuningSweepSpec, work: Work) -> None:
    """Raise early what a tuning would raise for a value in the space; see `alignment.run.refuse_early`."""
    asked_of(work, dict.fromkeys(work.spec.study.tasks))
    trunk = tuple(layer.name for layer in work.base.layers if layer.depth is not None)
    seen = []
    for align in (work.spec, *spec.variants()):
        of_lessons = [align.cut, align.series, align.sources, align.length, align.locality > 0, align.locality_from]
        named = (align.teacher,) if isinstance(align.teacher, str) else align.teacher
        if named != ("auto",):
            known_layers(work.base.name, trunk, tuple(work.base.taps), named)
        if of_lessons not in seen:
            seen.append(of_lessons)
            refuse_early(align, work.base, Work.of(align, work.folder, work.stage, work.base, work.tasks).tasks)


def _bench(spec: TuningSweepSpec, folder: Path, source: Source, before: dict[str, Before]) -> TuningBench:
    work = source.work
    named = {align.teacher: align for align in spec.variants()}
    teachers = {teacher: find_teachers(align, before) for teacher, align in named.items()}
    asked, lifted = asked_of(work, before)
    scores = {name: (family, inner_of(before[name])) for name, family in asked.items()}
    return TuningBench(spec, folder, Tunings(spec.space), source, teachers, scores, lifted)


def _chosen(spec: TuningSweepSpec, bench: TuningBench, study: Any) -> Chosen:
    """The best trial of those that cost little enough, else the cheapest; among equals the cheaper, then the first."""
    found = []
    for trial in complete(spec, study):
        setting = bench.setting(trial.params)
        found.append(Chosen(trial, setting, bench.found(setting), ""))
    most = math.inf if spec.price_at_most is None else spec.price_at_most
    within = [one for one in found if one.found["price"] <= most]
    if within:
        return max(within, key=lambda one: (one.found["score"], -one.found["price"], -one.trial.number))
    one = min(found, key=lambda one: (one.found["price"], -one.found["score"], one.trial.number))
    message = f"no trial costs {most:g} or less in every other family: this is the cheapest, {one.found['price']:.3g}"
    return Chosen(one.trial, one.setting, one.found, message)


def _aligned(spec: TuningSweepSpec, folder: Path, bench: TuningBench, chosen: Chosen) -> dict[str, Any]:
    """The whole alignment of the chosen trial. Another one's is a further look at the test set, and counted."""
    where, source = bench.place(chosen.setting), bench.source.work
    if not (where / BEFORE).exists():
        half = where / f".{BEFORE}"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(folder / BEFORE, half, copy_function=_linked)
        half.rename(where / BEFORE)
    outcome = run_alignment(
        spec.aligned(chosen.setting), where, stage=source.stage, encoder=source.base, tasks=source.tasks
    )
    changes = families.tradeoff([where])
    of_recipe = changes[changes["control"] == ""].to_dict("records")
    kept, name = kept_json(folder / "best.json"), str(where.relative_to(folder))
    return {
        "trial": chosen.trial.number, "params": chosen.trial.params, "setting": chosen.setting,
        "inner_score": chosen.found["score"], "price": chosen.found["price"], "inner": chosen.found["families"],
        "lifted": list(bench.lifted), "price_at_most": spec.price_at_most, "message": chosen.message,
        "folder": name, "encoder": f"{name}/encoder", "teachers": list(outcome.teachers),
        "left_out": list(outcome.left_out),
        "test": [{key: _plain(row[key]) for key in ("family", "tasks", "change", "change_low", "change_high")}
                 for row in of_recipe],
        "looks_at_test": kept.get("looks_at_test", 0) + (kept.get("folder") != name),
    }  # fmt: skip


def _linked(source: str, target: str) -> None:
    """The same file under another name, where the file system has that: a study keeps features, and replaces files."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _entries(bench: TuningBench, trial: Any) -> dict[str, Any]:
    setting = bench.setting(trial.params)
    return {"price": bench.cost(setting), "folder": str(bench.place(setting).relative_to(bench.folder))}


def _figures(best: dict[str, Any]) -> dict[str, float]:
    """Without what has no interval."""
    figures = {"inner_score": best["inner_score"], "price": best["price"]}
    for row in best["test"]:
        ends = {"": row["change"], ".low": row["change_low"], ".high": row["change_high"]}
        figures |= {f"test.{row['family']}{end}": value for end, value in ends.items() if value is not None}
    return figures


def _facts(work: Work) -> dict[str, Any]:
    return {work.base.name: made_by.describe_encoder(work.base, work.base.fingerprint())}


def _plain(value: Any) -> Any:
    """JSON has no NaN, and numpy's numbers are not its."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value
