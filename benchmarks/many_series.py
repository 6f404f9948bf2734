"""How much memory and time does a whole study take against the number of series?

    python benchmarks/many_series.py

Writes `benchmarks/results/many_series-cpu.json` and `.md`. What is measured is a study as `tp.probe` runs it. Each N
is a process of its own, forked after the imports; memory is how far its resident set grows beyond what it was with the
series loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from ridge_statistics import MIDDLE, Case, forked, problem, resident

import tsprobe as tp

SIZES = (1000, 10_000, 100_000, 1_000_000)
RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    """MB of the series, of the features that are not kept, and of the growth; seconds of the whole."""

    n: int
    series: float
    features: float
    growth: float
    seconds: float
    best: float  # R² of the best layer on the test series


def study(n: int, out: Path) -> Row:
    encoder, task = problem(Case(**(MIDDLE | {"N": n})))
    series = sum(x.nbytes for x in task.train.series) / 2**20
    features = 2 * 4 * n * (MIDDLE["L"] + 1) * MIDDLE["D"] / 2**20  # of the encoder and its untrained copy
    Path("/proc/self/clear_refs").write_text("5")  # the highest begins at the present
    before, begin = resident("VmRSS"), time.perf_counter()
    found = tp.probe(
        encoder, task, controls=("untrained", "chance"), features="statistics", rows=256, out=out,
        tracking={"enabled": False},
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    return Row(n, series, features, resident("VmHWM") - before, seconds, float(found.scores["score"].max()))


def child(n: int, answer: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answer.send(study(n, Path(folder) / "study"))


def table(rows: list[Row]) -> str:
    lines = [
        "# A whole study against the number of series",
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads. The encoder of ridge_statistics.py (L = "
        f"{MIDDLE['L']}, T = {MIDDLE['T']}, D = {MIDDLE['D']}) and its untrained copy, all layers, mean pooling, ridge "
        "from statistics, diagnostics, verdicts by bootstrap over 1,000 test series, tables on disk.",
        "",
        "| N | series, MB | features that are not kept, MB | growth of memory, MB | bytes a series | seconds | "
        "series a second | R² of the best layer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            f"{row.n:,}", f"{row.series:,.0f}", f"{row.features:,.0f}", f"{row.growth:,.0f}",
            f"{row.growth * 2**20 / row.n:,.0f}", f"{row.seconds:.1f}", f"{2 * row.n / row.seconds:,.0f}",
            f"{row.best:.3f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest N that is run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    rows = [forked(child, n) for n in SIZES if n <= chosen.most]
    text = table(rows)
    print(text)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "many_series-cpu.md").write_text(text)
    (chosen.out / "many_series-cpu.json").write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
