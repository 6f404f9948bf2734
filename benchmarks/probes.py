"""What does probing all layers cost, against a loop over layers with scikit-learn?

    python benchmarks/probes.py

Features are made: L layers that carry the classes ever more clearly, in directions of little variance among correlated
ones, as an encoder's do. scikit-learn does what its users do, layer by layer: `LogisticRegression` at 7 strengths in 5
folds and a refit at the best, or `RidgeClassifierCV` over the strengths of the ridge probe; both on standardised
features. lbfgs stops early at its default tolerance, at another optimum where the penalty is weak: it is also timed at
one that reaches the optimum. Where its loop would take minutes, some of its layers and folds are timed, at every
strength, and the whole is reckoned from them. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe
from tsprobe.probes.base import Target
from tsprobe.probes.ridge import STRENGTHS as ALPHAS

RESULTS = Path(__file__).parent / "results"
STRENGTHS = tuple(10.0**e for e in range(-4, 3))
FOLDS, TESTED = 5, 1000
SLOW = 5  # seconds


class Case(NamedTuple):
    probe: str
    layers: int
    rows: int
    width: int
    classes: int
    layers_timed: int  # for scikit-learn
    folds_timed: int = FOLDS
    tolerances: tuple[float, ...] = (1e-4, 1e-6)  # of lbfgs; the first is its default


CASES = (
    Case("logistic", 13, 1000, 384, 2, 3),
    Case("logistic", 13, 1000, 384, 10, 1, 1),
    Case("logistic", 3, 1000, 768, 60, 1, 1, tolerances=(1e-4,)),
    Case("logistic", 3, 10_000, 768, 2, 1, 1, tolerances=(1e-4,)),
    Case("ridge", 13, 1000, 384, 2, 3),
    Case("ridge", 13, 1000, 768, 60, 3),
    Case("ridge", 13, 10_000, 384, 10, 3),
    Case("ridge", 13, 10_000, 768, 60, 2),
)


class Data(NamedTuple):
    x: np.ndarray  # [L, N + M, D], float32
    y: np.ndarray  # [N + M]
    folds: np.ndarray  # [N]


class Found(NamedTuple):
    seconds: float  # of all layers
    prediction: np.ndarray  # class scores [layers timed, M, C]


def make(case: Case) -> Data:
    """Classes lie apart along all principal axes, in the later layers more than in the earlier ones."""
    rng = np.random.default_rng(0)
    n, d = case.rows + TESTED, case.width
    y = rng.permutation(np.arange(n) % case.classes)
    deviation = np.arange(1, d + 1) ** -0.75
    layers = []
    for layer in range(case.layers):
        apart = 0.06 * (1 + 2 * layer / case.layers) * math.sqrt(case.classes)
        values = rng.standard_normal((n, d)) + apart * rng.standard_normal((case.classes, d))[y]
        layers.append((values * deviation) @ np.linalg.qr(rng.standard_normal((d, d)))[0])
    return Data(np.stack(layers).astype(np.float32), y, np.arange(case.rows) % FOLDS)


def ours(case: Case, data: Data) -> tuple[Found, np.ndarray]:
    """And the strength that was chosen for each layer."""
    x, y, n = torch.from_numpy(data.x), torch.from_numpy(data.y), case.rows
    target, folds, metric = Target("classification", y[:n], case.classes), torch.from_numpy(data.folds), "accuracy"
    grid = STRENGTHS if case.probe == "logistic" else ALPHAS
    begin = time.perf_counter()
    readout = get_probe(case.probe)(x[:, :n], target, x[:, n:], folds, get_metric(metric), strengths=grid)
    seconds = time.perf_counter() - begin
    return Found(seconds, readout.prediction.numpy()[timed(case)]), np.array(readout.strengths)[readout.chosen]


def timed(case: Case) -> np.ndarray:
    return np.linspace(0, case.layers - 1, case.layers_timed).round().astype(int)


def by_logistic_regression(case: Case, data: Data, chosen: np.ndarray, tolerance: float) -> Found:
    """The last fit is at the strength that our probe has chosen, so that predictions can be compared."""

    def fit(c: float, x: np.ndarray, y: np.ndarray) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=tolerance, max_iter=10_000)).fit(x, y)

    n, loop, last, predictions = case.rows, 0.0, 0.0, []
    for layer in timed(case):
        x, y = data.x[layer, :n], data.y[:n]
        begin = time.perf_counter()
        for fold in range(case.folds_timed):
            rows = data.folds != fold
            for c in STRENGTHS:
                fit(c, x[rows], y[rows]).score(x[~rows], y[~rows])
        loop += time.perf_counter() - begin
        begin = time.perf_counter()
        predictions.append(fit(chosen[layer], x, y).predict_proba(data.x[layer, n:]))
        last += time.perf_counter() - begin
    seconds = (loop * FOLDS / case.folds_timed + last) * case.layers / case.layers_timed
    return Found(seconds, np.stack(predictions))


def by_ridge_classifier(case: Case, data: Data, cv: int | None) -> Found:
    n, predictions = case.rows, []
    begin = time.perf_counter()
    for layer in timed(case):
        model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.array(ALPHAS) * n, cv=cv))
        score = model.fit(data.x[layer, :n], data.y[:n]).decision_function(data.x[layer, n:])
        predictions.append(score if score.ndim > 1 else np.stack([-score, score], 1))
    return Found((time.perf_counter() - begin) * case.layers / case.layers_timed, np.stack(predictions))


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """A row for each way that scikit-learn has; a way that takes long is timed once."""
    data = make(case)
    y = data.y[case.rows :]
    found: dict[str, list[tuple[Found, Found]]] = {}
    slow: dict[str, Found] = {}
    for _ in range(rounds):
        mine, chosen = ours(case, data)
        ways: dict[str, Callable[[], Found]] = {
            "RidgeClassifierCV, leave one out": partial(by_ridge_classifier, case, data, None),
            f"RidgeClassifierCV, {FOLDS} folds": partial(by_ridge_classifier, case, data, FOLDS),
        }
        if case.probe == "logistic":
            ways = {
                f"LogisticRegression, tol {t:.0e}": partial(by_logistic_regression, case, data, chosen, t)
                for t in case.tolerances
            }
        for way in ways:
            begin = time.perf_counter()
            theirs = slow.get(way) or ways[way]()
            if time.perf_counter() - begin > SLOW:
                slow[way] = theirs
            found.setdefault(way, []).append((mine, theirs))
    return [row(case, way, pairs, y) for way, pairs in found.items()]


def row(case: Case, way: str, pairs: list[tuple[Found, Found]], y: np.ndarray) -> dict[str, Any]:
    ratios = [theirs.seconds / mine.seconds for mine, theirs in pairs]
    seconds = [statistics.median(pair[i].seconds for pair in pairs) for i in range(2)]
    mine, theirs = pairs[-1]
    return case._asdict() | {
        "way": way,
        "seconds": dict(zip(("ours", "theirs"), seconds, strict=True)),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "accuracy": [float((f.prediction.argmax(-1) == y).mean()) for f in (mine, theirs)],
        "apart": float(np.abs(mine.prediction - theirs.prediction).max()) if case.probe == "logistic" else None,
    }


def line(row: dict[str, Any]) -> str:
    cells = [
        row["probe"],
        f"{row['layers']} x {row['rows']:,} x {row['width']}, {row['classes']} classes",
        f"{row['seconds']['ours']:.1f} s",
        row["way"],
        f"{row['seconds']['theirs']:.1f} s",
        f"{row['layers_timed'] * row['folds_timed']} of {row['layers'] * FOLDS}",
        f"{row['ratio']:.1f} ({row['ratio_range'][0]:.1f} to {row['ratio_range'][1]:.1f})",
        " / ".join(f"{value:.3f}" for value in row["accuracy"]),
        "" if row["apart"] is None else f"{row['apart']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the cases, from 0; then nothing is written")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # lbfgs that stops at its limit
    ours(CASES[0], make(CASES[0]))  # warm
    rows = []
    for i, case in enumerate(CASES):
        if options.cases is None or i in options.cases:
            found = measure(case, options.rounds)
            print("\n".join(map(line, found)), flush=True)
            rows += found
    head = (
        f"Layers x rows x width of made features, {len(STRENGTHS)} strengths (logistic) or {len(ALPHAS)} (ridge), "
        f"{FOLDS} folds, {TESTED} test rows, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}. Of scikit-learn's layers x folds, as many are timed as the table says, "
        "and the whole is reckoned from them. Accuracy is of the layers timed. Apart: the largest difference of a test "
        f"probability, at the same strength. Up to {options.rounds} rounds."
    )
    lines = [
        "# Probes of all layers against a loop with scikit-learn", "", head, "",
        "| probe | shape | tsprobe | scikit-learn | | timed | over tsprobe | accuracy, ours / theirs | apart |",
        "|---|---|---|---|---|---|---|---|---|", *map(line, rows), "",
    ]  # fmt: skip
    print("\n".join(lines))
    if options.cases is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "probes-cpu.md").write_text("\n".join(lines))
        (RESULTS / "probes-cpu.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
