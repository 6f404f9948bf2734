"""The pipeline: spec -> features -> scores -> verdicts, resumable at every cell."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, EncoderError, SpecError
from tsprobe.files import alone, replace_text, safe_name
from tsprobe.probes import probes_for
from tsprobe.stats import holm, verdict
from tsprobe.study import provenance as made_by
from tsprobe.study.entries import Entry, plan_entries
from tsprobe.study.filled import Fill, Filled
from tsprobe.study.pair import Pair
from tsprobe.study.progress import Stage, silent
from tsprobe.study.result import DIAGNOSTICS, SCORES, VERDICTS, Study, write_table, write_tree
from tsprobe.study.spec import StudySpec
from tsprobe.study.summary import Summary, summarise
from tsprobe.tasks import load_tasks
from tsprobe.tasks.base import Task


def run_study(
    spec: StudySpec,
    folder: Path,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    tasks: Mapping[str, Task] | None = None,
    stage: Stage = silent,
    fresh: bool = False,
    fill: Fill | None = None,
) -> Study:
    """Run what is not there yet and write the artefacts. Objects in `encoders` and `tasks` stand for their names.

    With `fill`, others compute first (`tsprobe.cluster`), who know encoders and tasks by name alone: SpecError for
    objects. What they leave is computed here.

    An encoder that cannot take a task's series (too short, wrong channels, values that are not finite) is left out on
    that task alone, with the reason, and the study goes on; a mistake in the spec stops it before anything is run.
    Raises `StorageError` where another process is at work in the folder.
    """
    if fill is not None and (encoders or tasks):
        raise SpecError("a cluster loads encoders and tasks by name; objects of this process cannot be sent to it")
    with alone(folder):
        return _run(spec, folder, dict(encoders or {}), dict(tasks or {}), stage, fresh=fresh, fill=fill)


def _run(
    spec: StudySpec,
    folder: Path,
    encoders: dict[str, Encoder],
    tasks: dict[str, Task],
    stage: Stage,
    *,
    fresh: bool,
    fill: Fill | None,
) -> Study:
    clock = {"loading": 0.0, "reading": 0.0, "forward": 0.0, "probing": 0.0, "statistics": 0.0}
    read: set[tuple[str, str]] = set()  # encoder and panel: tasks with the same series share the reading
    begin = time.perf_counter()
    if fresh:
        forget(folder)
    _sweep(folder)
    device = pick_device(spec.device if fill is None or spec.device == "cpu" else "auto")  # workers may have others
    loaded = _load_tasks(spec, tasks)
    entries = plan_entries(spec, encoders)
    replace_text(folder / "spec.yaml", yaml.safe_dump(spec.dump(), sort_keys=False))
    clock["loading"] = time.perf_counter() - begin
    filled = Filled() if fill is None else fill(spec, folder, entries, loaded, stage)

    summaries: list[Summary] = []
    details: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    skipped: list[dict[str, str]] = []
    with stage(spec.name, len(entries) * len(loaded)) as advance:
        for entry in entries:
            begin = time.perf_counter()
            encoder = entry.load(device)
            fingerprint = encoder.fingerprint()
            facts[entry.name] = made_by.describe_encoder(encoder, fingerprint)
            clock["loading"] += time.perf_counter() - begin
            for task in loaded.values():
                pair = Pair(encoder, fingerprint, task, spec, folder, stage)
                try:
                    filled.check(entry.name, task.name)
                    cells = list(pair.cells())
                    detail = pair.details()
                except (DataError, EncoderError) as error:
                    skipped.append({"encoder": entry.name, "task": task.name, "reason": str(error)})
                else:
                    begin = time.perf_counter()
                    summaries.append(summarise(pair, cells))
                    clock["statistics"] += time.perf_counter() - begin
                    clock["probing"] += sum(cell.seconds for *_, cell in cells)
                    _count_reading(clock, read, entry, task, detail["notes"])
                    details.append({"node": summaries[-1].node, **detail})
                advance(1)
            del encoder, pair
            gc.collect()
    if not summaries:
        raise DataError(f"no encoder could be run on any task: {skipped[0]['reason']}")
    _write(folder, spec, summaries, details)
    _write_provenance(folder, spec, device, entries, loaded, (facts, skipped, clock, details, filled.facts))
    return Study(folder)


def _count_reading(
    clock: dict[str, float], read: set[tuple[str, str]], entry: Entry, task: Task, notes: dict[str, dict[str, Any]]
) -> None:
    for split, part in notes.items():
        which = entry.name, getattr(task, split).fingerprint()
        if which not in read:
            read.add(which)
            forward = part.get("forward_seconds", 0.0)
            clock["forward"] += forward
            clock["reading"] += part["seconds"] - forward


def forget(folder: Path) -> None:
    """Remove what a study wrote into a folder, and nothing else."""
    for name in ("cells", "features", "study.zarr"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("scores.csv", "verdicts.csv", "diagnostics.csv", "spec.yaml", "provenance.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove half-written files that a killed process left behind."""
    for rest in list(folder.rglob(".writing-*")):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)


