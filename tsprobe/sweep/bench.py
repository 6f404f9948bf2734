"""What a trial needs: features of the training series, targets, folds. Nothing of the test series is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tsprobe.capture.features import Features
from tsprobe.metrics import get_metric
from tsprobe.probes import base, get_probe
from tsprobe.probes.base import Target
from tsprobe.sweep.space import Choices, Setting
from tsprobe.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Read = tuple[str, str, int | None, str]  # encoder, task, length, channels


@dataclass(frozen=True)
class Question:
    """What is asked of the training series of a task, and their folds, which are those of a study."""

    name: str
    metric: str
    target: Target
    folds: Int[Tensor, " N"]

    @classmethod
    def of(cls, task: Task, folds: int, seed: int) -> Question:
        target = Target(task.kind, torch.from_numpy(task.y_train), task.n_classes)
        return cls(task.name, task.metric, target, torch.from_numpy(task.folds(folds, seed)))

    @property
    def most_neighbours(self) -> int:
        """The largest k that every fit has rows for: half of the rows outside the largest fold; see `held_out`."""
        return (len(self.folds) - int(self.folds.bincount().max())) // 2


@dataclass(frozen=True)
class Bench:
    """Where trials are run. `kept` says where the features lie, `costs` what an encoder costs up to a layer."""

    choices: Choices
    questions: tuple[Question, ...]
    kept: Mapping[Read, Path]
    costs: Mapping[tuple[str, str], float]

    def features(self, setting: Setting, task: str) -> Float[Tensor, "1 N D"]:
        read = setting.encoder, task, setting.length, setting.channels
        return torch.from_numpy(matrix(_loaded(self.kept[read]), setting))[None]

    @property
    def steps(self) -> int:
        """Folds of all tasks."""
        return sum(len(question.folds.unique()) for question in self.questions)

    def scores(self, setting: Setting) -> Iterator[float]:
        """The score after each fold of each task: of the rows predicted so far, a mean over the tasks so far.

        The last one is the score of the setting: of all training rows, each predicted by the fit without its fold. NaN
        where a metric is not defined on the rows so far.
        """
        done: list[float] = []
        for question in self.questions:
            score = np.nan
            for seen, prediction in self.predictions(setting, question):
                score = float(get_metric(question.metric)(question.target.y[seen], prediction[seen]))
                yield float(np.mean([*done, score]))
            done.append(score)

    def predictions(self, setting: Setting, question: Question) -> Iterator[tuple[Tensor, Float[Tensor, "N K"]]]:
        """After each fold, which rows have been predicted, and the predictions."""
        x, y = self.features(setting, question.name), question.target.y
        seen = torch.zeros(len(y), dtype=torch.bool)
        prediction = torch.zeros(len(y), question.target.width, dtype=torch.float64)
        for fold in question.folds.unique():
            out = question.folds == fold
            prediction[out] = held_out(x, question, out, setting)
            seen |= out
            yield seen, prediction

    def cost(self, setting: Setting) -> float:
        """Up to the last layer that is read."""
        return self.costs[setting.encoder, setting.layers[-1]]


def matrix(features: Features, setting: Setting) -> Float[np.ndarray, "N D"]:
    """Features of a setting: poolings side by side, then the mean of the layers, or these side by side."""
    layers = [
        np.concatenate([features.matrix(layer, pooling) for pooling in setting.pooling.split("+")], 1)
        for layer in setting.layers
    ]
    if setting.combine == "mean":
        return np.asarray(np.mean(layers, axis=0, dtype=np.float32))
    return np.concatenate(layers, 1)


def held_out(x: Float[Tensor, "1 N D"], question: Question, out: Tensor, setting: Setting) -> Float[Tensor, "n K"]:
    """Predictions of rows that are `out` by the fit on the others.

    Probes choose a strength on folds of their own; with one strength there is nothing to choose, and two folds do. A
    target that no other row has is predicted by its mean over all rows, as the probes do.
    """
    y = question.target.y
    rest = y[~out]
    if question.target.kind == "classification":
        target = Target(question.target.kind, rest, question.target.n_classes)
        known = torch.ones(question.target.width, dtype=torch.bool)
    else:
        known = ~rest.isnan().all(0)
        target = Target(question.target.kind, rest[:, known], question.target.n_classes)
    folds = torch.arange(len(rest)) % 2
    metric = get_metric(question.metric)
    with scaled(setting):
        readout = get_probe(setting.probe)(x[:, ~out], target, x[:, out], folds, metric, strengths=(setting.strength,))
    prediction = readout.prediction[0].double()
    if known.all():
        return prediction
    filled = y.nanmean(0).expand(len(prediction), -1).clone()
    filled[:, known] = prediction
    return filled


def scaled(setting: Setting) -> AbstractContextManager[None]:
    return nullcontext() if setting.standardise else base.common_scale()


@lru_cache(maxsize=32)
def _loaded(path: Path) -> Features:
    """Kept in memory where they are small; see `Features`."""
    return Features.load(path, check=False)
