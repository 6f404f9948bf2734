"""How long does a sweep take, and does it find what the whole grid has?

`python benchmarks/sweep.py` runs `configs/sweep.yaml` as it is shipped, features read anew: 200 trials, four workers
on one SQLite file. Then single layers alone, whose grid is small enough to be compared with. It prints a table and
rewrites `results/sweep-cpu.md` and `.json`. Processor seconds stand beside those of the clock, for shared machines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import torch

from tsprobe.sweep import read_sweep_spec, run_sweep

CONFIG = Path(__file__).parent.parent / "configs" / "sweep.yaml"
RESULTS = Path(__file__).parent / "results"
WAYS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "as shipped, journal": ("storage=journal:{folder}/journal.log",),
    "single layers, with the grid": ("space.combine=[one]", "compare=grid"),
}


def measure(way: str, trials: int, config: Path = CONFIG) -> dict[str, Any]:
    """One sweep in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [text.format(folder=folder) for text in (*WAYS[way], f"trials={trials}")]
        begin, mine = time.perf_counter(), time.process_time()
        found = run_sweep(read_sweep_spec(config, tuple(overrides)), Path(folder) / "out")
        seconds = json.loads((Path(folder) / "out" / "provenance.json").read_text())["seconds"]
    best = found.best
    return {
        "way": way, "trials": len(found.trials), "wall": time.perf_counter() - begin,
        "trials_wall": seconds["trials"], "processor": time.process_time() - mine + seconds["workers' processors"],
        "inner": best["inner_score"], "test": best["test"]["score"], "compared": best.get("compared"),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    grid = row["compared"]
    against = "" if grid is None else (
        f"{grid['best']:.3f} [{grid['low']:.3f}, {grid['high']:.3f}] of {grid['cells']}; within after "
        f"{grid['trials_to_within']}, best after {grid['trials_to_best'] or 'none'}"
    )  # fmt: skip
    return (
        f"| {row['way']} | {row['trials']} | {row['wall']:.0f} s | {row['trials_wall']:.0f} s | "
        f"{row['processor']:.0f} s | {row['inner']:.3f} | {row['test']:.3f} | {against} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    rows = [measure(way, options.trials) for way in options.ways]
    head = (
        "zoo/contrastive and zoo/jepa, ucr/OSULeaf and ucr/ArrowHead, four workers, "
        f"{torch.get_num_threads()} threads of the parent, torch {torch.__version__}, Optuna {optuna.__version__}."
    )
    table = [
        "# A sweep", "", head, "",
        "| way | trials | clock, in all | clock, trials | processors, in all | inner | test | the whole grid |",
        "|---|---|---|---|---|---|---|---|", *map(line, rows), "",
    ]  # fmt: skip
    print("\n".join(table))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sweep-cpu.md").write_text("\n".join(table))
    (RESULTS / "sweep-cpu.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
