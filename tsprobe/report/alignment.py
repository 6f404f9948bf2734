"""What an alignment brought and cost, as one HTML page: a line for each task, from the final layer before to after."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.files import replace_file
from tsprobe.report import text
from tsprobe.report.templates import environment
from tsprobe.report.tradeoff import depths, matrix

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 296  # of a drawing, in px
_MARGIN = 14


def write_alignment_report(path: Path, lift: pd.DataFrame, families: pd.DataFrame, about: dict[str, Any]) -> Path:
    """Render the rows of `lift.csv` and `families.csv`.

    `about` has `encoder`, `recipe`, `teachers`, `message`, `spec`, `seeds`, the lines of `left_out`, and what each of
    the `controls` and the `cut` are. Raises `StorageError` where the disk refuses.
    """
    import yaml

    drawn = [name for name in dict.fromkeys(lift["control"]) if name]
    page = (
        environment()
        .get_template("alignment.html.j2")
        .render(
            **about
            | {"spec": yaml.safe_dump(text.simple(about["spec"]), sort_keys=False, allow_unicode=True, width=100)},
            families=_families(lift),
            drawn=drawn,
            matrix=matrix(families) if len(families) else {"families": [], "rows": []},
            depths=depths(families) if len(families) else [],
        )
    )
    replace_file(path, lambda handle: handle.write(page.encode("utf-8", errors="replace")))
    return path


def _families(lift: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for family, rows in lift.groupby("family", sort=False):
        tasks = [_task(str(task), same) for task, same in rows.groupby("task", sort=False)]
        own = rows[rows["control"] == ""]
        change = (own["final_after"] - own["final_before"]).mean()
        found.append({"family": family, "tasks": tasks, "change": float(change), "count": len(own)})
    return found


def _task(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    own = rows[rows["control"] == ""].iloc[0].to_dict()
    values = {"before": own["final_before"], "hidden": own["hidden_before"], "cut": own["cut"]}
    after = {"": own["final_after"]} | {r["control"]: r["final_after"] for r in rows.to_dict("records") if r["control"]}
    numbers = [v for v in (*values.values(), *after.values()) if math.isfinite(v)]
    low, high = min(numbers), max(numbers)
    spread = max(high - low, 0.01)

    def place(value: float) -> float | None:
        if not math.isfinite(value):
            return None
        return round(_MARGIN + (value - low + 0.5 * (spread - (high - low))) / spread * (WIDTH - 2 * _MARGIN), 1)

    return {
        "task": name, "metric": own["metric"], **own,
        "change": own["final_after"] - own["final_before"],
        "between": text.interval(own["lift_low"], own["lift_high"]) if math.isfinite(own["lift"]) else "",
        "at": {key: place(value) for key, value in values.items()},
        "after": place(after[""]),
        "others": [{"control": c, "score": v, "at": place(v)} for c, v in after.items() if c],
        "width": WIDTH,
    }  # fmt: skip