def pick_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _load_tasks(spec: StudySpec, given: dict[str, Task]) -> dict[str, Task]:
    tasks = load_tasks(spec.tasks, given)
    for name, task in tasks.items():
        if not any(task.kind in probes_for(probe) for probe in spec.probes):
            raise SpecError(f"none of the probes {', '.join(spec.probes)} can read {name}, a {task.kind} task")
        missing = task.train.missing + task.test.missing
        if missing and spec.missing == "error":
            raise DataError(f"{name}: {missing} values are missing or not finite, and missing values are refused")
    return tasks


def _write(folder: Path, spec: StudySpec, summaries: list[Summary], details: list[dict[str, Any]]) -> None:
    scores: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    diagnostics: list[dict[str, Any]] = []
    nodes = {}
    for summary, detail in zip(summaries, details, strict=True):
        names = (safe_name(summary.node.attrs[key]) for key in ("encoder", "task"))
        nodes["/".join(names)] = _with_cka(summary.node, detail["cka"])
        scores += _score_rows(summary.node)
        diagnostics += _diagnostic_rows(summary.node, detail["diagnostics"])
        verdicts.append(_verdict_row(summary))
    for name in dict.fromkeys(row["encoder"] for row in verdicts):  # Holm's family: the tasks of one encoder
        rows = [row for row in verdicts if row["encoder"] == name]
        for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_adjusted"] = float(p)
    for row, summary in zip(verdicts, summaries, strict=True):
        same = row["chosen_layer"] == row["final_layer"]
        row["verdict"] = verdict(summary.gap, row["p_adjusted"], same_layer=same, level=spec.level, margin=spec.margin)
    write_tree(folder / "study.zarr", nodes)
    write_table(folder / "diagnostics.csv", diagnostics, DIAGNOSTICS)
    write_table(folder / "verdicts.csv", verdicts, VERDICTS)
    write_table(folder / "scores.csv", scores, SCORES)


def _score_rows(node: Any) -> list[dict[str, Any]]:
    frame = node["score"].to_dataframe().reset_index().dropna(subset="score")
    shared = {key: node.attrs[key] for key in ("encoder", "objective", "task", "family", "metric", "n_train", "n_test")}
    return [shared | row for row in frame.to_dict("records")]


def _verdict_row(summary: Summary) -> dict[str, Any]:
    a, gap = summary.node.attrs, summary.gap
    keys = (
        "encoder",
        "objective",
        "task",
        "family",
        "metric",
        "final_layer",
        "chosen_layer",
        "final_score",
        "chosen_score",
    )
    depth = float(summary.node["depth"].sel(layer=a["chosen_layer"]))
    return {key: a[key] for key in keys} | {
        "chosen_depth": depth, "gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p_value": gap.p_value,
    }  # fmt: skip


def _diagnostic_rows(node: Any, table: list[list[Any]]) -> list[dict[str, Any]]:
    shared = {key: node.attrs[key] for key in ("encoder", "objective", "task")}
    places = dict(
        zip(node["layer"].values, zip(node["layer_index"].values, node["depth"].values, strict=True), strict=True)
    )
    return [
        shared
        | {
            "layer": layer, "layer_index": int(places[layer][0]), "depth": float(places[layer][1]), "pooling": pooling,
            "diagnostic": measure, "note": note, "value": value,
        }
        for pooling, layer, measure, value, note in table
    ]  # fmt: skip


def _with_cka(node: Any, cka: dict[str, list[list[float]]]) -> Any:
    """The node with `cka` of all pairs of layers, dims pooling, layer and other_layer."""
    if not cka:
        return node
    missing = np.full((len(node["layer"]), len(node["layer"])), np.nan)
    matrices = [np.array(cka.get(pooling, missing), float) for pooling in node["pooling"].values]
    return node.assign_coords(other_layer=node["layer"].values).assign(
        cka=(("pooling", "layer", "other_layer"), np.stack(matrices))
    )


def _write_provenance(
    folder: Path, spec: StudySpec, device: str, entries: list[Entry], tasks: dict[str, Task], found: tuple[Any, ...]
) -> None:
    import json

    facts, skipped, clock, details, elsewhere = found
    missing = {
        f"{d['node'].attrs['encoder']} on {d['node'].attrs['task']}": d["notes"]
        for d in details
        if any(part["missing_values"] for part in d["notes"].values())
    }
    views: dict[str, list[str]] = {}
    for d in details:
        if d["views"] and d["node"].attrs["task"] not in views.setdefault(d["views"], []):
            views[d["views"]].append(d["node"].attrs["task"])
    asked = spec.diagnostics
    content = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": made_by.versions(),
        "device": made_by.describe_device(device),
        "seeds": list(spec.seeds),
        "controls": {entry.name: entry.role for entry in entries if entry.role != "studied"},
        "encoders": facts,
        "tasks": made_by.describe_tasks(tasks.values()),
        "seen_in_pretraining": made_by.seen_in_pretraining(facts, [task.name for task in tasks.values()]),
        "missing_values": missing,
        "diagnostics": {"measures": asked.names, "tokens_of": asked.tokens, "seed": asked.seed}
        | ({"views": asked.n_views, "views_of": asked.samples, "views_are": views} if asked.n_views else {}),
        "left_out": skipped,
        "seconds": {stage: round(seconds, 2) for stage, seconds in clock.items()},
        "share_of_time_not_forward": round(1 - clock["forward"] / sum(clock.values()), 4),
        **elsewhere,
    }
    replace_text(folder / "provenance.json", json.dumps(content, indent=2))
