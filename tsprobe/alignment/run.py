"""From a spec to a folder: the study before, the teacher, the tuning, the study after, and what came of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tsprobe.alignment.lift import COLUMNS, Before, row
from tsprobe.alignment.recipes import RECIPES
from tsprobe.alignment.spec import AlignSpec
from tsprobe.alignment.train import Tuning, tune
from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, EncoderError, SpecError
from tsprobe.files import replace_text
from tsprobe.report.alignment import write_alignment_report
from tsprobe.study import make_spec, run_study
from tsprobe.study import provenance as made_by
from tsprobe.study.pair import Pair
from tsprobe.study.result import write_table
from tsprobe.study.run import pick_device
from tsprobe.study.spec import StudySpec
from tsprobe.tasks import load_task
from tsprobe.tasks.base import Task

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

BEFORE, AFTER, ENCODER = "before", "after", "encoder"


@dataclass(frozen=True)
class Outcome:
    """What an alignment left in its folder. `encoder` is None where nothing was hidden, and nothing was tuned."""

    folder: Path
    teachers: tuple[str, ...]
    lift: pd.DataFrame
    encoder: Encoder | None
    message: str


def run_alignment(
    spec: AlignSpec,
    folder: Path,
    *,
    stage: Stage,
    fresh: bool = False,
    encoder: Encoder | None = None,
    tasks: dict[str, Task] | None = None,
) -> Outcome:
    """Tune an encoder so that its output carries what its hidden layers do, and study it before and after.

    An encoder whose final layer is not beaten, over the tasks of the families in `spec.lift`, by any other on inner
    folds by more than the margin is left as it is, unless `spec.force`. Controls are tuned and studied in the same
    way, in `controls/NAME/`. Raises `SpecError` for a request that makes no sense, `EncoderError` for an encoder that
    cannot be tuned.
    """
    begin = time.perf_counter()
    if fresh:
        _forget(folder)
    base = (encoder if encoder is not None else load_encoder(spec.encoder)).to(pick_device(spec.device))
    loaded = dict(tasks or {})
    loaded |= {n: load_task(n) for n in dict.fromkeys((*spec.study.tasks, *spec.labelled)) if n not in loaded}
    replace_text(folder / "spec.yaml", yaml.safe_dump(spec.dump(), sort_keys=False))
    clock: dict[str, float] = {}

    def study(of: Encoder, where: Path) -> StudySpec:
        asked = make_spec(
            spec.study.model_dump() | {
                "name": where.name, "encoders": [of.name], "controls": ["chance"], "device": spec.device,
                "tracking": {"enabled": False},
            }
        )  # fmt: skip
        ran = run_study(asked, where, encoders={of.name: of}, tasks=loaded, stage=stage)
        ran.report(where / "report.html")
        return asked

    asked = study(base, folder / BEFORE)
    clock["before"] = time.perf_counter() - begin
    before = _befores(base, loaded, asked, folder / BEFORE, stage)
    teachers, message = _teachers(spec, before)
    needless = not teachers or (message and not spec.force)
    rows: list[dict[str, Any]] = []
    tuned: Encoder | None = None
    if not needless:
        labelled = [loaded[name] for name in spec.labelled]
        for control in ("", *spec.controls):
            where = folder / "controls" / control if control else folder
            its = spec.controlled(control) if control else spec
            taught = teachers if not control or its.teacher == spec.teacher else (str(its.teacher),)
            begin = time.perf_counter()
            label = f"{spec.recipe}{' ' + control if control else ''}"
            found = tune(Tuning(its, base, taught, labelled), where, stage=stage, name=label)
            assert found is not None
            found.name = f"{base.name}+{label.replace(' ', '-')}"
            clock[f"tuning {label}"] = time.perf_counter() - begin
            begin = time.perf_counter()
            asked_after = study(found, where / AFTER)
            clock[f"after {label}"] = time.perf_counter() - begin
            shared = {"encoder": base.name, "recipe": spec.recipe, "control": control}
            fingerprint = found.fingerprint()
            for name, one in before.items():
                pair = Pair(found, fingerprint, loaded[name], asked_after, where / AFTER, stage)
                rows.append(shared | row(one, pair, teachers[0] if len(teachers) == 1 else None))
            if not control:
                tuned = found
        write_table(folder / "lift.csv", rows, COLUMNS)
    _write_provenance(folder, spec, base, tuned, teachers, message, clock, loaded)
    lift = pd.DataFrame(rows, columns=list(COLUMNS))
    about = {"encoder": base.name, "recipe": spec.recipe, "teachers": teachers, "message": message, "spec": spec.dump()}
    write_alignment_report(folder / "report.html", lift, about)
    return Outcome(folder, teachers, lift, tuned, message)


def _befores(base: Encoder, loaded: dict[str, Task], asked: StudySpec, folder: Path, stage: Stage) -> dict[str, Before]:
    """The tasks that the encoder can take, in the order of the spec."""
    fingerprint, found = base.fingerprint(), {}
    for name in asked.tasks:
        try:
            found[name] = Before.of(Pair(base, fingerprint, loaded[name], asked, folder, stage))
        except (DataError, EncoderError):
            continue  # left out of the study too, with its reason
    return found


def _teachers(spec: AlignSpec, before: dict[str, Before]) -> tuple[tuple[str, ...], str]:
    """The layers to learn from, and why not to tune at all where nothing is hidden (else nothing)."""
    if RECIPES[spec.recipe].labelled:
        return (next(iter(before.values())).pair.final,), ""
    named = (spec.teacher,) if isinstance(spec.teacher, str) else spec.teacher
    if named != ("auto",):
        known = next(iter(before.values())).grid.layers
        for layer in named:
            if layer not in known:
                raise SpecError(f"teacher {layer!r} is no layer of {spec.encoder}, which has {', '.join(known)}")
        if len(named) > 1 and spec.recipe != "joint":
            raise SpecError(f"the recipe {spec.recipe} has one teacher; several are for joint")
        return named, ""
    families = dict.fromkeys(b.pair.task.family for b in before.values())
    wanted = [f for f in families if f in spec.lift] if spec.recipe != "joint" else list(families)
    if not wanted:
        raise SpecError(f"no task of the study is of the families to lift ({', '.join(spec.lift)})")
    gains = {family: _gains([b for b in before.values() if b.pair.task.family == family]) for family in wanted}
    groups = [wanted] if spec.recipe != "joint" else [[family] for family in wanted]
    layers = []
    for group in groups:
        mean = {layer: float(np.mean([gains[f][layer] for f in group])) for layer in gains[group[0]]}
        layers.append(max(mean, key=lambda layer: mean[layer]))
    final = next(iter(before.values())).pair.final
    best = max(gains[f][layer] for f, layer in zip(wanted, layers * len(wanted), strict=False))
    margin = next(iter(before.values())).pair.spec.margin
    message = ""
    if best <= margin:
        message = (
            f"no repair needed: over the tasks of {', '.join(wanted)}, no layer of {spec.encoder} is better than "
            f"{final} on inner folds by more than {margin:g} (best: {layers[0]}, {best:+.3f})"
        )
    found = tuple(dict.fromkeys(layer for layer in layers if layer != final))
    return found, message or ("" if found else f"no repair needed: the best layer of {spec.encoder} is {final} itself")


def _gains(tasks: list[Before]) -> dict[str, float]:
    """Of each layer, the mean over tasks of its inner score less that of the final layer; trunk layers only."""
    layers = {layer.name for layer in tasks[0].pair.encoder.layers if layer.depth is not None}
    shared = [layer for layer in tasks[0].grid.layers if layer in layers and all(layer in b.grid.layers for b in tasks)]
    gains: dict[str, list[float]] = {layer: [] for layer in shared}
    for one in tasks:
        inner = np.nanmax(one.grid.values("inner").mean(-1), axis=(1, 2))  # [L]
        end = one.grid.layers.index(one.pair.final)
        for layer in shared:
            gains[layer].append(float(inner[one.grid.layers.index(layer)] - inner[end]))
    return {layer: float(np.mean(values)) for layer, values in gains.items()}


def _forget(folder: Path) -> None:
    """Remove what an alignment wrote into a folder, and nothing else."""
    for name in (BEFORE, AFTER, ENCODER, "controls"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("checkpoint.pt", "losses.csv", "lift.csv", "spec.yaml", "provenance.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def _write_provenance(
    folder: Path, spec: AlignSpec, base: Encoder, tuned: Encoder | None, teachers: tuple[str, ...], message: str,
    clock: dict[str, float], tasks: dict[str, Task],
) -> None:  # fmt: skip
    encoders = [base] if tuned is None else [base, tuned]
    content = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": made_by.versions(),
        "device": made_by.describe_device(str(base.device)),
        "seed": spec.seed,
        "teachers": list(teachers),
        "message": message,
        "encoders": {one.name: made_by.describe_encoder(one, one.fingerprint()) for one in encoders},
        "tasks": {name: made_by.describe_task(task) for name, task in tasks.items()},
        "seconds": {name: round(seconds, 2) for name, seconds in clock.items()},
    }
    replace_text(folder / "provenance.json", json.dumps(content, indent=2))
