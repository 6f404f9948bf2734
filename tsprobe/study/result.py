"""A finished study: its folder, as tables and a tree."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from tsprobe.errors import DAMAGE, StorageError, reason
from tsprobe.files import read_json, read_table, replace_text
from tsprobe.mirror import fetched, is_address
from tsprobe.settings import read_yaml
from tsprobe.study import checked

SCORES = (
    "encoder", "objective", "task", "family", "layer", "layer_index", "depth", "pooling", "probe", "seed", "metric",
    "score", "n_train", "n_test",
)  # fmt: skip
VERDICTS = (
    "encoder", "objective", "task", "family", "metric", "final_layer", "chosen_layer", "chosen_depth", "final_score",
    "chosen_score", "gap", "gap_low", "gap_high", "p_value", "p_adjusted", "verdict",
)  # fmt: skip
DIAGNOSTICS = (
    "encoder", "objective", "task", "layer", "layer_index", "depth", "pooling", "diagnostic", "note", "value",
)  # fmt: skip


class Study:
    """What a study found, read from its folder when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """Of a folder, or of an address that fsspec reaches (`s3://bucket/folder`), which is fetched.

        Raise `StorageError` where the folder is not that of a finished study."""
        study = cls(fetched(str(folder)) if is_address(folder) else folder)
        if is_address(folder):
            weakref.finalize(study, shutil.rmtree, study.folder, ignore_errors=True)
        missing = [
            n for n in ("scores.csv", "verdicts.csv", "study.zarr", "spec.yaml") if not (study.folder / n).exists()
        ]
        if missing:
            raise StorageError(f"{folder} is no finished study: {', '.join(missing)} is missing; run it (again) first")
        return study

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row for each encoder, task, layer, pooling, probe and seed: the test score."""
        return self._table("scores.csv", SCORES)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """A row for each encoder and task: hidden, exposed or undecided."""
        return self._table("verdicts.csv", VERDICTS)

    @cached_property
    def diagnostics(self) -> pd.DataFrame:
        """Label-free measures of each layer; where a `value` is NaN, its `note` says why."""
        return self._table("diagnostics.csv", DIAGNOSTICS)

    @cached_property
    def cka(self) -> pd.DataFrame:
        """Linear CKA of all pairs of layers: encoder, task, pooling, layer, other_layer, cka; empty if not measured."""
        tables = [
            node["cka"].to_dataframe()[["cka"]].reset_index()
            .assign(encoder=node.attrs["encoder"], task=node.attrs["task"])
            for node in self.tree.leaves if "cka" in node
        ]  # fmt: skip
        columns = ["encoder", "task", "pooling", "layer", "other_layer", "cka"]
        return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)

    @cached_property
    def spec(self) -> dict[str, Any]:
        with _named(self.folder / "spec.yaml") as file:
            return checked.spec(read_yaml(file.read_text(encoding="utf-8")))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        with _named(self.folder / "provenance.json") as file:
            return checked.provenance(read_json(file))

    @property
    def name(self) -> str:
        return self.spec["name"]

    @cached_property
    def tree(self) -> xr.DataTree:
        """A node for each encoder and task with dims layer, pooling, probe, seed."""
        with _named(self.folder / "study.zarr") as folder:
            return checked.tree(xr.open_datatree(folder, engine="zarr", consolidated=False), folder).load()

    @property
    def controls(self) -> dict[str, str]:
        """Encoders that are controls, and which: untrained, baseline or chance."""
        return self.provenance["controls"]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row for each encoder, task and layer: the test score, with its interval, of the readout that the inner
        folds prefer at that layer, and the score of chance."""
        nodes = {(node.attrs["encoder"], node.attrs["task"]): node for node in self.tree.leaves}
        rows = []
        with _named(self.folder / "study.zarr"):
            pairs = checked.curves_of(nodes, self.verdicts)
        for node in pairs:
            d, a = node.to_dataset(), node.attrs
            frame = d[["layer_index", "depth", "curve", "low", "high", "curve_pooling", "curve_probe"]].to_dataframe()
            frame = frame.reset_index().rename(
                columns={"curve": "score", "curve_pooling": "pooling", "curve_probe": "probe"}
            )
            for column in ("metric", "family", "task", "objective", "encoder"):
                frame.insert(0, column, a[column])
            rows.append(frame)
        curves = pd.concat(rows, ignore_index=True)
        at_chance = curves[curves.encoder == "baseline/chance"].set_index("task").score
        curves["chance"] = curves.task.map(at_chance).astype(float)
        return curves

    def plot(self) -> Any:
        """The layer curves, as a Plotly figure."""
        from tsprobe.report import plot  # the face of a study, loaded when it is looked at

        return plot(self)

    def report(self, path: str | Path) -> Path:
        """Write the self-contained HTML page."""
        from tsprobe.report import write_report

        write_report(self, Path(path))
        return Path(path)

    def _table(self, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
        with _named(self.folder / name) as file:
            return checked.table(read_table(file, dtype=dict.fromkeys(checked.TEXTS, str)), columns)


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Name what is damaged, by whatever pandas, zarr and xarray raise on it. Raises `StorageError`."""
    try:
        yield path
    except (OSError, *DAMAGE) as error:
        raise StorageError(f"{path} cannot be read ({reason(error)}); run the study again") from error


def write_table(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """A tidy CSV; numbers with ten significant digits, so that equal studies give equal files."""
    frame = pd.DataFrame(rows, columns=list(columns))
    replace_text(path, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def write_tree(path: Path, nodes: dict[str, xr.Dataset]) -> None:
    """Write the whole tree beside `path`, then put it in place."""
    tree = xr.DataTree.from_dict(nodes)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".writing-"))
    try:
        # Format 2: format 3 has no specification for strings yet, and layer names are strings
        tree.to_zarr(temporary / "tree", mode="w", consolidated=False, zarr_format=2)
        if path.exists():
            path.rename(temporary / "old")
        (temporary / "tree").rename(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
