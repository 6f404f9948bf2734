"""The setting that was chosen on inner folds, on the test series; and intervals of scores over several tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsprobe.capture.features import Features
from tsprobe.metrics import Metric, get_metric
from tsprobe.probes import get_probe
from tsprobe.stats import resample_counts, resampled_scores, score_interval
from tsprobe.sweep.bench import Bench, matrix, scaled
from tsprobe.sweep.space import Setting
from tsprobe.tasks.base import Task

if TYPE_CHECKING:
    pass

Scored = tuple[Metric, Tensor, Tensor]  # of a task: metric, targets [N, ...], predictions [N, K]


def judge(
    bench: Bench,
    setting: Setting,
    tasks: Mapping[str, Task],
    features: Mapping[str, tuple[Features, Features]],
    resamples: int,
) -> dict[str, Any]:
    """Test score and interval of each task, and of their mean. The one place where test targets are looked at."""
    scored: list[Scored] = []
    rows: list[dict[str, Any]] = []
    for question in bench.questions:
        task = next(task for task in tasks.values() if task.name == question.name)
        x, x_test = (torch.from_numpy(matrix(part, setting))[None] for part in features[question.name])
        metric = get_metric(question.metric)
        with scaled(setting):
            readout = get_probe(setting.probe)(
                x, question.target, x_test, question.folds, metric, strengths=(setting.strength,)
            )
        prediction, y = readout.prediction[0].float(), torch.from_numpy(task.y_test)
        scored.append((metric, y, prediction))
        counts = resample_counts(len(y), resamples, seed=0)
        low, high = score_interval(metric, y, prediction[None], counts)
        rows.append(
            {
                "task": task.name,
                "metric": metric.name,
                "score": float(metric(y, prediction)),
                "low": low,
                "high": high,
                "n": len(y),
            }
        )
    low, high = mean_interval(scored, resamples)
    return {"score": sum(row["score"] for row in rows) / len(rows), "low": low, "high": high, "tasks": rows}


def inner_interval(bench: Bench, setting: Setting, resamples: int) -> tuple[float, float]:
    """Of the score on inner folds: the training rows are what is drawn."""
    scored: list[Scored] = []
    for question in bench.questions:
        *_, (_, prediction) = bench.predictions(setting, question)
        scored.append((get_metric(question.metric), question.target.y, prediction))
    return mean_interval(scored, resamples)


def mean_interval(scored: Sequence[Scored], resamples: int, coverage: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean score over tasks, whose rows are drawn independently."""
    drawn = [
        resampled_scores(metric, y, prediction[None], resample_counts(len(y), resamples, seed=i))
        for i, (metric, y, prediction) in enumerate(scored)
    ]
    means = torch.stack(drawn).mean(0)
    known = means[~means.isnan()]  # a resample may lack a class, and then has no score
    if not len(known) or any(part[1].shape[0] < 2 for part in scored):
        return math.nan, math.nan
    tail = (1 - coverage) / 2
    low, high = torch.quantile(known, torch.tensor([tail, 1 - tail], dtype=known.dtype)).tolist()
    return low, high
