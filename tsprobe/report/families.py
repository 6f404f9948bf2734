"""Where in an encoder each family of tasks peaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tsprobe.report.figures import PALETTE, Plot, Style, axes, places, safe, shorten

if TYPE_CHECKING:
    import pandas as pd


def peaks(curves: pd.DataFrame, look: Mapping[str, Style]) -> list[Plot]:
    """A panel for each studied encoder: a curve for each family, from its worst layer (0) to its best (1).

    Scores of a task are brought to that range over the layers of the trunk before they are averaged, since families
    have metrics of their own. None where there is one family only.
    """
    families = list(dict.fromkeys(curves["family"]))
    if len(families) < 2:
        return []
    colours = {family: PALETTE[i % len(PALETTE)] for i, family in enumerate(families)}
    made = []
    for encoder, rows in curves[curves["encoder"].map(lambda n: look[n].role) == "studied"].groupby(
        "encoder", sort=False
    ):
        trunk = rows[rows["depth"].notna()]
        if trunk["layer"].nunique() < 2:
            continue
        scores = trunk.groupby("task")["score"]
        spread = scores.transform("max") - scores.transform("min")
        trunk = trunk.assign(place=places(trunk), relative=(trunk["score"] - scores.transform("min")) / spread)
        trunk = trunk[spread > 0]
        by = trunk.groupby(["family", "layer_index", "layer", "place"], sort=False)["relative"]
        shape = by.agg(["mean", "count"]).reset_index().sort_values("layer_index")
        traces = [
            trace
            for i, family in enumerate(families)
            for trace in _curve(family, shape[shape["family"] == family], colours[family], "bottom" if i % 2 else "top")
        ]
        best = ", ".join(
            f"{family} at {layers.loc[layers['mean'].idxmax(), 'layer']}"
            for family, layers in shape.groupby("family", sort=False)
        )
        made.append(
            {"encoder": str(encoder), "summary": f"Families peak: {best}", "best": best, "traces": traces,
             "layout": axes((-0.04, 1.16), 1.04)}
        )  # fmt: skip
    return made


def _curve(family: str, layers: pd.DataFrame, colour: str, edge: str) -> list[Plot]:
    """The curve of a family, and its name above or below (`edge`) the peak: peaks often lie side by side."""
    if not len(layers):
        return []
    top = layers.loc[layers["mean"].idxmax()]
    words = [
        f"<b>{safe(family)}</b><br>{safe(shorten(str(row.layer), 30))}<br>{row.mean_:.2f} between its worst and best "
        f"layer, over {row.count_} tasks"
        for row in layers.rename(columns={"mean": "mean_", "count": "count_"}).itertuples()
    ]
    base: dict[str, Any] = {"type": "scatter", "meta": None, "showlegend": False}
    curve = {
        **base, "mode": "lines+markers", "x": layers["place"].tolist(), "y": layers["mean"].round(4).tolist(),
        "text": words, "hovertemplate": "%{text}<extra></extra>", "name": safe(family),
        "line": {"color": colour, "width": 2}, "marker": {"size": 5, "color": colour},
    }  # fmt: skip
    side = "right" if top["place"] < 0.25 else "left" if top["place"] > 0.75 else "center"
    label = {
        **base, "mode": "markers+text", "x": [top["place"]], "y": [round(float(top["mean"]), 4)],
        "text": [safe(family)], "textposition": f"{edge} {side}", "textfont": {"color": colour, "size": 11},
        "hoverinfo": "skip", "marker": {"size": 10, "color": colour, "symbol": "star"},
    }  # fmt: skip
    return [curve, label]
