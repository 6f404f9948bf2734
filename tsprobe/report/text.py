"""The words and numbers of the report: plain sentences made from the tables, and values as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tsprobe.encoders.base import UNTRAINED

if TYPE_CHECKING:
    import pandas as pd

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"  # what stands where there is no number
ROUNDING = 1e-9  # scores are of float32 features: a smaller difference is none


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits with a true minus sign; an en dash where the value is missing."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    size = abs(value)
    if size < ROUNDING:
        return "0"
    if size < 1e-4 or size >= 1e6:
        text = f"{size:.2e}"
    else:
        text = f"{size:,.0f}" if size >= 999.5 else f"{size:#.3g}".rstrip(".")
    sign = MINUS if value < 0 else "+" if signed else ""
    return sign + text


def p_value(value: float | None) -> str:
    """A p-value; below 0.001 only that it is."""
    return "<0.001" if value is not None and value < 0.001 else number(value)


def interval(low: float, high: float) -> str:
    """`low to high`, or nothing where no interval was estimated."""
    return "" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"


def shorten(name: str, width: int) -> str:
    """The name, its middle cut out where it is longer than `width` letters (both ends tell names apart)."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def simple(value: Any) -> Any:
    """Nested settings as plain dicts, lists and scalars, so that any YAML writer takes them."""
    if isinstance(value, Mapping):
        return {str(key): simple(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return simple(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [simple(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def facts(tree: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A nested mapping as titled tables: its own scalars first under "", then a table for each mapping in it.

    Deeper keys are joined with " / ". Numbers under a key that speaks of timings are seconds.
    """
    own: list[tuple[str, str]] = []
    tables: list[tuple[str, list[tuple[str, str]]]] = []
    for key, value in tree.items():
        title = str(key).replace("_", " ")
        seconds = any(word in title.lower() for word in ("timing", "seconds"))
        if isinstance(value, Mapping) and value:
            tables.append((title, _flat(value, "", seconds)))
        else:
            own.append((title, _fact(value, seconds)))
    return ([("", own)] if own else []) + tables


def _flat(tree: Mapping[str, Any], before: str, seconds: bool) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{before} / {key}" if before else str(key)
        rows.extend(_flat(value, name, seconds) if isinstance(value, Mapping) else [(name, _fact(value, seconds))])
    return rows


def _fact(value: Any, seconds: bool) -> str:
    value = simple(value)
    if value is None or value in ([], {}, ""):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and seconds:
        return f"{number(float(value))} s"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return ", ".join(_fact(item, seconds) for item in value) if isinstance(value, list) else str(value)


TWIN_DOES_AS_WELL = "untrained copy does as well"


def caveats(verdicts: pd.DataFrame, controls: Mapping[str, str]) -> list[str]:
    """For each row, what takes the weight off a "hidden": a control that reads out as much at the chosen layer."""
    scores = {(r.encoder, r.task, r.metric): r.chosen_score for r in verdicts.itertuples()}
    baselines = [name for name, role in controls.items() if role == "baseline"]
    notes = []
    for row in verdicts.itertuples():
        note = ""
        if row.verdict == "hidden" and row.encoder not in controls:
            twin = scores.get((row.encoder + UNTRAINED, row.task, row.metric), math.nan)
            rivals = [scores.get((name, row.task, row.metric), math.nan) for name in baselines]
            if twin >= row.chosen_score:
                note = TWIN_DOES_AS_WELL
            elif any(rival >= row.chosen_score for rival in rivals):
                note = "raw-signal baseline does as well"
        notes.append(note)
    return notes


def headline(verdicts: pd.DataFrame, weak: int) -> tuple[str, list[str]]:
    """One sentence for the whole study and a few more below it, from the verdicts of the studied encoders.

    `weak` is the number of "hidden" rows in which the untrained copy does as well, so that training has hidden nothing.
    """
    encoders = list(dict.fromkeys(verdicts["encoder"]))
    if not encoders:
        return "No encoder has a verdict: only controls were scored.", []
    hidden = verdicts[verdicts["verdict"] == "hidden"].fillna({"gap": 0.0})
    counts = hidden.groupby("encoder")["gap"].agg(["size", "max"]).sort_values(["size", "max"], ascending=False)
    ranked = [*counts.index, *(name for name in encoders if name not in counts.index)]
    if len(encoders) <= 3:
        first, *rest = [_about(name, verdicts[verdicts["encoder"] == name]) for name in ranked]
    else:
        tasks = count(verdicts["task"].nunique(), "task")
        rest = []
        if hidden.empty:
            first = f"None of {len(encoders)} encoders hides features on {tasks} beyond what chance allows."
        else:
            verb = "hides" if len(counts) == 1 else "hide"
            first = f"{len(counts)} of {len(encoders)} encoders {verb} useful features on at least one of {tasks}"
            owner = hidden.loc[hidden["gap"].idxmax(), "encoder"]
            first += f"; largest gap: {_largest(hidden)}, in {shorten(owner, 60)}."
    if weak:
        verb = "does" if weak == 1 else "do"
        rest.append(
            f"{weak} of {count(len(hidden), 'hidden verdict')} {verb} not count for much: "
            "there, an untrained copy reads out just as well."
        )
    return first, rest


def _about(name: str, rows: pd.DataFrame) -> str:
    name = shorten(name, 60)
    hidden = rows[rows["verdict"] == "hidden"].fillna({"gap": 0.0})
    if not hidden.empty:
        what = f"hides useful features on {len(hidden)} of {count(len(rows), 'task')}"
        return f"{name} {what}; largest gap: {_largest(hidden)}."
    exposed = int((rows["verdict"] == "exposed").sum())
    return (
        f"{name} shows no hidden features on {count(len(rows), 'task')} "
        f"({exposed} exposed, {len(rows) - exposed} undecided)."
    )


def _largest(hidden: pd.DataFrame) -> str:
    top = hidden.loc[hidden["gap"].idxmax()]
    where = f"{shorten(str(top['task']), 60)} at {shorten(str(top['chosen_layer']), 40)}"
    return f"{number(top['gap'])} {top['metric']} on {where}"


def spoken(task: str, metric: str, marks: Sequence[tuple[str, str, float, str, float]]) -> str:
    """What a panel shows, for those who cannot see it; marks: encoder, final layer and score, chosen and score."""
    said = [
        f"{encoder}: final layer {final} {number(score)}, chosen layer {chosen} {number(best)}"
        for encoder, final, score, chosen, best in marks[:6]
    ]
    more = f"; and {len(marks) - 6} more encoders" if len(marks) > 6 else ""
    return f"{metric} against depth on {task}. " + "; ".join(said) + more
