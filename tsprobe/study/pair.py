"""One encoder on one task: features of every layer, then a cell for each pooling, probe and seed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprobe.capture import Features, Reading, Steps, coarse_layers, extract
from tsprobe.capture.store import DamagedError, UnfinishedError
from tsprobe.capture.windows import cut, interpolate
from tsprobe.data.panel import Panel
from tsprobe.diagnostics import TokenWatch
from tsprobe.encoders.base import Encoder
from tsprobe.encoders.baselines import LAYER, Baseline, Chance, windows
from tsprobe.errors import warn_damaged
from tsprobe.files import read_json, replace_text, safe_name
from tsprobe.metrics import get_metric
from tsprobe.pooling import Slots
from tsprobe.probes import base, get_probe, probes_for
from tsprobe.probes.base import Target
from tsprobe.study import checked, diagnosed, streamed
from tsprobe.study.cells import Cell, CellKey, cell_path
from tsprobe.study.progress import Stage
from tsprobe.study.spec import StudySpec
from tsprobe.tasks.base import Task

CellPlace = tuple[str, str, int]  # pooling, probe and seed
Stack = tuple[tuple[str, ...], np.ndarray]  # layers of equal width, [G, N, D]


@dataclass(frozen=True)
class Pair:
    """An encoder and a task within a study's folder."""

    encoder: Encoder | Baseline
    fingerprint: str  # the encoder's; hashing its weights once serves all tasks
    task: Task
    spec: StudySpec
    folder: Path
    stage: Stage
    # what the passes without kept features gave, if they were made elsewhere
    read: streamed.Streamed | None = field(default=None, kw_only=True)

    def reading(self, split: str) -> Reading:
        spec = self.spec
        at = getattr(self.task, f"steps_{split}")
        if at is None:
            return Reading(spec.poolings, spec.channels, spec.missing, spec.rows)
        steps = Steps(at, self.task.causal)
        return Reading((steps.pooling,), spec.channels, spec.missing, spec.rows, steps)

    @property
    def final(self) -> str:
        """The layer that every other is compared with."""
        if self.task.dense and isinstance(self.encoder, Encoder):
            return self.encoder.final_of_steps
        return self.encoder.final

    @cached_property
    def layers(self) -> tuple[str, ...] | None:
        """The layers that the spec names, and always the final one, which every other is compared with.

        A dense task has no use for layers with one token a series. Raises `EncoderError` where the final one is such.
        """
        named, final = self.spec.layers, self.final
        layers = named if named is None or final in named else (*named, final)
        if not self.task.dense or isinstance(self.encoder, Baseline) or hasattr(self.encoder, "stream"):
            return layers
        layers = tuple(self.encoder.taps) if layers is None else layers
        coarse = coarse_layers(self.encoder, self.task.train, layers)
        return tuple(layer for layer in layers if layer not in coarse or layer == final)

    @property
    def poolings(self) -> tuple[str, ...]:
        """A baseline has features already, and nothing to pool; a dense task reads steps.

        A language model reads tokens: where poolings by segments are asked for, only these are given to it.
        """
        if self.task.dense:
            return ("causal",) if self.task.causal else ("steps",)
        if isinstance(self.encoder, Baseline):
            return ("mean",)
        segments = tuple(name for name in self.spec.poolings if name.startswith("segments"))
        return segments if segments and self.task.asked is not None else self.spec.poolings

    def _given(self, probe: str) -> tuple[str, ...]:
        """The poolings that a probe is given. The attentive one reads tokens, as a language model does."""
        segments = tuple(name for name in self.poolings if name.startswith("segments"))
        return segments if segments and probe == "attentive" else self.poolings

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """Of the training and the test series; from disk where another task with the same series has read them."""
        if isinstance(self.encoder, Baseline):
            return self._baseline_features(self.encoder)
        return self.encoder_features(self.encoder, "train"), self.encoder_features(self.encoder, "test")

    def encoder_features(self, encoder: Encoder, split: str) -> Features:
        panel: Panel = getattr(self.task, split)
        reading = self.reading(split)
        path = self.feature_path(panel.fingerprint(), reading)
        features = _kept(path)
        if features is None:
            windows = len(cut(panel, encoder.facts, encoder.name))
            with self.stage(f"{encoder.name} reads {self.task.name} ({split})", windows) as advance:
                watch = self.watch if split == "train" else None
                features = extract(
                    encoder, panel, reading, layers=self.layers, progress=advance, store=path, watch=watch
                )
        return features

    def _baseline_features(self, baseline: Baseline) -> tuple[Features, Features]:
        """A baseline is fitted on the training series, so that both parts depend on both panels.

        For a dense task the series are windows of the raw signal, one for each step that is asked about.
        """
        panels = self.task.train, self.task.test
        both = "".join(panel.fingerprint() for panel in panels)
        readings = [self.reading(split) for split in ("train", "test")]
        steps = [reading.steps for reading in readings]
        paths = [
            self.feature_path(split + both, reading) for split, reading in zip(("train", "test"), readings, strict=True)
        ]
        train, test = map(_kept, paths)
        if train is None or test is None:
            begin = time.perf_counter()
            series = [[interpolate(s) for s in panel.series] for panel in panels]
            names = ["mean" if at is None else at.pooling for at in steps]
            if self.task.dense:
                baseline = baseline.of_windows()
                series = [windows(part, at) for part, at in zip(series, steps, strict=True) if at is not None]
            with self.stage(f"{baseline.name} reads {self.task.name}", 1):
                matrices = baseline.features(*series)
            seconds = round(time.perf_counter() - begin, 3), 0.0  # of both parts together
            notes = {"missing_values": 0, "missing_handling": "interpolated"}
            train, test = (
                Features({LAYER: m.reshape(len(panel), -1, m.shape[1])}, (name,), notes | {"seconds": took})
                for m, panel, name, took in zip(matrices, panels, names, seconds, strict=True)
            )
            for features, path in zip((train, test), paths, strict=True):
                features.save(path)
        return train, test

    def feature_path(self, fingerprint: str, reading: Reading) -> Path:
        key = json.dumps([fingerprint, self.fingerprint, repr(reading), self.spec.layers])
        return (
            self.folder / "features" / safe_name(self.encoder.name) / f"{safe_name(key)[-8:]}-{fingerprint[:16]}.zarr"
        )

    @property
    def places(self) -> list[CellPlace]:
        """Pooling, probe and seed of every cell."""
        probes = [name for name in self.spec.probes if self.task.kind in probes_for(name)]
        return [(p, q, s) for p in self.poolings for q in probes if p in self._given(q) for s in self.spec.seeds]

    def kept(self, place: CellPlace) -> Cell | None:
        """The cell that lies on disk."""
        return Cell.load(cell_path(self.folder, self.encoder.name, self.task.name, *place), self._key(*place))

    def cells(self, places: Sequence[CellPlace] | None = None) -> Iterator[tuple[str, str, int, Cell]]:
        """All cells, or some, with their places: those on disk as they are, the others computed and saved."""
        todo = self.places if places is None else places
        with self.stage(f"{self.encoder.name} on {self.task.name}", len(todo)) as advance:
            for pooling, probe, seed in todo:
                cell = self.kept((pooling, probe, seed))
                if cell is None:
                    if self.passes is not None:
                        cell = self._streamed.cells[pooling, seed]
                    else:
                        cell = self._compute(pooling, probe, seed)
                    path = cell_path(self.folder, self.encoder.name, self.task.name, pooling, probe, seed)
                    cell.save(path, self._key(pooling, probe, seed))
                advance(1)
                yield pooling, probe, seed, cell

    def _key(self, pooling: str, probe: str, seed: int) -> CellKey:
        spec = self.spec
        return CellKey(
            self.fingerprint, self.task.fingerprint(), spec.layers, spec.poolings, spec.channels,
            pooling, probe, seed, spec.folds, "kept" if self.passes is None else "statistics",
        )  # fmt: skip

    def row_folds(self, seed: int) -> np.ndarray:
        """The fold of each training row: that of its series."""
        return self.task.folds(self.spec.folds, seed)[self.task.rows("train").series]

    @cached_property
    def passes(self) -> streamed.Passes | None:
        """How to do without kept features; None where they are kept, as a baseline's always are."""
        spec = self.spec
        if isinstance(self.encoder, Baseline) or spec.features == "kept" or set(spec.probes) != {"ridge"}:
            return None
        folds = {seed: self.row_folds(seed) for seed in spec.seeds}
        readings = {split: self.reading(split) for split in ("train", "test")}
        passes = streamed.Passes(self.encoder, self.task, readings, self.poolings, self.layers, folds)
        return passes if spec.features == "statistics" or streamed.pays(passes) else None

    @cached_property
    def _streamed(self) -> streamed.Streamed:
        if self.read is not None:
            return self.read
        assert self.passes is not None
        encoder, task = self.passes.encoder, self.task
        windows = [len(cut(panel, encoder.facts, encoder.name)) for panel in (task.train, task.test)]
        with self.stage(f"{encoder.name} reads {task.name}", sum(windows)) as advance:
            return streamed.read(self.passes, self.diagnosed, advance, self.watch)

    @cached_property
    def watch(self) -> TokenWatch | None:
        """What looks at tokens while the training series are read."""
        if isinstance(self.encoder, Baseline):
            return None
        return diagnosed.token_watch(self.encoder, self.task.train, self.spec.diagnostics)

    @property
    def diagnosed(self) -> np.ndarray:
        """Rows of the training samples that the diagnostics look at."""
        return diagnosed.sampled(len(self.task.rows("train").at))

    def _compute(self, pooling: str, probe: str, seed: int) -> Cell:
        if self.task.guess is not None and isinstance(self.encoder, Chance):
            return self._guessed(*self.task.guess)
        train = self.features[0]
        begin = time.perf_counter()
        folds = torch.from_numpy(self.row_folds(seed))
        rows: dict[str, dict[str, Any]] = {}
        for (layers, x), (_, x_test) in self._stacks(pooling):  # layers of equal width share one solve
            rows |= self._solve(probe, pooling, layers, torch.from_numpy(x), torch.from_numpy(x_test), folds)
        columns = {k: np.array([rows[layer][k] for layer in train.layers]) for k in rows[train.layers[0]]}
        return Cell(layers=train.layers, seconds=round(time.perf_counter() - begin, 3), **columns)

    def _guessed(self, train: np.ndarray, test: np.ndarray) -> Cell:
        """The cell of a guess that needs no readout, predictions `[N, K]` of the training and of the test rows."""
        metric, prediction, none = get_metric(self.task.metric), test.astype(np.float32), np.full(1, np.nan)
        parts = (self.task.rows("train"), train), (self.task.rows("test"), prediction)
        inner, score = (
            metric(torch.from_numpy(r.y), torch.from_numpy(p)[None], series=torch.from_numpy(r.series)).numpy()
            for r, p in parts
        )
        return Cell((LAYER,), inner, none, score, prediction[None], none, seconds=0.0)

    @cached_property
    def _stacks(self) -> Callable[[str], list[tuple[Stack, Stack]]]:
        """Layers of equal width, of the training and the test series; those of the last pooling stay in memory."""
        parts = [
            (features, self.task.rows(split)) for features, split in zip(self.features, ("train", "test"), strict=True)
        ]

        @lru_cache(maxsize=1)
        def stacks(pooling: str) -> list[tuple[Stack, Stack]]:
            found = [
                [
                    (layers, rows.take(x))
                    for layers, x in features.stacks(features.poolings[0] if self.task.dense else pooling)
                ]
                for features, rows in parts
            ]
            return list(zip(*found, strict=True))

        return stacks

    def _solve(
        self,
        probe: str,
        pooling: str,
        layers: tuple[str, ...],
        x: torch.Tensor,
        x_test: torch.Tensor,
        folds: torch.Tensor,
    ) -> dict[str, dict[str, Any]]:
        """The columns of a cell for layers of equal width: `x [G, N, D]`, `x_test [G, M, D]`, `folds [N]`."""
        task, metric = self.task, get_metric(self.task.metric)
        device = "cpu" if isinstance(self.encoder, Baseline) else self.encoder.device
        units = None if task.units is None else (torch.from_numpy(task.units[0]), torch.from_numpy(task.units[1]))
        rows, test_rows = task.rows("train"), task.rows("test")
        steps, test_steps = (torch.from_numpy(r.series) if task.dense else None for r in (rows, test_rows))
        tokens = 1 if task.dense else Slots.parse((pooling,)).segments or 1
        asked_at = self._asked_at if task.dense else None
        target = Target(task.kind, torch.from_numpy(rows.y), task.n_classes, units, steps, task.asked, tokens, asked_at)
        readout = get_probe(probe)(x.to(device), target, x_test.to(device), folds, metric)
        chosen = readout.chosen.cpu()
        inner = readout.inner.cpu().gather(1, chosen[:, None])[:, 0]
        norms = torch.full((len(layers),), torch.nan) if readout.gradient_norm is None else readout.gradient_norm.cpu()
        prediction = readout.prediction.cpu().float()
        score = metric(torch.from_numpy(test_rows.y), prediction, series=test_steps)
        return {
            layer: {
                "inner": float(inner[i]),
                "strength": readout.strengths[int(chosen[i])],
                "score": float(score[i]),
                "prediction": prediction[i].numpy(),
                "gradient_norm": float(norms[i]),
            }
            for i, layer in enumerate(layers)
        }

    @property
    def _asked_at(self) -> base.Steps:
        """Of a dense task, the series and the time of each row."""
        pairs = [(self.task.rows(split), getattr(self.task, f"steps_{split}")) for split in ("train", "test")]
        series, times = zip(
            *((torch.from_numpy(rows.series), torch.from_numpy(at.ravel()[rows.at])) for rows, at in pairs), strict=True
        )
        return base.Steps(series, times, self.task.causal)

    @property
    def _details_path(self) -> Path:
        return cell_path(self.folder, self.encoder.name, self.task.name, "", "", 0).with_name("details.json")

    def _details_key(self) -> str:
        return f"{self._key('', '', 0).digest()} {json.dumps(self.spec.diagnostics.model_dump(mode='json'))}"

    def kept_details(self) -> dict[str, Any] | None:
        """Those that lie on disk."""
        try:
            kept = read_json(self._details_path)
            return checked.details(kept) if kept.get("key") == self._details_key() else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            warn_damaged(self._details_path, error)
            return None

    def details(self) -> dict[str, Any]:
        """`notes` on what was read, and what `diagnosed.diagnose` gives. Kept beside the cells."""
        kept = self.kept_details()
        if kept is None:
            if self.passes is not None:
                notes = self._streamed.notes
            else:
                notes = {
                    split: features.notes for split, features in zip(("train", "test"), self.features, strict=True)
                }
            kept = {"key": self._details_key(), "notes": notes, **self._diagnosis()}
            replace_text(self._details_path, json.dumps(kept))
        return kept

    def _diagnosis(self) -> dict[str, Any]:
        if isinstance(self.encoder, Baseline) or not self.spec.diagnostics.names:
            return {"diagnostics": [], "cka": {}, "views": ""}
        if self.passes is not None:
            return diagnosed.diagnose(self, self._streamed.sample, self.diagnosed, taken=True, kept=None)
        beside = self.feature_path(self.task.train.fingerprint(), self.reading("train")).with_suffix(".tokens.json")
        return diagnosed.diagnose(self, self.features[0], self.diagnosed, taken=False, kept=beside)


def _kept(path: Path) -> Features | None:
    """The features of an earlier run or of another task with the same series; what is damaged is made again."""
    if path.exists():
        try:
            return Features.load(path)
        except UnfinishedError:
            pass
        except DamagedError as error:
            warn_damaged(path, error)
    return None
