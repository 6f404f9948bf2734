"""What do label-free diagnostics add to the extraction that they are taken in?

`python benchmarks/diagnostics.py` reads 500 series of 256 to 512 steps with encoders of the zoo (12 blocks, width 128),
all layers, mean pooling, as a study reads its training series, and prints a table; it rewrites
`results/diagnostics-<device>.md` and `.json`. Rounds with and without are interleaved, and a ratio is the median over
rounds of one round's ratio. "Inside" is the time spent in diagnostics over the rest of that extraction: two equal
passes differ by several percent, so that it says more than the ratio. One thread, and seconds of the processor, which
other work on the machine changes less than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tsprobe as tp
from tsprobe.capture import Reading, extract
from tsprobe.diagnostics import CATALOGUE, TokenWatch, of_kind
from tsprobe.encoders.base import Encoder
from tsprobe.study import make_spec
from tsprobe.study.pair import Pair
from tsprobe.study.progress import silent
from tsprobe.tasks.base import Task

RESULTS = Path(__file__).parent / "results"
ENCODERS = ("zoo/jepa", "zoo/forecasting")
WAYS = {"pooled": "features", "tokens": "tokens", "attention": "attention", "standard": "standard", "views": "views"}
SERIES, STEPS = 500, (256, 512)


class Timed(TokenWatch):
    """A watch that takes the time of what it does in the pass."""

    inside = 0.0

    @contextmanager
    def watching(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        begin = time.process_time()
        with super().watching(*args, **kwargs) as visit:
            self.inside += time.process_time() - begin
            yield None if visit is None else lambda *given: self._timed(visit, *given)
            begin = time.process_time()
        self.inside += time.process_time() - begin

    def _timed(self, visit: Any, *given: Any) -> None:
        begin = time.process_time()
        visit(*given)
        self.inside += time.process_time() - begin


def task(n: int = SERIES, steps: tuple[int, int] = STEPS) -> Task:
    """Random walks of unlike length, of two classes by chance."""
    rng = np.random.default_rng(0)
    walks = [rng.standard_normal((1, k)).cumsum(1).astype(np.float32) for k in rng.integers(*steps, n)]
    y = np.arange(n) % 2
    return tp.Classification("walks", train=(walks, y), test=(walks[:8], y[:8]))


def without(encoder: Encoder, given: Task) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        for split, panel in (("train", given.train), ("test", given.test)):
            extract(encoder, panel, Reading(), store=Path(folder) / f"{split}.zarr")
        return time.process_time() - begin


def measured(encoder: Encoder, given: Task, measures: list[str], samples: int) -> tuple[float, float]:
    """Seconds of the extraction and of the measures that come after it, and of those the seconds in diagnostics."""
    asked = {"measures": measures, "samples": samples}
    spec = make_spec({"encoders": [encoder.name], "tasks": [given.name], "diagnostics": asked})
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(encoder, "", given, spec, Path(folder), silent)
        watch = pair.watch
        if watch is not None:  # of the same series
            watch.__class__ = Timed
        begin = time.process_time()
        pair.features[0]  # both parts; eight series of the test set are read with it
        read = time.process_time()
        pair._diagnosis()
        end = time.process_time()
        return end - begin, end - read + (watch.inside if isinstance(watch, Timed) else 0.0)


def measure(name: str, given: Task, rounds: int) -> list[dict[str, Any]]:
    encoder = tp.load_encoder(name)
    names = {
        way: ["standard"] if kind == "standard" else list(of_kind(CATALOGUE, kind))  # type: ignore[arg-type]
        for way, kind in WAYS.items()
    }
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    without(encoder, given)
    for _ in range(rounds):
        plain = without(encoder, given)
        for way, measures in names.items():
            whole, inside = measured(encoder, given, measures, 256)
            found[way].append((whole / plain, inside / (whole - inside), plain))
    return [
        {"encoder": name, "way": way, "seconds": statistics.median(plain for *_, plain in values),
         "ratio": statistics.median(ratio for ratio, *_ in values),
         "inside": statistics.median(share for _, share, _ in values),
         "fastest_inside": min(share for _, share, _ in values)}
        for way, values in found.items()
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['encoder']} | {row['way']} | {row['seconds']:.2f} s | {row['ratio']:.3f} | {row['inside']:.1%} | "
        f"{row['fastest_inside']:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    given = task()
    rows = [row for name in ENCODERS for row in measure(name, given, rounds)]
    head = (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread, {SERIES} series of {STEPS[0]} to {STEPS[1]} "
        f"steps, 12 blocks, d 128, {rounds} rounds"
    )
    table = [
        "| encoder | diagnostics | extraction without | with, over without | inside | inside, best round |",
        "|---|---|---|---|---|---|",
        *map(line, rows),
    ]
    notes = "`standard`, the default, is pooled, tokens and attention. `views` are two more passes over 256 series."
    text = "\n".join(["# Diagnostics over extraction", "", head, "", *table, "", notes, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "diagnostics-cpu.md").write_text(text)
    (RESULTS / "diagnostics-cpu.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
