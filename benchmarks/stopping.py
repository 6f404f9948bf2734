"""How soon does a study end that is told to, and what does it lose?

`python benchmarks/stopping.py` runs the quickstart again and again, sends SIGTERM after ever more seconds, and goes on
from what the run before has left, until one finishes. It prints a table of the seconds from the signal to the end of
the process, and rewrites `results/stopping-cpu.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
BETWEEN = 15.0  # seconds from the start of a run to its first signal; each further run works so much


def run(config: Path, out: Path, after: float) -> dict[str, Any]:
    """One run, told to end so many seconds after its start; `end` is None where it had finished by then."""
    command = [sys.executable, "-m", "tsprobe.cli", "run", str(config), "--out", str(out), "--set",
               "tracking.enabled=false"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    sent = time.perf_counter()
    said, _ = process.communicate()
    end = time.perf_counter() - sent
    cells = sum(1 for _ in out.rglob("cells/**/*.npz"))
    finished = (out / "report.html").exists()  # what is told to end after that is Python's own end
    return {"after": after, "end": None if finished else end, "code": process.returncode, "cells": cells,
            "said": said.strip().splitlines()[-1] if said.strip() else ""}  # fmt: skip


def line(row: dict[str, Any]) -> str:
    end = "finished" if row["end"] is None else f"{row['end']:.2f} s"
    return f"| {row['after']:.0f} s | {end} | {row['code']} | {row['cells']} | {row['said'] if row['code'] else ''} |"


def write(config: str, rows: list[dict[str, Any]]) -> None:
    ends = sorted(row["end"] for row in rows if row["end"] is not None)
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    head = (
        f"{config}, {len(ends)} times told to end by SIGTERM, on {machine}. Half of the runs ended within "
        f"{ends[len(ends) // 2]:.2f} s, all within {ends[-1]:.2f} s; each went on from what the one before had done."
    )
    table = ["| told after | ended after | exit code | cells kept | last line |", "|---|---|---|---|---|"]
    table += map(line, rows)
    text = "\n".join(["# A study that is told to end", "", head, "", *table]) + "\n"
    print(text)
    (RESULTS / "stopping-cpu.md").write_text(text)
    (RESULTS / "stopping-cpu.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--between", type=float, default=BETWEEN)
    parser.add_argument("--most", type=int, default=40, help="runs")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.most):
            # not always at the same place of a run: the start alone takes some seconds
            rows.append(run(asked.config, Path(folder) / "out", asked.between + number % 4))
            print(line(rows[-1]), flush=True)
            if rows[-1]["end"] is None or rows[-1]["code"] != 128 + signal.SIGTERM:
                break
    write(asked.config.name, rows)
    return int(rows[-1]["end"] is not None)


if __name__ == "__main__":
    sys.exit(main())
