"""What a ridge probe of all layers costs from statistics and from kept features: time, and memory against N, L, T, D.

    python benchmarks/ridge_statistics.py

Writes `benchmarks/results/ridge_statistics-cpu.json` and `.md`. Every run is a process of its own, forked after the
imports; memory is how far its resident set grows beyond what it was with the series loaded. The encoder is small, so
that reading does not hide the rest: a patch embedding, and L blocks that each mix the D dimensions of T tokens. Times
are medians of two runs, ways in turn, and single runs from 100,000 series on. Both ways read all layers, give three
poolings, and end with the test predictions of the best of nine strengths.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import tsprobe as tp
from tsprobe.capture import Reading, extract
from tsprobe.encoders.base import Encoder
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe
from tsprobe.probes.base import Target
from tsprobe.study.streamed import Passes, read
from tsprobe.tasks.base import Task

PATCH, TARGETS, TESTED = 4, 3, 1000
POOLINGS = ("mean", "max", "std")
MIDDLE = {"N": 10_000, "L": 6, "T": 8, "D": 32}
VARIED = {"N": (1000, 10_000, 100_000, 1_000_000), "L": (3, 12), "T": (32, 128), "D": (128, 512)}
WAYS = ("kept", "statistics")
KEPT = 100_000  # series up to which features are also kept: in memory they take too much beyond


class Case(NamedTuple):
    N: int
    L: int
    T: int
    D: int


class Row(NamedTuple):
    """Seconds of the whole and of what is not reading, growth of the resident set and size of the features in MB."""

    case: Case
    way: str
    seconds: float
    probing: float
    growth: float
    features: float


class Blocks(nn.Module):
    """`[R, S]` to patches, and L residual blocks."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(len(x), -1, PATCH))
        for block in self.blocks:
            x = x + block(x)
        return x


def problem(case: Case) -> tuple[Encoder, Task]:
    torch.manual_seed(0)
    encoder = tp.load_encoder(Blocks(case.L - 1, case.D), blocks="blocks.*", prepare="bs", tokens=PATCH, name="blocks")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((case.N + TESTED, 1, case.T * PATCH), np.float32)
    y = x[:, 0, : 2 * TARGETS : 2] ** 2 + rng.standard_normal((len(x), TARGETS))
    train, test = slice(case.N), slice(case.N, None)
    return encoder, tp.Regression("squares", train=(x[train], y[train]), test=(x[test], y[test]))


def silent(steps: int) -> None:
    """No progress is shown."""


def by_statistics(encoder: Encoder, task: Task, reading: Reading, folds: np.ndarray) -> float:
    readings = {"train": reading, "test": reading}
    cells = read(Passes(encoder, task, readings, POOLINGS, None, {0: folds}), np.arange(512), silent).cells
    return sum(cell.seconds for cell in cells.values())


def by_kept_features(encoder: Encoder, task: Task, reading: Reading, folds: np.ndarray) -> float:
    train, test = (extract(encoder, panel, reading) for panel in (task.train, task.test))
    begin = time.perf_counter()
    target, metric = Target("regression", torch.from_numpy(task.y_train)), get_metric("r2")
    for pooling in POOLINGS:
        for (_, x), (_, x_test) in zip(train.stacks(pooling), test.stacks(pooling), strict=True):
            probe = get_probe("ridge")
            probe(torch.from_numpy(x), target, torch.from_numpy(x_test), torch.from_numpy(folds), metric)
    return time.perf_counter() - begin


def resident(field: str) -> float:
    """MB from the kernel's account of this process: `VmRSS` at the moment, `VmHWM` at the highest."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def child(case: Case, way: str, answer: Connection) -> None:
    encoder, task = problem(case)
    folds, reading = task.folds(5, 0), Reading(POOLINGS, rows=256)
    Path("/proc/self/clear_refs").write_text("5")  # the highest begins at the present
    before, begin = resident("VmRSS"), time.perf_counter()
    probing = (by_statistics if way == "statistics" else by_kept_features)(encoder, task, reading, folds)
    answer.send((time.perf_counter() - begin, probing, resident("VmHWM") - before))


def forked(work: Callable[..., None], *given: object) -> Any:
    """What `work(*given, answer)` sends, run in a process of its own."""
    context = multiprocessing.get_context("fork")  # the imports are there already; nothing has run that needs threads
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*given, its))
    process.start()
    its.close()
    found = mine.recv()
    process.join()
    return found


def run(case: Case, way: str) -> tuple[float, float, float]:
    return forked(child, case, way)


def measure(case: Case) -> list[Row]:
    rounds = 2 if case.N < 100_000 else 1
    ways = WAYS if case.N <= KEPT else ("statistics",)
    runs: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(run(case, way))
    features = 4 * case.N * case.L * len(POOLINGS) * case.D / 2**20
    return [
        Row(
            case, way, *(round(statistics.median(column), 3) for column in zip(*found, strict=True)), round(features, 1)
        )
        for way, found in runs.items()
    ]


def tables(rows: list[Row], facts: dict[str, object]) -> list[str]:
    lines = ["# Ridge from statistics and from kept features, CPU\n", ", ".join(f"{k} {v}" for k, v in facts.items())]
    lines.append(f"\n{len(POOLINGS)} poolings, {TARGETS} targets, 5 folds, 9 strengths, {TESTED} test series. Seconds:")
    lines.append(
        "the whole; probing: all but reading. Growth: of the resident set over the process with its series loaded."
    )
    for letter, values in VARIED.items():
        fixed = ", ".join(f"{k} = {v:,}" for k, v in MIDDLE.items() if k != letter)
        lines += [
            f"\n## Against {letter} ({fixed})\n",
            f"| {letter} | features, MB | way | seconds | probing | growth, MB |",
        ]
        lines.append("|---|---|---|---|---|---|")
        shown = sorted({*values, MIDDLE[letter]})
        for value in shown:
            case = Case(**(MIDDLE | {letter: value}))
            for row in rows:
                if row.case == case:
                    cells = f"{value:,}", f"{row.features:,.1f}", row.way, f"{row.seconds:.2f}", f"{row.probing:.2f}"
                    lines.append(f"| {' | '.join(cells)} | {row.growth:,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest N that is run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    cases = dict.fromkeys(Case(**(MIDDLE | {letter: value})) for letter, values in VARIED.items() for value in values)
    rows = [row for case in cases if chosen.most >= case.N for row in measure(case)]
    facts: dict[str, object] = {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(),
        "cores": os.cpu_count(),
    }  # fmt: skip
    text = "\n".join(tables(rows, facts)) + "\n"
    print(text)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "ridge_statistics-cpu.md").write_text(text)
    content = {"facts": facts, "rows": [row._asdict() | {"case": row.case._asdict()} for row in rows]}
    (chosen.out / "ridge_statistics-cpu.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
