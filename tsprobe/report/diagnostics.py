"""Label-free measures as small multiples that share the layer axis, and the likeness of layers, as plotly JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.diagnostics import CATALOGUE, KINDS
from tsprobe.report.figures import NEUTRAL, Plot, Style, axes, bare, json_value, places, safe, y_range
from tsprobe.report.text import interval, number, shorten

if TYPE_CHECKING:
    import pandas as pd

ALIKE = "0,114,178"
HEIGHT = 138
OTHERS = "other"


def diagnostic_panels(study: Any, look: Mapping[str, Style]) -> list[Plot]:
    """One panel for each diagnostic: its mean over tasks and poolings against depth, a curve for each encoder.

    They stand in the order of the catalogue; `group` is what is measured, in words, `what` and `unit` the catalogue's.
    All share one range of layers. A diagnostic without any value has none.
    """
    table = study.diagnostics
    if not len(table):
        return []
    by = ["diagnostic", "encoder", "layer_index", "layer"]
    means = table.groupby(by, sort=False).agg(
        depth=("depth", "first"), value=("value", "mean"), low=("value", "min"), high=("value", "max")
    )
    means = means.reset_index().dropna(subset="value")
    known = [name for name in CATALOGUE if name in set(means["diagnostic"])]
    names = [*known, *(name for name in means["diagnostic"].unique() if name not in CATALOGUE)]
    layers = means.drop_duplicates(by[1:])  # a head's place counts those before it, which some measures lack
    at = dict(zip(zip(layers["encoder"], layers["layer"], strict=True), places(layers), strict=True))
    right = max([1.0, *at.values()]) + 0.04
    return [_panel(str(name), means[means["diagnostic"] == name], look, at, right) for name in names]


def _panel(
    name: str, means: pd.DataFrame, look: Mapping[str, Style], at: Mapping[tuple[str, str], float], right: float
) -> Plot:
    low, high = y_range(means["value"].to_numpy(float), np.array([]))
    entry = CATALOGUE.get(name)
    traces = []
    groups = sorted(means.groupby("encoder", sort=False), key=lambda g: g[0] in look and look[g[0]].role == "studied")
    for encoder, rows in groups:  # studied encoders last, so that they lie on top
        rows = rows.sort_values("layer_index")
        traces.append(_curve(str(encoder), rows, look, [at[encoder, layer] for layer in rows["layer"]], low))
    layout = axes((low, high), right)
    layout |= {"height": HEIGHT, "margin": {"l": 40, "r": 6, "t": 4, "b": 20}}
    layout["xaxis"] |= {"tickvals": [0, 1], "ticktext": ["input", "end"]}
    layout["yaxis"] |= {"nticks": 4}
    return {
        "diagnostic": name, "group": KINDS[entry.kind] if entry else OTHERS,
        "what": entry.what if entry else "", "unit": entry.unit if entry else "",
        "summary": f"{name} by depth for {means['encoder'].nunique()} encoders, mean over tasks and poolings",
        "traces": traces, "layout": layout,
    }  # fmt: skip


def _curve(encoder: str, layers: pd.DataFrame, look: Mapping[str, Style], xs: list[float], low: float) -> Plot:
    style = look.get(encoder) or Style(-1, NEUTRAL, "studied", "solid", "circle")
    studied = style.role == "studied"
    words = [
        f"<b>{safe(shorten(encoder, 36))}</b><br>{safe(shorten(str(row['layer']), 30))}<br>{number(row['value'])}"
        f"{', below the axis' if row['value'] < low else ''} (tasks: {interval(row['low'], row['high'])})"
        for row in layers.to_dict("records")
    ]
    return {
        "type": "scatter", "mode": "lines+markers", "x": xs, "y": [json_value(max(v, low)) for v in layers["value"]],
        "meta": style.group, "text": words, "hovertemplate": "%{text}<extra></extra>", "showlegend": False,
        "line": {"color": style.colour, "dash": style.dash, "width": 1.8 if studied else 1.2},
        "marker": {"size": 3.5 if studied else 2, "color": style.colour, "symbol": style.symbol},
        "opacity": 1 if studied else 0.8,
    }  # fmt: skip


def likeness_maps(study: Any, look: Mapping[str, Style]) -> list[Plot]:
    """Linear CKA between all pairs of an encoder's layers, the mean over tasks and poolings; a map for each encoder."""
    table = getattr(study, "cka", None)
    if table is None or not len(table):
        return []
    encoders = sorted(table["encoder"].unique(), key=lambda name: list(look).index(name) if name in look else len(look))
    return [_map(encoder, table[table["encoder"] == encoder]) for encoder in encoders]


def _map(encoder: str, rows: pd.DataFrame) -> Plot:
    layers = list(rows["layer"].drop_duplicates())
    means = rows.groupby(["layer", "other_layer"])["cka"].mean().to_dict()
    values = [[means.get((a, b), math.nan) for b in layers] for a in layers]
    names = [safe(shorten(layer, 14)) for layer in layers]
    words = [
        [
            f"{safe(shorten(a, 30))}<br>{safe(shorten(b, 30))}<br>CKA {number(v)}"
            for b, v in zip(layers, row, strict=True)
        ]
        for a, row in zip(layers, values, strict=True)
    ]
    step = math.ceil(len(layers) / 26)
    shown = list(range(0, len(layers), step))
    left = 14 + 6.1 * max(min(len(layer), 14) for layer in layers)
    axis = {"zeroline": False, "fixedrange": True, "showgrid": False, "showline": False, "ticks": "",
            "tickvals": shown, "ticktext": [names[i] for i in shown]}  # fmt: skip
    cells = {
        "type": "heatmap", "z": [[json_value(v) for v in row] for row in values], "hovertext": words,
        "hovertemplate": "%{hovertext}<extra></extra>", "zmin": 0, "zmax": 1, "showscale": False, "xgap": 1, "ygap": 1,
        "colorscale": [[0, f"rgba({ALIKE},0)"], [1, f"rgb({ALIKE})"]],
    }  # fmt: skip
    layout = {
        "height": round(300 + left), "margin": {"l": round(left), "r": 6, "t": 6, "b": round(left)},
        "showlegend": False, "hovermode": "closest", **bare(),
        "xaxis": {**axis, "tickangle": -90, "range": [-0.5, len(layers) - 0.5]},
        "yaxis": {**axis, "range": [len(layers) - 0.5, -0.5]},
    }  # fmt: skip
    return {
        "encoder": encoder, "traces": [cells], "layout": layout,
        "summary": f"{encoder}: linear CKA between all pairs of {len(layers)} layers",
    }  # fmt: skip
