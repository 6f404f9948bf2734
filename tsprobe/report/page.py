"""A study as one HTML page that opens without a network: what is said and shown, in which order.

The page's form lies in `template.html.j2`; figures and wording in their own files. Names come from users: the
template escapes all of them, figures go through `figures.safe`, and data for the script is JSON without a `<`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.files import replace_file
from tsprobe.report import text
from tsprobe.report.diagnostics import diagnostic_panels, likeness_maps
from tsprobe.report.families import peaks
from tsprobe.report.figures import Plot, Style, look_of, panels
from tsprobe.report.heat import heat_maps
from tsprobe.report.templates import environment

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("hidden", "undecided", "exposed")  # the order of the table
AT_ONCE = {"curves": 12, "heat": 6, "rows": 40, "encoders": 8}  # what is shown before one asks for more
WHISKER = 132  # width of the small gap drawings, in px


def render(study: Any) -> str:
    """The report as one HTML page, plotly.js inlined, that asks nothing of a network.

    `study` has `name`, `spec`, `provenance`, `scores`, `curves`, `verdicts`, `diagnostics` and `controls`, and may
    have `cka`; any of the tables may be empty.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    context = _context(study)
    context["data"] = jinja2.utils.markupsafe.Markup(_script_json(context.pop("data")))
    page = environment().get_template("template.html.j2")
    return page.render(plotlyjs=jinja2.utils.markupsafe.Markup(get_plotlyjs()), **context)


def write_report(study: Any, path: str | PathLike[str]) -> Path:
    """Render `study` to `path`, whole or not at all.

    Raises StorageError where the disk refuses.
    """
    target = Path(path)
    page = render(study).encode("utf-8", errors="replace")
    replace_file(target, lambda handle: handle.write(page))
    return target


def _script_json(data: Any) -> str:
    """JSON that is safe inside a script element and that every parser takes (no NaN)."""
    plain = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _context(study: Any) -> dict[str, Any]:
    import yaml

    controls = dict(study.controls)
    verdicts = study.verdicts.reset_index(drop=True)
    look = look_of(study)
    notes = text.caveats(verdicts, controls)
    studied = verdicts[~verdicts["encoder"].isin(list(controls))]
    title, more = text.headline(studied, notes.count(text.TWIN_DOES_AS_WELL))
    curves = panels(study, look)
    maps, scale = heat_maps(study)
    maps.sort(key=lambda drawn: list(look).index(drawn["encoder"]))
    diagnostics, likeness = diagnostic_panels(study, look), likeness_maps(study, look)
    families = peaks(study.curves, look)
    drawings = {"c": curves, "h": maps, "d": diagnostics, "f": families, "k": likeness}
    legend = _legend(look)
    table = _table(verdicts, notes, controls)
    return {
        "name": study.name,
        "title": title,
        "more": more,
        "size": _size(study.scores, controls),
        "glance": _split(_glance(studied, look), AT_ONCE["encoders"]),
        "level": _level({**study.spec, **study.provenance}),
        "margin": study.spec.get("margin"),
        "legend": legend,
        "curves": _split(_curves(curves, study.scores), AT_ONCE["curves"]),
        "families": _numbered(families, "f"),
        "heat": _split(_numbered(maps, "h"), AT_ONCE["heat"]),
        "scale": scale,
        "heads": any(plot["layout"]["shapes"] for plot in curves),
        "tables": _split(table, AT_ONCE["rows"]),
        "diagnostics": _grouped(_numbered(diagnostics, "d")),
        "likeness": _numbered(likeness, "k"),
        "spec": yaml.safe_dump(text.simple(study.spec), sort_keys=False, allow_unicode=True, width=100),
        "facts": text.facts(study.provenance),
        "data": {
            "on": [entry["group"] for entry in legend if entry["on"]],
            "plots": {
                f"{kind}{i}": {"traces": plot["traces"], "layout": plot["layout"]}
                for kind, plots in drawings.items()
                for i, plot in enumerate(plots)
            },
        },
    }


def _split(items: list, first: int) -> tuple[list, list]:
    return items[:first], items[first:]


def _numbered(plots: Sequence[Plot], kind: str) -> list[Plot]:
    return [
        {**{k: v for k, v in plot.items() if k != "traces"}, "id": f"{kind}{i}", "height": plot["layout"]["height"]}
        for i, plot in enumerate(plots)
    ]


def _grouped(plots: Sequence[Plot]) -> list[tuple[str, list[Plot]]]:
    """Plots that stand together under the same `group`, in their order."""
    groups: dict[str, list[Plot]] = {}
    for plot in plots:
        groups.setdefault(plot["group"], []).append(plot)
    return list(groups.items())


