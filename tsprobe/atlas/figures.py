"""The pictures of the atlas: curves over depth, the league of diagnostics, and what alignments cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.atlas import costs
from tsprobe.atlas.pickers import LAST, MIDDLE
from tsprobe.atlas.svg import Drawing, scaled
from tsprobe.report.figures import NEUTRAL, PALETTE
from tsprobe.report.text import number
from tsprobe.report.tradeoff import DOWN, UP

if TYPE_CHECKING:
    import pandas as pd

_PANEL, _GAP, _TOP, _LEFT = (190, 130), 26, 40, 40
_LEAST = 0.05  # of a change that is worth full colour
COLOURS = {"diagnostic": PALETTE[0], "labels": PALETTE[2], "reference": NEUTRAL}


def curves_figure(curves: pd.DataFrame, modality: str) -> str:
    """A panel for each family, a curve for each objective: 0 is its worst layer, 1 its best, by test scores."""
    own = curves[curves["modality"] == modality]
    families, objectives = (list(dict.fromkeys(own[name])) for name in ("family", "objective"))
    (w, h), rows = _PANEL, math.ceil(len(objectives) / 4)
    d = Drawing(
        _LEFT + len(families) * (w + _GAP), _TOP + h + 44 + 16 * rows,
        f"Test score against depth, {modality}: each encoder and task brought to 0 to 1, mean by objective and family",
    )  # fmt: skip
    for i, family in enumerate(families):
        x0 = _LEFT + i * (w + _GAP)
        d.text(x0, _TOP - 12, family, bold=True)
        for value in (0.0, 0.5, 1.0):
            y = _TOP + h * (1 - value)
            d.line((x0, y), (x0 + w, y), NEUTRAL, 0.4)
            if i == 0:
                d.text(x0 - 6, y + 4, f"{value:g}", anchor="end", size=10)
        for value, name in ((0.0, "input"), (1.0, "end")):
            d.text(x0 + w * value, _TOP + h + 14, name, anchor="start" if value == 0 else "end", size=10)
        for objective, some in own[own["family"] == family].groupby("objective", sort=False):
            colour = PALETTE[objectives.index(objective) % len(PALETTE)]
            xs = scaled(some["place"].tolist(), 0, 1, x0, x0 + w)
            ys = scaled(some["relative"].tolist(), 0, 1, _TOP + h, _TOP)
            d.path(zip(xs, ys, strict=True), colour)
            top = int(np.argmax(some["relative"]))
            d.dot(xs[top], ys[top], colour, 3.5)
    for i, objective in enumerate(objectives):
        x, y = _LEFT + 150 * (i % 4), _TOP + h + 36 + 16 * (i // 4)
        d.line((x, y - 4), (x + 18, y - 4), PALETTE[i % len(PALETTE)], 2.5)
        d.text(x + 24, y, objective)
    return d.write()


def league_figure(table: pd.DataFrame, modality: str) -> str:
    """A line for each way to pick a layer: its mean regret and interval, beside those of the last and middle layer."""
    own = table[(table["modality"] == modality) & (table["kind"] != "ends")].dropna(subset="regret")
    left, width, step = 190, 420, 17
    d = Drawing(left + width + 70, _TOP + step * len(own) + 30, f"Regret of each way to pick a layer, {modality}")
    high = max([0.01, *own["regret_high"].dropna(), *own["regret"]])
    low = min([0.0, *own["regret_low"].dropna()])
    bottom = _TOP + step * len(own)
    for value in np.linspace(0, high, 5):
        x = scaled([value], low, high, left, left + width)[0]
        d.line((x, _TOP - 6), (x, bottom), NEUTRAL, 0.3)
        d.text(x, bottom + 14, f"{value:.3f}", anchor="middle", size=10)
    d.text(left, 11, "regret: share of the readable score that is lost by the pick", size=10)
    for name, dash, above in ((LAST, "5 3", 9), (MIDDLE, "2 3", 19)):
        for value in own.loc[own["picker"] == name, "regret"]:
            x = scaled([value], low, high, left, left + width)[0]
            d.path([(x, _TOP - 6), (x, bottom)], PALETTE[6], 1.2, dash)
            d.text(x, _TOP - above, name, anchor="middle", size=9, colour=PALETTE[6])
    for i, row in enumerate(own.to_dict("records")):
        y, colour = _TOP + step * i + 9, COLOURS.get(row["kind"], NEUTRAL)
        d.text(left - 8, y + 4, row["picker"], anchor="end", bold=row["verdict"] == "better than last and middle")
        if not math.isnan(row["regret_low"]):
            a, b = scaled([row["regret_low"], row["regret_high"]], low, high, left, left + width)
            d.line((a, y), (b, y), colour, 1.8)
        d.dot(scaled([row["regret"]], low, high, left, left + width)[0], y, colour, 3.5)
    return d.write()


def tradeoff_figure(table: pd.DataFrame) -> str:
    """Recipes and controls x families: the change of the output. A ring of dots marks the families to be lifted."""
    labels, families, values, marks = costs.matrix(table)
    left, wide, high = 220, 110, 24
    d = Drawing(
        left + wide * len(families) + 10, _TOP + high * len(labels) + 10, "Change of the output by recipe and family"
    )
    for j, family in enumerate(families):
        d.text(left + wide * (j + 0.5), _TOP - 10, family, anchor="middle", bold=True)
    for i, label in enumerate(labels):
        y = _TOP + high * i
        d.text(left - 8, y + 16, label, anchor="end")
        for j in range(len(families)):
            value, x = values[i, j], left + wide * j
            if math.isnan(value):
                continue
            full = max(_LEAST, float(np.nanmax(np.abs(values[:, j]))))
            d.box(x + 1, y + 1, wide - 2, high - 2, f"rgb({UP if value >= 0 else DOWN})", 0.35 * abs(value) / full)
            mark = " ◎" if marks[i][j] else ""
            d.text(x + wide / 2, y + 16, f"{number(value, signed=True)}{mark}", anchor="middle", bold=bool(mark))
    return d.write()
