"""Layer curves, of scores and of diagnostics, as plain plotly JSON.

Everything is a dict of lists, so that a page of a thousand panels is a matter of seconds; `plot` wraps the same
traces in a plotly Figure for notebooks. Plotly reads tags and entities in every text that it draws: all names go
through `safe` first. Figures have no background of their own and no colour that only one theme can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.encoders.base import UNTRAINED
from tsprobe.report.text import MINUS, interval, number, shorten, spoken

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

# After Okabe and Ito (2008), with the light hues darkened until each has a contrast of 3 on white and on near-black.
PALETTE = ("#0072B2", "#C98200", "#009E73", "#C56F9F", "#8C6BB1", "#3C9AD0", "#D55E00")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
NEUTRAL = "#808890"
DOTS = ("dot", "dashdot", "longdashdot")
MANY = 3  # tasks of a metric, from which on their mean is drawn
AFTER_TRUNK = 0.09  # heads and projectors have no depth: they stand past 1, this far apart

Plot = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """How an encoder is drawn everywhere; an untrained copy shares group and colour with its trained twin."""

    group: int
    colour: str
    role: str  # "studied", "untrained", "baseline" or "chance"
    dash: str
    symbol: str


def safe(text: object) -> str:
    """Text that plotly draws letter by letter: no tags, no entities, no line breaks."""
    plain = " ".join(str(text).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def styles(encoders: list[str], controls: Mapping[str, str]) -> dict[str, Style]:
    """A style for each encoder, by order of appearance; after the last colour, the marker's shape changes."""
    groups: dict[str, int] = {}
    seen = {"studied": 0, "baseline": 0, "chance": 0}
    found: dict[str, Style] = {}
    for name in sorted(encoders, key=lambda n: controls.get(n) == "untrained"):  # a twin comes after its original
        role = controls.get(name, "studied")
        owner = name.removesuffix(UNTRAINED) if role == "untrained" else name
        if role == "untrained" and owner in found:
            twin = found[owner]
            found[name] = Style(twin.group, twin.colour, role, "dash", twin.symbol)
            continue
        kind = "studied" if role == "untrained" else role
        turn = seen[kind]
        seen[kind] += 1
        group = groups.setdefault(owner, len(groups))
        if kind == "studied":
            symbol = SYMBOLS[turn // len(PALETTE) % len(SYMBOLS)]
            dash = "dash" if role == "untrained" else "solid"
            found[name] = Style(group, PALETTE[turn % len(PALETTE)], role, dash, symbol)
        else:
            dash = "solid" if role == "chance" else DOTS[turn % len(DOTS)]
            found[name] = Style(group, NEUTRAL, role, dash, "circle")
    return found


def look_of(study: Any) -> dict[str, Style]:
    """The styles of a study's encoders. Where colours do not go round, those that hide most come first."""
    names = [*study.curves["encoder"], *study.verdicts["encoder"], *study.diagnostics.get("encoder", ())]
    encoders = list(dict.fromkeys(names))
    if sum(name not in study.controls for name in encoders) > len(PALETTE):
        hidden = study.verdicts[study.verdicts["verdict"] == "hidden"]
        count, largest = hidden.groupby("encoder")["gap"].count(), hidden.groupby("encoder")["gap"].max()
        encoders.sort(key=lambda name: (-count.get(name, 0), -largest.get(name, 0.0)))
    return styles(encoders, study.controls)


def y_range(scores: np.ndarray, bounds: np.ndarray, chance: float = math.nan) -> tuple[float, float]:
    """The part of the score axis worth showing, from scores `[N]` and interval ends `[2N]`.

    Scores far below the first quartile (by four interquartile ranges and half the median) are left out: one layer
    with an R2 of -50 must not flatten the rest. Chance is in it unless that would cost more than half of the height.
    """
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        return (0.0, 1.0)
    q25, middle, q75 = np.quantile(scores, [0.25, 0.5, 0.75])
    reach = max(4 * (q75 - q25), 0.5 * max(abs(middle), 0.2))
    low, high = scores[scores >= q25 - reach].min(), scores.max()
    room = 0.6 * max(high - low, 0.02)
    bounds = bounds[np.isfinite(bounds) & (bounds > low - room) & (bounds < high + room)]
    low, high = min([low, *bounds]), max([high, *bounds])
    if math.isfinite(chance) and low - 1.2 * (high - low) <= chance <= high:
        low = min(low, chance)
    margin = 0.07 * max(high - low, 0.02)
    beyond = margin if scores.min() < low else 0.0  # room for the marks of what lies below
    return (float(low - margin - beyond), float(high + margin))


def _means(curves: pd.DataFrame) -> list[pd.DataFrame]:
    """Curves of the mean over tasks, for each family and metric that has enough of them, as if the mean were a task.

    Only tasks count that all encoders have been scored on, so that all means are over the same.
    """
    made = []
    for _, rows in curves.groupby(["family", "metric"], sort=False):
        owners = rows.groupby("task", sort=False)["encoder"].nunique()
        tasks = owners.index[owners == rows["encoder"].nunique()]
        if len(tasks) < MANY:
            continue
        common = rows[rows["task"].isin(tasks)]
        first = {name: (name, "first") for name in ("objective", "family", "metric", "depth")}
        mean = common.groupby(["encoder", "layer", "layer_index"], sort=False).agg(
            **first, score=("score", "mean"), chance=("chance", "mean")
        )
        words = {"pooling": "each task's own", "probe": "each task's own"}
        made.append(mean.reset_index().assign(task=f"mean of {len(tasks)} tasks", low=np.nan, high=np.nan, **words))
    return made


def panels(study: Any, look: Mapping[str, Style] | None = None) -> list[Plot]:
    """One panel of layer curves for each task and metric, families together, means over their tasks first.

    Each has `task`, `metric`, `family`, `chance`, `clipped` (points below the axis), `summary` (in words), `traces`
    and `layout`. `meta` of a trace is the group of its encoder, None for chance.
    """
    import pandas as pd

    look = look or look_of(study)
    curves = pd.concat([*_means(study.curves), study.curves], ignore_index=True)
    curves = curves.assign(place=places(curves))
    marks = {(v.encoder, v.task, v.metric): v for v in study.verdicts.itertuples()}
    made = []
    for (family, task, metric), rows in curves.groupby(["family", "task", "metric"], sort=False):
        made.append(_panel(str(family), str(task), str(metric), rows, marks, look))
    families = list(dict.fromkeys(panel["family"] for panel in made))
    return sorted(made, key=lambda panel: families.index(panel["family"]))


def _panel(family: str, task: str, metric: str, rows: pd.DataFrame, marks: dict, look: Mapping[str, Style]) -> Plot:
    given = rows["chance"].dropna()
    roles = rows["encoder"].map(lambda name: look[name].role)
    by_chance = rows[roles == "chance"]
    chance = float(given.iloc[0]) if len(given) else float(by_chance["score"].mean())
    rows = rows.drop(index=by_chance.index)
    low, high = y_range(rows["score"].to_numpy(float), rows[["low", "high"]].to_numpy(float).ravel(), chance)
    layered = rows[roles[rows.index] != "baseline"]
    right = float(np.nanmax([1.0, *layered["place"]])) + 0.04
    traces = []
    if math.isfinite(chance):
        traces.append(_level(chance, right, f"chance {number(chance)}", "solid", None, 1))
    said, clipped = [], 0
    groups = sorted(rows.groupby("encoder", sort=False), key=lambda group: look[group[0]].role == "studied")
    for encoder, layers in groups:  # studied encoders last, so that they lie on top
        style, mark = look[encoder], marks.get((encoder, task, metric))
        if style.role == "baseline":
            best = layers.iloc[0]
            words = f"{safe(shorten(encoder, 36))} {number(best['score'])}<br>{_between(best)}"
            traces.append(_level(best["score"], right, words, style.dash, style.group, 1.6))
            continue
        layers = layers.sort_values("layer_index")
        clipped += int((layers["score"] < low).sum())
        traces += _curve(encoder, layers, style, mark, (low, high))
        if mark is not None and style.role == "studied":
            said.append((encoder, mark.final_layer, mark.final_score, mark.chosen_layer, mark.chosen_score))
    return {
        "family": family, "task": task, "metric": metric, "clipped": clipped, "traces": traces,
        "chance": f"{chance:.3g}".replace("-", MINUS) if math.isfinite(chance) else "",
        "chance_shown": not chance < low, "summary": spoken(task, metric, said), "layout": axes((low, high), right),
    }  # fmt: skip


def places(layers: pd.DataFrame) -> np.ndarray:
    """Where each row stands on the axis `[N]`: its depth, or past 1 in the order of the layers where it has none."""
    past = layers["depth"].isna()
    steps = layers[past].groupby("encoder")["layer_index"].rank(method="dense")
    return layers["depth"].fillna(1 + AFTER_TRUNK * steps).to_numpy(float).round(4)


def _between(row: Any) -> str:
    return f"interval {interval(row['low'], row['high'])}" if interval(row["low"], row["high"]) else "no interval"


def _level(y: float, right: float, words: str, dash: str, group: int | None, width: float) -> Plot:
    xs = np.linspace(-0.04, right, 23).round(3).tolist()  # points all along, for a hover needs a point to catch
    return {
        "type": "scatter", "mode": "lines", "x": xs, "y": [json_value(y)] * len(xs), "meta": group, "text": words,
        "hovertemplate": "%{text}<extra></extra>", "line": {"color": NEUTRAL, "dash": dash, "width": width},
        "showlegend": False,
    }  # fmt: skip


def json_value(y: float) -> float | None:
    return float(f"{y:.6g}") if math.isfinite(y) else None


def _curve(encoder: str, layers: pd.DataFrame, style: Style, mark: Any, ends: tuple[float, float]) -> list[Plot]:
    """The traces of one encoder in one panel: interval band, curve, and rings and stars for final and chosen."""
    xs = layers["place"].tolist()
    if len(xs) == 1:  # side by side, or one would hide the next
        xs = [xs[0] + 0.04 * style.group]
    floor = ends[0] + 0.015 * (ends[1] - ends[0])
    scores = layers["score"].to_numpy(float)
    ys = [json_value(max(score, floor)) if math.isfinite(score) else None for score in scores]
    studied = style.role == "studied"
    final = mark.final_layer if mark is not None and studied else None
    chosen = mark.chosen_layer if mark is not None and studied else None
    words, symbols = [], []
    for row in layers.to_dict("records"):
        name = safe(shorten(str(row["layer"]), 30))
        roles = [word for word, layer in (("final", final), ("chosen", chosen)) if row["layer"] == layer]
        below = ", below the axis" if row["score"] < ends[0] else ""
        readout = safe(shorten(f"{row['pooling']} pooling, {row['probe']}", 40))
        head = f"<b>{safe(shorten(encoder, 36))}</b><br>{name}{' (' + ', '.join(roles) + ')' if roles else ''}"
        words.append(f"{head}<br>{number(row['score'])}{below}, {_between(row)}<br>{readout}")
        symbols.append("triangle-down" if below else style.symbol)
    sizes = [9 if symbol == "triangle-down" else 5 for symbol in symbols]
    line = {"color": style.colour, "dash": style.dash, "width": 2 if studied else 1.4}
    base = {"type": "scatter", "meta": style.group, "showlegend": False}
    curve = {
        **base, "mode": "lines+markers" if studied or len(xs) == 1 else "lines", "x": xs, "y": ys,
        "text": words, "line": line, "name": safe(encoder), "hovertemplate": "%{text}<extra></extra>",
        "opacity": 1 if studied else 0.85,
        "marker": {"size": sizes, "symbol": symbols, "color": style.colour},
    }  # fmt: skip
    traces = [curve]
    if len(xs) > 1 and studied:  # bands of untrained copies would only cover the curves; their hover tells
        traces.insert(0, {**base, **_band(xs, layers), "fillcolor": _faint(style.colour, 0.16)})
    elif len(xs) == 1 and studied and not math.isnan(layers["low"].iloc[0]):
        up, down = layers["high"].iloc[0] - scores[0], scores[0] - layers["low"].iloc[0]
        curve["error_y"] = {"type": "data", "array": [json_value(up)], "arrayminus": [json_value(down)], "width": 4}
    names = list(layers["layer"])
    for layer, symbol, size in ((final, "circle-open", 12), (chosen, "star", 13)):
        if layer in names:
            at = names.index(layer)
            edge = {"width": 1, "color": "#ffffff"} if symbol == "star" else {"width": 2}
            marker = {"symbol": symbol, "size": size, "color": style.colour, "line": edge}
            point = {"mode": "markers", "x": [xs[at]], "y": [ys[at]], "hoverinfo": "skip", "marker": marker}
            traces.append({**base, **point})
    return traces


def _band(xs: list[float], layers: pd.DataFrame) -> Plot:
    """Closed outlines around each run of layers that have an interval."""
    out_x: list[float | None] = []
    out_y: list[float | None] = []
    for run in _runs(np.isfinite(layers[["low", "high"]].to_numpy(float)).all(axis=1)):
        there, low, high = xs[run], layers["low"].to_numpy(float)[run], layers["high"].to_numpy(float)[run]
        out_x += [*([None] if out_x else []), *there, *there[::-1]]
        out_y += [*([None] if out_y else []), *map(json_value, low), *map(json_value, high[::-1])]
    return {"mode": "lines", "x": out_x, "y": out_y, "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}


def _runs(present: np.ndarray) -> Iterator[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(int), [0]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield slice(int(start), int(stop))


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def axes(ends: tuple[float, float], right: float) -> Plot:
    ticks, words = [0, 0.5, 1], ["input", "middle", "end"]
    upright = {"type": "line", "x0": 1 + AFTER_TRUNK / 2, "x1": 1 + AFTER_TRUNK / 2, "y0": 0, "y1": 1, "yref": "paper"}
    border = [{**upright, "line": {"color": NEUTRAL, "width": 1, "dash": "1px,3px"}}] if right > 1.05 else []
    plain = {"zeroline": False, "fixedrange": True, "gridcolor": "rgba(128,136,144,0.22)", "showline": False}
    return {
        "height": 230, "margin": {"l": 44, "r": 8, "t": 6, "b": 26}, "showlegend": False, "hovermode": "closest",
        "xaxis": {**plain, "range": [-0.04, right], "tickvals": ticks, "ticktext": words, "showgrid": False,
                  "tickangle": 0},
        "yaxis": {**plain, "range": list(ends), "nticks": 6}, "shapes": border, **bare(),
    }  # fmt: skip


def bare() -> Plot:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False,
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 11, "color": NEUTRAL},
        "hoverlabel": {"bgcolor": "#22262b", "bordercolor": "#22262b", "font": {"color": "#ffffff", "size": 12},
                       "align": "left"},
    }  # fmt: skip


def plot(study: Any) -> Figure:
    """The layer curves of a study as one plotly Figure, three panels a row, for notebooks."""
    from plotly.subplots import make_subplots

    drawn = panels(study)
    columns = max(1, min(3, len(drawn)))
    rows = max(1, math.ceil(len(drawn) / columns))
    titles = [f"{safe(shorten(p['task'], 40))} ({safe(p['metric'])})" for p in drawn]
    # plotly wants the gap between rows below 1 / (rows - 1)
    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=min(0.12, 0.4 / rows))
    named: set[str] = set()
    for i, panel in enumerate(drawn):
        where = {"row": i // columns + 1, "col": i % columns + 1}
        for trace in panel["traces"]:
            name = trace.get("name")
            entry = {"showlegend": bool(name) and name not in named, "legendgroup": str(trace["meta"])}
            named.update([name] if name else [])
            figure.add_trace({**trace, **entry}, **where)
        figure.update_xaxes(panel["layout"]["xaxis"], **where)
        figure.update_yaxes(panel["layout"]["yaxis"], **where)
    figure.update_layout({**bare(), "height": 110 + 240 * rows, "hovermode": "closest"})
    return figure
