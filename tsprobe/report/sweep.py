"""A sweep as one HTML page that opens without a network: what was chosen, how it was found, every trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.files import replace_file
from tsprobe.report import text
from tsprobe.report.page import _script_json
from tsprobe.report.templates import environment

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1000  # of the best trials that the page lists; trials.csv has all


def write_sweep_report(
    path: Path,
    spec: dict[str, Any],
    trials: pd.DataFrame,
    best: dict[str, Any],
    provenance: dict[str, Any],
    drawings: list[dict[str, Any]],
) -> Path:
    """Render what `trials.csv`, `best.json` and `provenance.json` hold, with plotly figures.

    Each of the `drawings` has `title`, `words`, and a figure's `data` and `layout`, in which names are safe. Raises
    `StorageError` where the disk refuses.
    """
    import jinja2
    import yaml
    from plotly.offline import get_plotlyjs

    markup = jinja2.utils.markupsafe.Markup
    plots = [{"data": drawing["data"], "layout": drawing["layout"]} for drawing in drawings]
    page = environment().get_template("sweep.html.j2").render(
        name=spec["name"], best=best, states=provenance["states"], **_chosen(spec, best),
        seconds=provenance["seconds"], provenance=provenance, drawings=drawings, columns=list(trials.columns),
        rows=_rows(trials), left_out=max(0, len(trials) - ROWS), compared=best.get("compared"),
        grid_setting=_words(best["compared"]["setting"]) if best.get("compared") else "",
        spec=yaml.safe_dump(text.simple(spec), sort_keys=False, allow_unicode=True, width=100),
        data=markup(_script_json(plots)), plotlyjs=markup(get_plotlyjs()),
    )  # fmt: skip
    replace_file(path, lambda handle: handle.write(page.encode("utf-8", errors="replace")))
    return path


def _chosen(spec: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """The template that says what was chosen, a readout or a tuning, and what it needs."""
    if "align" in spec:
        setting = ", ".join(f"{name} {_value(value)}" for name, value in best["setting"].items())
        return {"chosen": "sweep_tuning.html.j2", "setting": setting, "recipe": spec["align"]["recipe"],
                "encoder": spec["align"]["encoder"], "changes": best["test"]}  # fmt: skip
    test = best["test"]
    return {"chosen": "sweep_readout.html.j2", "setting": _words(best["setting"]), "cost": best["cost"],
            "interval": text.interval(test["low"], test["high"])}  # fmt: skip


def _value(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list | tuple) else _cell(value) or "none"


def _words(setting: dict[str, Any]) -> str:
    """A setting in a line."""
    layers = " + ".join(setting["layers"])
    made = "" if setting["combine"] == "one" else f" ({setting['combine']})"
    length = "" if setting["length"] is None else f", the last {setting['length']} steps"
    scale = "each feature to its own scale" if setting["standardise"] else "features on one common scale"
    return (
        f"{setting['encoder']}: {layers}{made}, {setting['pooling']} pooling, channels {setting['channels']}{length}, "
        f"{scale}, {setting['probe']} at {setting['strength']:g}"
    )


def _rows(trials: pd.DataFrame) -> list[list[str]]:
    """The best first, those that were stopped early after all that were not; numbers short, what is missing empty."""
    ordered = trials.assign(stopped=trials["state"] != "complete").sort_values(
        ["stopped", "score", "number"], ascending=[True, False, True], na_position="last"
    )
    ordered = ordered[trials.columns].head(ROWS)
    return [[_cell(value) for value in row] for row in ordered.astype(object).to_numpy().tolist()]


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
