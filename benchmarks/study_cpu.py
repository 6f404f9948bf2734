"""What does a whole layerwise study cost, against the three ways that people do it today?

`python benchmarks/study_cpu.py` reads every layer of Chronos-Bolt (official architecture at the size of "small", random
weights) over generated mixtures, and probes each layer and pooling for 14 presence labels and 33 masked parameters. The
three ways share scikit-learn's probes, a pipeline of StandardScaler and RidgeCV for each layer, pooling and target with
its own known rows; they differ in how they come by the features:

- kept: hidden states of all layers are asked for, kept for the whole set, then pooled;
- a pass a layer: the network is run once for each layer, with one hook;
- hooks: one pass, every layer pooled in its hook with separate torch operations.

It prints a table and rewrites `results/study-cpu.md` and `.json`. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extraction import chronos_bolt
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tsprobe as tp
from tsprobe.capture import Reading, extract
from tsprobe.capture.hooks import read_layers
from tsprobe.capture.windows import batches, cut, load
from tsprobe.encoders.base import Encoder
from tsprobe.metrics import get_metric
from tsprobe.pooling import path_used
from tsprobe.probes import get_probe
from tsprobe.probes.base import Target
from tsprobe.probes.ridge import STRENGTHS
from tsprobe.tasks.base import Task

POOLINGS = ("mean", "max", "std")
ROWS = 32
RESULTS = Path(__file__).parent / "results"

Matrices = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]  # (layer, pooling) to training and test features


def pooled(x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Separate operations over real tokens; all series here have the same ones."""
    x = x[:, mask[0]]
    return {"mean": x.mean(1), "max": x.amax(1), "std": x.std(1, correction=0)}


def forward(encoder: Encoder, panel: Any, layers: list[str], visit: Callable[[str, torch.Tensor, torch.Tensor], None]):
    windows = cut(panel, encoder.facts, encoder.name)
    with torch.inference_mode():
        for batch in batches(windows, ROWS, encoder.facts.pads):
            inputs = encoder.prepare(load(panel, [windows[i] for i in batch], keep_missing=True))
            if layers:
                read_layers(encoder, inputs, layers, lambda n, x: visit(n, x, inputs.tokens_of(n).mask))  # noqa: B023
            else:
                encoder.run(inputs)


def join(parts: dict[tuple[str, str], list[torch.Tensor]]) -> dict[tuple[str, str], np.ndarray]:
    return {key: torch.cat(values).numpy() for key, values in parts.items()}


def by_hooks(encoder: Encoder, panel: Any, layers: list[str]) -> dict[tuple[str, str], np.ndarray]:
    parts: dict[tuple[str, str], list[torch.Tensor]] = {(n, p): [] for n in layers for p in POOLINGS}

    def visit(name: str, x: torch.Tensor, mask: torch.Tensor) -> None:
        for pooling, value in pooled(x, mask).items():
            parts[name, pooling].append(value)

    forward(encoder, panel, layers, visit)
    return join(parts)


def by_pass_a_layer(encoder: Encoder, panel: Any, layers: list[str]) -> dict[tuple[str, str], np.ndarray]:
    """The network is run to its end each time, as a user's hook has it."""
    found: dict[tuple[str, str], np.ndarray] = {}
    windows = cut(panel, encoder.facts, encoder.name)
    for name in layers:
        tap, kept, masks = encoder.taps[name], [], []
        module = encoder.module.get_submodule(tap.path)
        keep = lambda _, value, *output: kept.append(tap.read(output[0] if output else value))  # noqa: B023, E731
        hook = (module.register_forward_pre_hook if tap.side == "input" else module.register_forward_hook)(keep)
        with torch.inference_mode():
            for batch in batches(windows, ROWS, encoder.facts.pads):
                inputs = encoder.prepare(load(panel, [windows[i] for i in batch], keep_missing=True))
                encoder.run(inputs)
                masks.append(inputs.tokens_of(name).mask)
        hook.remove()
        values = [pooled(x, mask) for x, mask in zip(kept, masks, strict=True)]
        found |= {(name, p): torch.cat([v[p] for v in values]).numpy() for p in POOLINGS}
    return found


def by_keeping(encoder: Encoder, panel: Any, layers: list[str]) -> dict[tuple[str, str], np.ndarray]:
    tokens: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    masks: list[torch.Tensor] = []

    def visit(name: str, x: torch.Tensor, mask: torch.Tensor) -> None:
        tokens[name].append(x)
        masks.append(mask)

    forward(encoder, panel, layers, visit)
    parts = {name: pooled(torch.cat(values), masks[0]) for name, values in tokens.items()}
    return {(name, p): parts[name][p].numpy() for name in layers for p in POOLINGS}


