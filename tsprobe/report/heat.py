"""Heat maps of what is hidden, as plain plotly JSON: tasks x layers, score less that of the final layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tsprobe.report.figures import NEUTRAL, Plot, bare, safe
from tsprobe.report.text import number, shorten

if TYPE_CHECKING:
    import pandas as pd

HIDDEN, WORSE = "213,94,0", "86,120,150"  # what is hidden stands out, what is worse recedes


def heat_maps(study: Any) -> tuple[list[Plot], list[tuple[str, str]]]:
    """Tasks x layers for each studied encoder: score less that of the final layer; and the colours' ends by metric.

    Scores of unlike metrics share a map, so colour is scaled by metric: full colour is the largest lead of any layer
    over the final one (or a typical lag, or 0.05, whichever is more); the hover tells the difference itself.
    """
    import pandas as pd

    marks = {(v.encoder, v.task, v.metric): v for v in study.verdicts.itertuples()}
    rows = study.curves[~study.curves["encoder"].isin(list(study.controls))].reset_index(drop=True)
    finals = [getattr(marks.get(key), "final_layer", None) for key in _keys(rows)]
    at_final = rows[rows["layer"] == pd.Series(finals, index=rows.index, dtype=object)]
    reference = dict(zip(_keys(at_final), at_final["score"], strict=True))
    rows["lead"] = [score - reference.get(key, math.nan) for key, score in zip(_keys(rows), rows["score"], strict=True)]
    full = {}
    for metric, lead in rows.groupby("metric", sort=False)["lead"]:
        lead = lead.dropna()
        lag = float((-lead[lead < 0]).quantile(0.6)) if (lead < 0).any() else 0.0
        full[metric] = max(float(lead.max()) if len(lead) else 0.0, lag, 0.05)
    maps = [_heat(str(name), table, marks, full) for name, table in rows.groupby("encoder", sort=False)]
    return maps, [(str(metric), number(end)) for metric, end in full.items()]


def _keys(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(zip(rows["encoder"], rows["task"], rows["metric"], strict=True))


def _heat(encoder: str, rows: pd.DataFrame, marks: Mapping, full: Mapping[str, float]) -> Plot:
    layers = list(rows.sort_values("layer_index")["layer"].drop_duplicates())
    tasks = list(dict.fromkeys(zip(rows["family"], rows["task"], rows["metric"], strict=True)))
    families = list(dict.fromkeys(family for family, _, _ in tasks))
    tasks.sort(key=lambda task: families.index(task[0]))
    cells = {(r.task, r.metric, r.layer): r for r in rows.itertuples()}
    colour: list[list[float | None]] = []
    words: list[list[str]] = []
    missing: list[tuple[int, int]] = []
    for i, (_, task, metric) in enumerate(tasks):
        line = [cells.get((task, metric, layer)) for layer in layers]
        leads = [cell.lead if cell is not None else math.nan for cell in line]
        colour.append([None if math.isnan(x) else round(max(-1.0, min(1.0, x / full[metric])), 3) for x in leads])
        words.append([_cell_words(task, metric, layer, cell) for layer, cell in zip(layers, line, strict=True)])
        missing += [(j, i) for j, x in enumerate(leads) if math.isnan(x)]
    found = [marks.get((encoder, task, metric)) for _, task, metric in tasks]
    stars = [(layers.index(m.chosen_layer), i) for i, m in enumerate(found) if m and m.chosen_layer in layers]
    finals = sorted({layers.index(mark.final_layer) for mark in found if mark and mark.final_layer in layers})
    best = [f"{mark.task} at {mark.chosen_layer}" for mark in found if mark and mark.verdict == "hidden"]
    return {
        "encoder": encoder, "wide": len(layers) > 20, "final": [layers[j] for j in finals],
        "summary": f"{encoder}: score of {len(layers)} layers less that of the final one, on {len(tasks)} tasks. "
        + (f"Hidden on {'; '.join(best[:6])}" if best else "Nothing hidden"),
        "traces": [_cells(colour, words), _signs(missing, "x-thin", 5, NEUTRAL), _signs(stars, "star", 9, "#1b1e22")],
        "layout": _heat_axes(layers, [task for _, task, _ in tasks], finals),
    }  # fmt: skip


def _cell_words(task: str, metric: str, layer: str, cell: Any) -> str:
    head = f"<b>{safe(shorten(layer, 40))}</b><br>{safe(shorten(task, 48))}<br>"
    if cell is None or math.isnan(cell.score):
        return head + "no score"
    known = not math.isnan(cell.lead)
    lead = f"{number(cell.lead, signed=True)} to the final layer" if known else "final layer has no score"
    return f"{head}{safe(metric)} {number(cell.score)}<br>{lead}"


def _cells(colour: list[list[float | None]], words: list[list[str]]) -> Plot:
    # From clear to full, so that zero is the page's own colour in either theme and in print.
    scale = [[0, f"rgba({WORSE},0.95)"], [0.5, f"rgba({WORSE},0)"], [0.5, f"rgba({HIDDEN},0)"], [1, f"rgb({HIDDEN})"]]
    return {
        "type": "heatmap", "z": colour, "hovertext": words, "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverongaps": True, "colorscale": scale, "zmin": -1, "zmax": 1, "showscale": False, "xgap": 2, "ygap": 2,
    }  # fmt: skip


def _signs(places: list[tuple[int, int]], symbol: str, size: int, colour: str) -> Plot:
    line = {"width": 1, "color": "#ffffff" if symbol == "star" else colour}
    return {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in places], "y": [y for _, y in places],
        "hoverinfo": "skip", "marker": {"symbol": symbol, "size": size, "color": colour, "line": line},
    }  # fmt: skip


def _heat_axes(layers: list[str], tasks: list[str], finals: list[int]) -> Plot:
    columns, rows = len(layers), len(tasks)
    step = math.ceil(columns / 26)
    shown = sorted({*range(0, columns, step), *finals})
    labels = [f"<b>{safe(shorten(layers[j], 14))}</b>" if j in finals else safe(shorten(layers[j], 14)) for j in shown]
    names = [safe(shorten(task, 24)) for task in tasks]
    left = 14 + 6.1 * max((min(len(task), 24) for task in tasks), default=0)
    below = 14 + 6.8 * max((min(len(layer), 14) for layer in layers), default=0)
    box = {"type": "rect", "y0": -0.5, "y1": rows - 0.5, "fillcolor": "rgba(0,0,0,0)"}
    shapes = [{**box, "x0": j - 0.5, "x1": j + 0.5, "line": {"color": NEUTRAL, "width": 1.5}} for j in finals]
    plain = {"zeroline": False, "fixedrange": True, "showgrid": False, "showline": False, "ticks": ""}
    across = {"range": [-0.55, columns - 0.45], "tickvals": shown, "ticktext": labels, "tickangle": -90}
    down = {"range": [rows - 0.45, -0.55], "tickvals": list(range(rows)), "ticktext": names}
    return {
        "height": round(12 + below + 24 * rows), "margin": {"l": round(left), "r": 6, "t": 6, "b": round(below)},
        "showlegend": False, "hovermode": "closest", "shapes": shapes, **bare(),
        "xaxis": {**plain, **across}, "yaxis": {**plain, **down},
    }  # fmt: skip
