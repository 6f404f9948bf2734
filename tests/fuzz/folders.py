"""Targets: what tsprobe itself wrote and reads again (studies, features, cells, archives of arrays), and names."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprobe.alignment.families import tradeoff
from tsprobe.capture.features import Features
from tsprobe.capture.store import FeatureStore
from tsprobe.encoders import load_encoder
from tsprobe.files import safe_name
from tsprobe.probes.base import Target as Asked
from tsprobe.probes.statistics import RidgeStatistics
from tsprobe.study import Study, make_spec, run_study
from tsprobe.study.cells import Cell, CellKey
from tsprobe.study.progress import silent
from tsprobe.tasks import Classification, load_task

from .checkpoints import Files, _write, _zoo, folder_target
from .harness import Target

_KEY = CellKey("e", "t", None, ("mean",), "concat", "mean", "ridge", 0, 5, "kept")


def _task() -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = rng.standard_normal((24, 1, 16)) + y[:, None, None]
    return Classification("mine", train=(x, y), test=(x[::-1], y[::-1]))


def _spec() -> Any:
    return make_spec({"name": "s", "encoders": ["zoo-x"], "tasks": ["mine"], "controls": ["untrained", "chance"],
                      "resamples": 100, "folds": 2, "tracking": {"enabled": False}})  # fmt: skip


def _run(folder: Path) -> Any:
    with tempfile.TemporaryDirectory() as place:
        _write(Path(place), _zoo())
        encoder = load_encoder(f"zoo:{place}")
    encoder.name = "zoo-x"
    return run_study(_spec(), folder, encoders={"zoo-x": encoder}, tasks={"mine": _task()}, stage=silent)


def _study() -> Files:
    with tempfile.TemporaryDirectory() as place:
        _run(Path(place) / "study")
        root = Path(place)
        return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*"))
                if f.is_file() and f.suffix != ".html"}  # fmt: skip


def _shown() -> Files:
    """What is read of a finished study."""
    return {name: content for name, content in _study().items() if "/cells/" not in name and "/features/" not in name}


def _open(folder: Path) -> Any:
    study = Study.open(folder / "study")
    _ = study.scores, study.verdicts, study.diagnostics, study.spec, study.provenance, study.name, study.controls
    _ = study.tree, study.cka, study.curves
    return study


def _report(folder: Path) -> Any:
    page = _open(folder).report(folder / "study" / "report.html").read_text()
    assert "<script>alert(1)" not in page  # one of the values that mutations put in
    return page


def _features(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"block.0": rng.random((5, 1, 4), np.float32), "norm": rng.random((5, 1, 4), np.float32),
              "head": rng.random((5, 1, 2), np.float32)}  # fmt: skip
    Features(arrays, ("mean",), {"missing_values": 0}).save(folder)


def _stored() -> Files:
    with tempfile.TemporaryDirectory() as place:
        _features(Path(place) / "x")
        return {str(f.relative_to(place)): f.read_bytes() for f in sorted(Path(place).rglob("*")) if f.is_file()}


def _load_features(folder: Path) -> Any:
    found = Features.load(folder / "x")
    return [found.matrix(layer, "mean") for layer in found.layers]


def _resume_features(folder: Path) -> Any:
    with FeatureStore(folder / "x", 5, ("block.0", "norm", "head"), ("mean",)) as store:
        return store.done


def _cell(folder: Path) -> list[bytes]:
    x = np.ones(2)
    Cell(("a", "b"), x, x, x, np.ones((2, 3, 1)), x, 0.5).save(folder / "c.npz", _KEY)
    return [(folder / "c.npz").read_bytes()]


def _load_cell(folder: Path, content: bytes) -> Any:
    (folder / "c.npz").write_bytes(content)
    cell = Cell.load(folder / "c.npz", _KEY)
    if cell is not None:
        assert [len(getattr(cell, field.name)) for field in dataclasses.fields(cell)[:-1]] == [len(cell.layers)] * 6
    return cell


def _statistics(folder: Path) -> list[bytes]:
    asked = Asked("classification", torch.arange(6) % 2, 2)
    sums = RidgeStatistics.of(asked, torch.arange(6) % 3, groups=1, width=2)
    sums.update(torch.ones(1, 6, 2), torch.arange(6))
    sums.save(folder / "s.npz")
    return [(folder / "s.npz").read_bytes()]


def _load_statistics(folder: Path, content: bytes) -> Any:
    (folder / "s.npz").write_bytes(content)
    return RidgeStatistics.load(folder / "s.npz")


_FAMILIES = Path(__file__).parents[2] / "tsprobe" / "zoo" / "contrastive-dense" / "families.csv"


def _load_families(folder: Path, content: bytes) -> Any:
    from tsprobe.alignment.families import as_text
    from tsprobe.report.tradeoff import write_tradeoff

    (folder / "families.csv").write_bytes(content)
    table = tradeoff([folder])
    page = write_tradeoff(folder / "tradeoff.html", table).read_text()
    assert "<script>alert(1)" not in page
    return as_text(table)


def _name(folder: Path, content: bytes) -> Any:
    """A name stands for a file in the folder, and for no other name; a task or an encoder of it is there or is not."""
    name = content.decode(errors="replace")
    file = safe_name(name)
    assert (folder / file).parent == folder
    assert (folder / file).resolve().parent == folder.resolve()
    (folder / file).touch()
    if name.startswith(("ucr/GunPoint?", "ts/", "tssb/", "forecast/")):  # others may be generated, or downloaded
        load_task(name)
    load_encoder(name)


_NAMES = (
    "zoo/jepa", "fracast", "ucr/GunPoint?shots=5&seed=1", "ucr/GunPoint?metric=balanced_accuracy", "../../x",
    "zoo:../../../etc", "timm:x/y", "aligned:.", "chronos-bolt:/tmp", "ts/../x?shots=2", "zoo/jepa@untrained",
    "vision/pe-mini", "baseline/chance", "forecast/airline?every=2",
)  # fmt: skip

TARGETS = [
    folder_target("study", _shown, _open),
    folder_target("report", _shown, _report),
    folder_target("resume", _study, lambda folder: _run(folder / "study")),
    folder_target("features", _stored, _load_features),
    folder_target("features-resumed", _stored, _resume_features),
    Target("cell", ".npz", _cell, _load_cell),
    Target("statistics", ".npz", _statistics, _load_statistics),
    Target("families", ".csv", lambda _: [_FAMILIES.read_bytes()], _load_families),
    Target("names", ".txt", lambda _: [name.encode() for name in _NAMES], _name),
]