def scikit_learn(features: Matrices, tasks: list[Task]) -> dict[str, float]:
    """Mean test score over layers, poolings and targets, by task: one pipeline each, on its known rows."""
    scores: dict[str, list[float]] = {task.name: [] for task in tasks}
    for x, x_test in features.values():
        for task in tasks:
            score = r2_score if task.kind == "regression" else roc_auc_score
            for y, y_test in zip(task.y_train.T, task.y_test.T, strict=True):
                rows, test_rows = ~np.isnan(y), ~np.isnan(y_test)
                grid = np.array(STRENGTHS) * rows.sum()
                model = make_pipeline(StandardScaler(), RidgeCV(grid)).fit(x[rows], y[rows])
                scores[task.name].append(score(y_test[test_rows], model.predict(x_test[test_rows])))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def ours(encoder: Encoder, tasks: list[Task]) -> tuple[float, float, dict[str, float]]:
    """Seconds of reading and of probing, and the same mean scores."""
    begin = time.perf_counter()
    train, test = (extract(encoder, panel, Reading(POOLINGS, rows=ROWS)) for panel in (tasks[0].train, tasks[0].test))
    reading = time.perf_counter() - begin
    scores: dict[str, list[float]] = {task.name: [] for task in tasks}
    for task in tasks:
        metric, target = get_metric(task.metric), Target(task.kind, torch.from_numpy(task.y_train))
        folds = torch.from_numpy(task.folds(5, 0))
        for pooling in POOLINGS:
            for layers, stack in train.stacks(pooling):
                x_test = torch.from_numpy(np.stack([test.matrix(name, pooling) for name in layers]))
                readout = get_probe("ridge")(torch.from_numpy(stack), target, x_test, folds, metric)
                scores[task.name] += metric(torch.from_numpy(task.y_test), readout.prediction.float()).tolist()
    probing = time.perf_counter() - begin - reading
    return reading, probing, {name: float(np.mean(values)) for name, values in scores.items()}


WAYS = {
    "hidden states kept, then pooled": by_keeping,
    "a pass a layer, one hook": by_pass_a_layer,
    "hooks, separate operations": by_hooks,
}


def one_round(encoder: Encoder, tasks: list[Task]) -> dict[str, dict[str, Any]]:
    layers, panels = list(encoder.taps), (tasks[0].train, tasks[0].test)
    begin = time.perf_counter()
    for panel in panels:
        forward(encoder, panel, [], lambda *_: None)
    bare = time.perf_counter() - begin
    reading, probing, scores = ours(encoder, tasks)
    rows = {"tsprobe": {"bare": bare, "reading": reading, "probing": probing, "scores": scores}}
    features: Matrices = {}
    for way, read in WAYS.items():
        begin = time.perf_counter()
        train, test = (read(encoder, panel, layers) for panel in panels)
        rows[way] = {"bare": bare, "reading": time.perf_counter() - begin}
        features = {key: (train[key], test[key]) for key in train}
    begin = time.perf_counter()
    scores = scikit_learn(features, tasks)
    probing = time.perf_counter() - begin  # the same features, so the same probes for all three
    for way in WAYS:
        rows[way] |= {"probing": probing, "scores": scores}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--series", type=int, default=300, help="training series; half as many are for the test")
    options = parser.parse_args()
    torch.manual_seed(0)
    encoder = chronos_bolt()
    settings = f"n_train={options.series}&n_test={options.series // 2}"
    tasks = [tp.load_task(f"process/k2?{settings}"), tp.load_task(f"process/k2-state?{settings}")]
    forward(encoder, tasks[0].test, [], lambda *_: None)  # warm
    rounds = [one_round(encoder, tasks) for _ in range(options.rounds)]
    table, found = [], []
    for way in rounds[0]:
        total = [r[way]["reading"] + r[way]["probing"] for r in rounds]
        over = [t / (r["tsprobe"]["reading"] + r["tsprobe"]["probing"]) for t, r in zip(total, rounds, strict=True)]
        beyond = [(t - r[way]["bare"]) / r[way]["bare"] for t, r in zip(total, rounds, strict=True)]
        medians = {key: statistics.median(r[way][key] for r in rounds) for key in ("bare", "reading", "probing")}
        row = {"way": way, **medians, "total": statistics.median(total), "over_ours": statistics.median(over),
               "over_ours_range": [min(over), max(over)], "beyond_forward": statistics.median(beyond),
               "scores": rounds[0][way]["scores"]}  # fmt: skip
        found.append(row)
        score = " / ".join(f"{value:.3f}" for value in row["scores"].values())
        table.append(
            f"| {way} | {row['reading']:.1f} s | {row['probing']:.1f} s | {row['total']:.1f} s | "
            f"{row['over_ours']:.1f} ({min(over):.1f} to {max(over):.1f}) | {row['beyond_forward']:.2f} | {score} |"
        )
    head = (
        f"Chronos-Bolt-small shape, {len(encoder.taps)} layers, {len(POOLINGS)} poolings, {options.series} training "
        f"and {options.series // 2} test series of 512 steps, 14 labels and 33 masked parameters, float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, pooling: {path_used(torch.empty(1, 1, 1))}, "
        f"{options.rounds} rounds. The bare forward passes take {found[0]['bare']:.1f} s."
    )
    lines = [
        "# A whole study against the ways of today", "", head, "",
        "| way | features | probes | in all | over tsprobe | beyond the forward pass, over it | mean AUROC / R² |",
        "|---|---|---|---|---|---|---|", *table, "",
    ]  # fmt: skip
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "study-cpu.md").write_text("\n".join(lines))
    (RESULTS / "study-cpu.json").write_text(json.dumps({"head": head, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
