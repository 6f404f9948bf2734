"""Whether what lies in a study's folder is what a study writes there: the tables, the tree and the provenance.

Each function gives back what it was given. Raises `ValueError` that says what is wrong.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.files import folder_bytes, refuse_growth

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

TEXTS = (
    "encoder", "objective", "task", "family", "layer", "pooling", "probe", "metric", "final_layer", "chosen_layer",
    "verdict", "diagnostic", "note",
)  # fmt: skip
WHOLE = ("layer_index", "seed", "n_train", "n_test")  # all other columns are numbers, and may be missing
CURVE = {"curve": "f", "low": "f", "high": "f", "curve_pooling": "UOT", "curve_probe": "UOT"}  # and kinds of values
NAMES = ("encoder", "objective", "task", "family", "metric")


def table(found: pd.DataFrame, columns: Collection[str]) -> pd.DataFrame:
    """With all of the columns, each of its kind; others may stand beside them."""
    for name in columns:
        if name not in found:
            raise ValueError(f"there is no column {name!r}")
        kind = found[name].dtype.kind
        if kind not in ("iu" if name in WHOLE else "iuf") and name not in TEXTS and len(found):
            raise ValueError(f"the column {name!r} is not {'whole ' * (name in WHOLE)}numbers")
    texts = [name for name in columns if name in TEXTS and name != "note"]
    for name in texts:
        if found[name].isna().any():
            raise ValueError(f"the column {name!r} is empty in row {int(found[name].isna().argmax()) + 2}")
    return found


def tree(found: xr.DataTree, folder: Path) -> xr.DataTree:
    """With a node for each pair, each with a curve over its layers; not yet loaded."""
    refuse_growth(found.nbytes, folder_bytes(folder))
    for node in found.leaves:
        if wrong := [name for name in NAMES if not isinstance(node.attrs.get(name), str)]:
            raise ValueError(f"{node.path} says no {wrong[0]}")
        for name, kinds in (CURVE | {"depth": "fiu", "layer_index": "iu", "layer": "UOT"}).items():
            values = node.variables.get(name)
            if values is None or values.dims != ("layer",) or values.dtype.kind not in kinds:
                raise ValueError(f"{node.path} has no {name} of its layers")
    return found


def curves_of(nodes: dict[tuple[str, str], Any], verdicts: pd.DataFrame) -> list[Any]:
    """The nodes of the pairs that the verdicts are about."""
    pairs = list(zip(verdicts["encoder"], verdicts["task"], strict=True))
    if missing := next((pair for pair in pairs if pair not in nodes), None):
        raise ValueError(f"it has no {' on '.join(missing)}, of which there is a verdict")
    return [nodes[pair] for pair in pairs]


_SAID = {"controls": dict, "encoders": dict, "tasks": dict, "versions": dict, "seconds": dict, "left_out": list}


def provenance(found: dict[str, Any]) -> dict[str, Any]:
    for name, kind in _SAID.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"it has no {name}")
    if not all(isinstance(role, str) for role in found["controls"].values()):
        raise ValueError("controls are names and their roles")
    return found


def spec(found: Any) -> dict[str, Any]:
    """Settings of a study, whose values are looked at where they are used."""
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("it holds no settings")
    if not isinstance(found.get("name"), str):
        raise ValueError("it has no name")
    return found


def details(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept beside the cells of a pair."""
    notes, rows, cka = (found.get(name) for name in ("notes", "diagnostics", "cka"))
    if not isinstance(notes, dict) or not all(_counts(part) for part in notes.values()):
        raise ValueError("its notes are not seconds and counts")
    if not isinstance(rows, list) or not all(_measured(row) for row in rows):
        raise ValueError("its diagnostics are not pooling, layer, measure, value and note")
    matrices = list(cka.values()) if isinstance(cka, dict) else [None]
    if not all(isinstance(matrix, list) and all(_numbers(row, len(matrix)) for row in matrix) for matrix in matrices):
        raise ValueError("its cka is no matrix")
    if not isinstance(found.get("views"), str):
        raise ValueError("it does not say how views were made")
    return found


def _counts(part: Any) -> bool:
    return isinstance(part, dict) and all(
        isinstance(part.get(key), (int, float)) for key in ("seconds", "missing_values")
    )


def _measured(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 5 or not isinstance(row[3], (int, float)):
        return False
    return all(isinstance(row[i], str) for i in (0, 1, 2, 4))


def _numbers(row: Any, width: int) -> bool:
    return isinstance(row, list) and len(row) == width and all(isinstance(value, (int, float)) for value in row)
