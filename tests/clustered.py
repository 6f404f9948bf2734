"""Encoders for studies on a cluster, `python:clustered:NAME`, which end their process or wait; and what is the same.

The files lie in the folder that `TSPROBE_TEST_SIGNS` names to driver and workers alike. The driver is never ended.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from planted import Planted
from torch import nn
from toys import StepsEncoder

SIGNS = "TSPROBE_TEST_SIGNS"


def sign(name: str) -> Path:
    return Path(os.environ[SIGNS]) / name


class Fused(Planted):
    """Planted, and from its third pass on it looks for the files `fuse` (once) and `bomb` (each time)."""

    def __init__(self) -> None:
        super().__init__(2)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if self.passes >= 3 and on_worker():
            if sign("fuse").exists():
                sign("fuse").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if sign("bomb").exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Gated(Planted):
    """Planted, and on a worker it waits as long as the file `gate` is there."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while on_worker() and sign("gate").exists():
            time.sleep(0.02)
        return super().forward(x)


def on_worker() -> bool:
    import ray

    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def fused() -> nn.Module:
    return Fused()


def gated() -> nn.Module:
    return Gated()


def strict() -> StepsEncoder:
    return StepsEncoder(min_length=80)


def first_waits(work: object, number: int, releases: int) -> int:
    """Piece of work 0 is not done before the file `go` is there, which another one makes."""
    while number == 0 and not sign("go").exists():
        time.sleep(0.02)
    if number == releases:
        sign("go").touch()
    return number


TABLES = ("scores.csv", "verdicts.csv", "diagnostics.csv")


def assert_same(mine: Path, theirs: Path) -> None:
    """To the last digit, but for times and for who computed."""
    for name in (*TABLES, "spec.yaml"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    trees = [xr.open_datatree(folder / "study.zarr", engine="zarr", consolidated=False) for folder in (mine, theirs)]
    xr.testing.assert_identical(*trees)
    for tree in trees:
        tree.close()
    cells = [sorted(p.relative_to(f) for p in f.glob("cells/*/*/*.npz")) for f in (mine, theirs)]
    assert cells[0] == cells[1]
    assert cells[0]
    for cell in cells[0]:
        first, second = np.load(mine / cell), np.load(theirs / cell)
        assert set(first) == set(second)
        for array in set(first) - {"meta"}:
            np.testing.assert_array_equal(first[array], second[array], err_msg=f"{cell} {array}")
    facts = [json.loads((folder / "provenance.json").read_text()) for folder in (mine, theirs)]
    for name in ("versions", "seeds", "controls", "encoders", "tasks", "missing_values", "diagnostics", "left_out"):
        assert facts[0][name] == facts[1][name], name
