"""What alignments brought to each family of tasks and cost, and whether one keeps everything that is of use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.alignment.families import FILE, tradeoff
from tsprobe.alignment.recipes import RECIPES
from tsprobe.alignment.spec import AlignSpec
from tsprobe.atlas.draws import Estimate, Grid
from tsprobe.atlas.layers import of_task
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.tasks import load_task

if TYPE_CHECKING:
    import pandas as pd

ALL = "all families"
TRADEOFF = (
    "alignment", "encoder", "recipe", "control", "seeds", "family", "lifted", "tasks", "change", "change_low",
    "change_high", "direction", "retention", "kept", "kept_low", "kept_high",
)  # fmt: skip


def tradeoff_table(spec: AtlasSpec, folder: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """A row for each alignment, control and family (and all of them).

    `change` is that of the output, its interval from test series and tunings (`families.csv`); of all families it is
    from tasks. `kept` is the output's score after, less that of the best hidden layer before (chosen on inner folds),
    averaged over tasks: 0 or more where nothing of use was lost. `direction` is up or down where the interval of the
    change leaves out 0. Alignments that tuned nothing, since nothing was hidden, have no rows.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name in names:
        where, asked = folder / name, spec.alignments[name]
        if not (where / FILE).exists():
            continue
        families, lift = tradeoff([where]), pd.read_csv(where / "lift.csv").fillna({"control": ""})
        lifted = lifted_families(asked, families)
        for (encoder, recipe, control), own in families.groupby(["encoder", "recipe", "control"], sort=False):
            shared = {"alignment": name, "encoder": encoder, "recipe": recipe, "control": control}
            shared |= {"seeds": len(asked.seeds)}
            tasks = lift[lift["control"] == control]
            for row in own.to_dict("records"):
                found = _kept(tasks[tasks["family"] == row["family"]], spec)
                change = Estimate(row["change"], row["change_low"], row["change_high"])
                rows.append(
                    shared | {key: row[key] for key in ("family", "tasks", "retention")}
                    | {"lifted": row["family"] in lifted, "direction": direction(change)}
                    | change.row("change") | found.row("kept")
                )  # fmt: skip
            change = _over_tasks(tasks.assign(difference=tasks["final_after"] - tasks["final_before"]), spec)
            rows.append(
                shared | {"family": ALL, "tasks": len(tasks), "retention": math.nan, "lifted": False}
                | {"direction": direction(change)} | change.row("change") | _kept(tasks, spec).row("kept")
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(TRADEOFF))


def lifted_families(asked: AlignSpec, families: pd.DataFrame) -> set[str]:
    """The families that an alignment is to lift: all for `joint`, those of its labelled tasks, or the spec's."""
    if asked.recipe == "joint":
        return set(families["family"])
    if RECIPES[asked.recipe].labelled:
        return {load_task(name).family for name in asked.labelled}
    return set(asked.lift)


def _kept(lift: pd.DataFrame, spec: AtlasSpec) -> Estimate:
    return _over_tasks(lift.assign(difference=lift["final_after"] - lift["hidden_before"]), spec)


def _over_tasks(lift: pd.DataFrame, spec: AtlasSpec) -> Estimate:
    some = lift.assign(base=[of_task(t)["base"] for t in lift["task"]], encoder="one")
    some["variant"] = [of_task(t)["variant"] for t in lift["task"]]
    some = some.dropna(subset="difference")
    if not len(some):
        return Estimate(math.nan, math.nan, math.nan)
    return Grid.of(some, "difference").estimate(spec.resamples, spec.seed, spec.level)


def direction(change: Estimate) -> str:
    if not change.known:
        return "undecided"
    return "up" if change.low > 0 else "down" if change.high < 0 else "undecided"


def privilege(table: pd.DataFrame, spec: AtlasSpec) -> dict[str, Any]:
    """Of one alignment's rows without controls: the families that went up and down, those whose hidden features were
    lost or kept, and what follows.

    `privileges`: some family went up, another down or lost what its hidden layers had. `loses`: none up, some down or
    lost. `keeps`: neither in any family, and over all tasks the output has what the best hidden layers had, to within
    the margin. Else `undecided`.
    """
    families, whole = table[table["family"] != ALL], table[table["family"] == ALL].iloc[0]
    up, down = (list(families.loc[families["direction"] == way, "family"]) for way in ("up", "down"))
    down += [f for f in families.loc[families["kept_high"] < -spec.margin, "family"] if f not in down]
    if down:
        verdict = "privileges" if set(up) - set(down) else "loses"
    elif whole["kept_high"] < -spec.margin:
        verdict = "loses"
    else:
        verdict = "keeps" if whole["kept_low"] > -spec.margin else "undecided"
    return {"up": up, "down": down, "kept": Estimate(*(float(whole[f"kept{e}"]) for e in ("", "_low", "_high"))),
            "tasks": int(whole["tasks"]), "verdict": verdict}  # fmt: skip


def matrix(table: pd.DataFrame) -> tuple[list[str], list[str], np.ndarray, list[list[str]]]:
    """Rows (recipes and controls), families, changes `[rows, families]`, and a mark for each: lifted, or not."""
    own = table[table["family"] != ALL]
    families = list(dict.fromkeys(own["family"]))
    labels, values, marks = [], [], []
    for (alignment, control), some in own.groupby(["alignment", "control"], sort=False):
        by = some.set_index("family")
        labels.append(f"{alignment}, {control}" if control else str(alignment))
        values.append([float(by["change"].get(f, math.nan)) for f in families])
        marks.append([("lifted" if by["lifted"].get(f) and not control else "") for f in families])
    return labels, families, np.array(values).reshape(len(labels), len(families)), marks