def _size(scores: pd.DataFrame, controls: Mapping[str, str]) -> str:
    """How much was measured, in words."""
    names = set(scores["encoder"])
    parts = [
        text.count(len(names - controls.keys()), "encoder"),
        text.count(len(names & controls.keys()), "control"),
        text.count(scores["task"].nunique(), "task"),
        text.count(scores["seed"].nunique(), "seed"),
        text.count(len(scores), "score"),
    ]
    return ", ".join(parts)


def _level(settings: Mapping[str, Any]) -> tuple[str, str]:
    """The interval's coverage and the test's level, in words; `level` may be given as either (0.95 or 0.05)."""
    level = settings.get("level")
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        return "", ""
    alpha = min(level, 1 - level)
    return f"{100 * (1 - alpha):.3g}%", f"{alpha:.3g}"


def _glance(studied: pd.DataFrame, look: Mapping[str, Style]) -> list[dict[str, Any]]:
    """One line for each studied encoder: its verdicts counted, and where its largest hidden gap is."""
    out = []
    for name, rows in studied.groupby("encoder", sort=False):
        counts = {verdict: int((rows["verdict"] == verdict).sum()) for verdict in VERDICTS}
        hidden = rows[rows["verdict"] == "hidden"].sort_values("gap", ascending=False)
        line = {"encoder": name, "objective": rows["objective"].iloc[0], "style": look[name], "counts": counts}
        out.append({**line, "top": hidden.iloc[0].to_dict() if len(hidden) else None})
    return sorted(out, key=lambda line: (-line["counts"]["hidden"], line["counts"]["exposed"]))


def _legend(look: Mapping[str, Style]) -> list[dict[str, Any]]:
    """An entry for each group of curves, baselines last; where there are many, only the first are on."""
    owners: dict[int, dict[str, Any]] = {}
    for name, style in look.items():
        if style.role != "chance":
            owners.setdefault(style.group, {"group": style.group, "name": name, "style": style})
    entries = sorted(owners.values(), key=lambda e: e["style"].role == "baseline")
    curves = sum(e["style"].role != "baseline" for e in entries)
    shown = curves if curves <= AT_ONCE["encoders"] else AT_ONCE["encoders"] - 3
    return [{**e, "on": e["style"].role == "baseline" or i < shown} for i, e in enumerate(entries)]


def _curves(curves: Sequence[Plot], scores: pd.DataFrame) -> list[Plot]:
    tested = scores.groupby("task")["n_test"].max().to_dict()
    numbered = _numbered(curves, "c")
    for panel in numbered:
        samples = tested.get(panel["task"], math.nan)
        panel["samples"] = "" if math.isnan(samples) else f"n = {int(samples):,}"
    return numbered


def _table(verdicts: pd.DataFrame, notes: Sequence[str], controls: Mapping[str, str]) -> list[dict[str, Any]]:
    """The verdicts as rows with a drawing of the gap; studied encoders first, hidden before undecided, large first."""
    spans = {metric: _span(rows) for metric, rows in verdicts.groupby("metric")}
    rows = []
    for row, note in zip(verdicts.to_dict("records"), notes, strict=True):
        role = controls.get(row["encoder"], "")
        drawn = _whisker(row["gap"], row["gap_low"], row["gap_high"], spans[row["metric"]])
        rows.append({**row, "note": note, "role": role, "between": _ends(row), "whisker": drawn})

    def order(row: Mapping[str, Any]) -> tuple[bool, int, float]:
        place = VERDICTS.index(row["verdict"]) if row["verdict"] in VERDICTS else len(VERDICTS)
        return bool(row["role"]), place, math.inf if math.isnan(row["gap"]) else -row["gap"]

    return sorted(rows, key=order)


def _ends(row: Mapping[str, Any]) -> str:
    return text.interval(row["gap_low"], row["gap_high"])


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    """The common scale of a metric's gaps, zero always on it; one wild interval does not set it."""
    ends = rows[["gap", "gap_low", "gap_high"]].to_numpy(float).ravel()
    ends = ends[np.isfinite(ends)]
    if not ends.size:
        return -1.0, 1.0
    reach = max(float(np.quantile(np.abs(ends), 0.95)) * 1.3, 1e-9)
    low, high = max(float(ends.min()), -reach, -1e300), min(float(ends.max()), reach)
    margin = 0.06 * reach
    return min(low, 0.0) - margin, max(high, 0.0) + margin


def _whisker(gap: float, low: float, high: float, span: tuple[float, float]) -> dict[str, float] | None:
    if math.isnan(gap):
        return None

    def place(value: float) -> float:
        inside = min(max((value - span[0]) / (span[1] - span[0]), 0.0), 1.0)
        return round(2 + inside * (WHISKER - 4), 1)

    ends = (gap, gap) if math.isnan(low) or math.isnan(high) else (low, high)
    return {"zero": place(0.0), "gap": place(gap), "low": place(ends[0]), "high": place(ends[1])}
