"""The features that trials share: every series is read once, by the parent, into the feature store of the folder.

A study's own pair reads and keeps them, so that a reading that was stopped goes on. Test series are read for the chosen
setting alone, when all trials are done.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tsprobe.capture.features import Features
from tsprobe.data.panel import Panel
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, EncoderError, SpecError
from tsprobe.files import kept_json, replace_text
from tsprobe.study import make_spec
from tsprobe.study import provenance as made_by
from tsprobe.study.entries import Entry, plan_entries
from tsprobe.study.pair import Pair
from tsprobe.study.progress import Stage
from tsprobe.sweep import costs
from tsprobe.sweep.bench import Bench, Question, Read
from tsprobe.sweep.space import Choices, Setting, known_layers
from tsprobe.sweep.spec import Between, Strengths, SweepSpec, pooled_together
from tsprobe.tasks import load_tasks
from tsprobe.tasks.base import Task

KINDS = ("classification", "multilabel", "regression")


@dataclass
class Reader:
    """Encoders and tasks of a sweep, and what was found on the way; `facts` are of the encoders."""

    spec: SweepSpec
    folder: Path
    device: str
    stage: Stage
    entries: list[Entry]
    tasks: dict[str, Task]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: SweepSpec,
        folder: Path,
        device: str,
        stage: Stage,
        encoders: Mapping[str, Encoder],
        tasks: Mapping[str, Task],
    ) -> Reader:
        """Raises what loading raises, and `SpecError` for what a sweep does not search."""
        loaded = load_tasks(spec.tasks, tasks)
        for task in loaded.values():
            if task.dense or task.kind not in KINDS:
                raise SpecError(
                    f"{task.name}: a sweep takes tasks of whole series, {' or '.join(KINDS)}; this is {task.kind}"
                )
            missing = task.train.missing + task.test.missing
            if missing and spec.missing == "error":
                raise DataError(
                    f"{task.name}: {missing} values are missing or not finite, and missing values are refused"
                )
        metrics = {task.metric for task in loaded.values()}
        if len(metrics) > 1:
            raise SpecError(
                f"a mean over tasks needs one metric, not {', '.join(sorted(metrics))}; sweep these tasks one by one"
            )
        entries = plan_entries(
            make_spec({"encoders": spec.encoders, "tasks": spec.tasks, "controls": []}), dict(encoders)
        )
        for entry in entries:
            if entry.role == "baseline":
                raise SpecError(f"{entry.name} has no layers to search; take an encoder")
        return cls(spec, folder, device, stage, entries, loaded)

    def bench(self) -> Bench:
        """Read the training series of every task with every encoder, as often as the space asks."""
        spec = self.spec
        kept: dict[Read, Path] = {}
        costly: dict[tuple[str, str], float] = {}
        layers: dict[str, tuple[str, ...]] = {}
        for entry in self.entries:
            encoder = self._load(entry)
            trunk = tuple(layer.name for layer in encoder.layers if layer.depth is not None)
            layers[entry.name] = known_layers(entry.name, trunk, tuple(encoder.taps), spec.space.layers)
            for pair, length, channels in self._pairs(encoder):
                features = pair.encoder_features(encoder, "train")
                self._refuse_widths(entry.name, layers[entry.name], features)
                path = pair.feature_path(pair.task.train.fingerprint(), pair.reading("train"))
                kept[entry.name, pair.task.name, length, channels] = path
            if spec.cost:
                costly |= self._costs(encoder, layers[entry.name])
            del encoder, pair
            gc.collect()
        questions = tuple(Question.of(task, spec.folds, spec.seed) for task in self.tasks.values())
        choices = Choices(spec.space, layers, _strengths(spec.space.probes, questions))
        return Bench(choices, questions, kept, costly)

    def test_features(self, setting: Setting) -> dict[str, tuple[Features, Features]]:
        """Of each task, of the training and of the test series, read as the setting reads them."""
        encoder = self._load(next(entry for entry in self.entries if entry.name == setting.encoder))
        return {
            pair.task.name: (pair.encoder_features(encoder, "train"), pair.encoder_features(encoder, "test"))
            for pair, length, channels in self._pairs(encoder)
            if (length, channels) == (setting.length, setting.channels)
        }

    def cost(self, setting: Setting) -> dict[str, Any]:
        """Of the encoder cut behind the last layer that is read, and of the whole."""
        encoder = self._load(next(entry for entry in self.entries if entry.name == setting.encoder))
        upto, known = setting.layers[-1], dict[str, float | str]()
        for kind in costs.KINDS:
            try:
                known[kind] = costs.cost(encoder, upto, self._panel, kind)
            except EncoderError as error:  # it cannot be cut there, which the readout does not need
                known[kind] = str(error)
        whole = {"parameters": costs.parameters(encoder), "latency": costs.latency(encoder, self._panel)}
        return {"upto": upto, **known, "whole": whole}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the weights and the data that trials are about."""
        of_encoders = {name: facts["weights_sha256"] for name, facts in self.facts.items()}
        return of_encoders | {name: task.fingerprint() for name, task in self.tasks.items()}

    @property
    def _panel(self) -> Panel:
        return next(iter(self.tasks.values())).train

    def _costs(self, encoder: Encoder, layers: tuple[str, ...]) -> dict[tuple[str, str], float]:
        """Measured once: a sweep that goes on must not compare with other times."""
        kind, path = str(self.spec.cost), self.folder / "costs.json"
        kept = kept_json(path)
        key = f"{encoder.name} {self.facts[encoder.name]['weights_sha256']} {kind}"
        if set(kept.get(key, {})) != set(layers):
            kept[key] = {name: costs.cost(encoder, name, self._panel, kind) for name in layers}
            replace_text(path, json.dumps(kept, indent=1))
        return {(encoder.name, name): value for name, value in kept[key].items()}

    def _load(self, entry: Entry) -> Encoder:
        encoder = entry.load(self.device)
        assert isinstance(encoder, Encoder)
        if entry.name not in self.facts:
            self.facts[entry.name] = made_by.describe_encoder(encoder, encoder.fingerprint())
        return encoder

    def _pairs(self, encoder: Encoder) -> Iterator[tuple[Pair, int | None, str]]:
        spec, space = self.spec, self.spec.space
        for task, length, channels in itertools.product(self.tasks.values(), space.lengths, space.channels):
            study = make_spec(
                {
                    "encoders": [encoder.name], "tasks": [task.name], "controls": [], "layers": space.layers,
                    "poolings": pooled_together(space.poolings), "channels": channels, "missing": spec.missing,
                    "rows": spec.rows, "diagnostics": "none", "features": "kept",
                }
            )  # fmt: skip
            fingerprint = self.facts[encoder.name]["weights_sha256"]
            yield Pair(encoder, fingerprint, shortened(task, length), study, self.folder, self.stage), length, channels

    def _refuse_widths(self, encoder: str, layers: tuple[str, ...], features: Features) -> None:
        pooling = features.poolings[0]
        widths = sorted({features.matrix(layer, pooling).shape[1] for layer in layers})
        if "mean" in self.spec.space.combine and len(widths) > 1:
            raise SpecError(
                f"layers of {encoder} are {' and '.join(map(str, widths))} wide, which have no mean; name layers of "
                "one width, or drop mean from space.combine"
            )


def shortened(task: Task, length: int | None) -> Task:
    """The task with the last so many steps of each series."""
    if length is None:
        return task
    parts = (Panel(tuple(x[:, -length:].copy() for x in panel.series)) for panel in (task.train, task.test))
    train, test = parts
    return replace(task, train=train, test=test)


def _strengths(
    probes: Mapping[str, Strengths], questions: tuple[Question, ...]
) -> dict[str, tuple[float, ...] | Between]:
    """Those that are named, or the grid of a study. Raises `SpecError` for more neighbours than a fit has rows for."""
    most = min(question.most_neighbours for question in questions)
    found: dict[str, tuple[float, ...] | Between] = {}
    for name, given in probes.items():
        grid = tuple(map(float, importlib.import_module(f"tsprobe.probes.{name}").STRENGTHS))
        strengths = given or (tuple(k for k in grid if k <= most) if name == "knn" else grid)
        highest = strengths.high if isinstance(strengths, Between) else max(strengths, default=1)
        if name == "knn" and (highest > most or not strengths):
            raise SpecError(f"knn with {highest:g} neighbours: folds of these tasks leave room for {most} at most")
        found[name] = strengths
    return found
