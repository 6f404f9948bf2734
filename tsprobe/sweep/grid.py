"""All settings of a finite space on the same inner folds, for comparison: a solve gives all strengths at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe
from tsprobe.sweep.bench import Bench, scaled
from tsprobe.sweep.space import Setting
from tsprobe.sweep.trials import NO_SCORE

TOGETHER = 2**24  # numbers in the features that are solved together


def score_grid(bench: Bench, advance: Callable[[int], None]) -> dict[Setting, float]:
    """Every setting with its score; NaN where it has none."""
    found: dict[Setting, list[float]] = {}
    for same in _solved_together(bench):
        strengths = tuple(dict.fromkeys(setting.strength for setting in same))
        readouts = same[:: len(strengths)]
        for question in bench.questions:
            x = torch.cat([bench.features(setting, question.name) for setting in readouts])
            try:
                with scaled(same[0]):
                    readout = get_probe(same[0].probe)(
                        x, question.target, x[:, :1], question.folds, get_metric(question.metric), strengths=strengths
                    )
                scores = readout.inner.flatten().tolist()
            except NO_SCORE:
                scores = [np.nan] * len(same)
            for setting, score in zip(same, scores, strict=True):
                found.setdefault(setting, []).append(score)
        advance(len(same))
    return {setting: float(np.mean(scores)) for setting, scores in found.items()}


def _solved_together(bench: Bench) -> Iterator[list[Setting]]:
    """Settings of one probe and scale with features of one width, in chunks, all strengths of a readout in a row."""

    def kind(setting: Setting) -> tuple[object, ...]:
        return setting.encoder, setting.length, setting.channels, setting.probe, setting.standardise

    by_kind: dict[tuple[object, ...], list[Setting]] = {}
    for setting in bench.choices.settings():
        by_kind.setdefault(kind(setting), []).append(setting)
    for same in by_kind.values():
        by_size: dict[tuple[int, ...], list[list[Setting]]] = {}
        for _, group in itertools.groupby(same, lambda setting: setting.features):
            of_one = list(group)
            sizes = tuple(bench.features(of_one[0], question.name).shape[2] for question in bench.questions)
            by_size.setdefault(sizes, []).append(of_one)
        for sizes, readouts in by_size.items():
            rows = max(len(question.folds) for question in bench.questions)
            step = max(1, TOGETHER // (rows * max(sizes)))
            for begin in range(0, len(readouts), step):
                yield list(itertools.chain.from_iterable(readouts[begin : begin + step]))
