"""The one trainer for all recipes: steps, held-out looks, checkpoints; a stopped run goes on to the same losses.

A folder `encoder/` beside `checkpoint.pt` and `losses.csv` is written at the end. The weights that are kept are those
of the best held-out look, the start among them: tuning that only makes things worse changes nothing.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsprobe.alignment.pretext import Pretext
from tsprobe.alignment.processes import ALONE, Processes
from tsprobe.alignment.recipes import RECIPES, Layers, Targets
from tsprobe.alignment.series import HELD_OUT, Labelled, Lesson, Lessons, lessons_of
from tsprobe.alignment.spec import AlignSpec
from tsprobe.alignment.student import Student
from tsprobe.alignment.words import Words
from tsprobe.encoders import aligned
from tsprobe.encoders.base import Encoder
from tsprobe.errors import EncoderError
from tsprobe.files import replace_file, replace_text
from tsprobe.pretraining.train import CHECKPOINT, rate, take_up
from tsprobe.tasks.base import Task

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Note = Callable[[str, list[dict[str, float]]], None]
"""Of a tuning's name, and rows of its losses with `step` and `held_out`."""

LOOKS = 8  # at held-out series, the one before the first step not counted
_LESSONS = 4  # batches of a look, and of the statistics that tokens are standardised with


class Tuning:
    """All that changes while a student learns from a frozen encoder, or, with `pretext`, as it did in pretraining."""

    def __init__(
        self,
        spec: AlignSpec,
        encoder: Encoder,
        teachers: tuple[str, ...],
        tasks: list[Task],
        *,
        pretext: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.spec, self.base, self.device, self.processes = spec, encoder, encoder.device, processes
        self.lessons: Lessons
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            if RECIPES[spec.recipe].labelled:
                self.lessons = Labelled(encoder, tasks, spec.seed)
            else:
                self.lessons = lessons_of(encoder, [task.train for task in tasks], spec, segments=spec.segmented)
            self.looks = [self.lessons.lesson(HELD_OUT + i, spec.batch) for i in range(_LESSONS)]
            self.student = Student(
                encoder, aligned.Tuned(spec.encoder, spec.recipe, _learned_from(spec, self.lessons)), mask=spec.mask,
                mask_block=spec.mask_block, stochastic_depth=spec.stochastic_depth, layer_scale=spec.layer_scale,
                rank=spec.rank if spec.tuning == "lora" else 0, targets=spec.targets,
                checkpointing=spec.checkpointing,
            )  # fmt: skip
            self.criterion: Layers | Targets | Words | Pretext
            if pretext:
                self.criterion = Pretext(encoder, self.student.encoder.module)
            elif spec.recipe == "language":
                self.criterion = Words(encoder, tasks, self.looks, decoder=spec.decoder, seed=spec.seed)
            elif RECIPES[spec.recipe].labelled:
                self.criterion = Targets(encoder, tasks, self._width())
            else:
                self.criterion = Layers(encoder, teachers, self.looks, locality=spec.locality)
        self.criterion.to(encoder.device)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in part.parameters() if p.requires_grad], "share": share}
            for part, share in ((self.student.encoder.module, 1.0), (self.criterion, spec.head_rate))
        ]
        self.weights = [p for group in groups for p in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, spec.rate, (0.9, 0.95), weight_decay=spec.decay)
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, torch.Tensor]] = math.inf, {}

    def _width(self) -> int:
        inputs = self.base.prepare(self.looks[0].batch.to(self.base.device))
        with torch.no_grad():
            return self.student.tokens(inputs, tuning=False).shape[-1]

    def losses(self, lesson: Lesson, *, tuning: bool, seed: int = 0) -> dict[str, torch.Tensor]:
        if isinstance(self.criterion, Pretext):
            return self.criterion(self.student.encoder.module, lesson, seed)
        inputs = self.base.prepare(lesson.batch.to(self.base.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            return self.criterion(self.student.tokens(inputs, tuning=tuning, seed=seed), inputs, lesson)

    def advance(self) -> None:
        """One step. Raises `EncoderError` where the loss is not finite; the weights are those before it."""
        spec = self.spec
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, spec) * group["share"]
        if isinstance(self.criterion, Words):
            self.criterion.waits = self.step < spec.projector_first
        number = self.step * self.processes.size + self.processes.rank  # of the lesson: each process has its own
        parts = self.losses(self.lessons.lesson(number, spec.batch), tuning=True, seed=spec.seed * 1_000_003 + number)
        total = torch.stack(list(parts.values())).sum()
        if not bool(total.isfinite()):
            found = ", ".join(f"{name} {float(value.detach()):g}" for name, value in parts.items())
            raise EncoderError(
                f"{self.base.name}: the loss of batch {number} is not finite ({found}); "
                "the last good checkpoint is kept"
            )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        self.processes.average(self.weights)
        nn.utils.clip_grad_norm_(self.weights, spec.clip)
        self.optimiser.step()
        self.step += 1
        if isinstance(self.criterion, Pretext):
            self.criterion.after_step(self.student.encoder.module, self.step / spec.steps)
        self.rows.append(
            {"step": self.step, "held_out": 0} | {name: float(value.detach()) for name, value in parts.items()}
        )

    def look(self) -> None:
        """The mean loss of held-out series, nothing hidden and no block left out; keeps the best weights."""
        with torch.no_grad():
            found = [self.losses(lesson, tuning=False) for lesson in self.looks]
        parts: dict[str, list[float]] = {}
        for one in found:
            for name, value in one.items():
                parts.setdefault(name, []).append(float(value))
        means = {name: sum(values) / len(values) for name, values in parts.items()}
        self.rows.append({"step": self.step, "held_out": 1} | means)
        if sum(means.values()) < self.best[0]:
            state = self.student.encoder.module.state_dict()
            self.best = sum(means.values()), {name: value.detach().clone() for name, value in state.items()}

    def state(self) -> dict[str, Any]:
        return {
            "spec": self.spec.dump(), "step": self.step, "rows": self.rows, "best": self.best,
            "module": self.student.encoder.module.state_dict(), "criterion": self.criterion.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.rows, self.best = state["step"], state["rows"], tuple(state["best"])
        self.student.encoder.module.load_state_dict(state["module"])
        self.criterion.load_state_dict(state["criterion"])
        self.optimiser.load_state_dict(state["optimiser"])


def tune(
    tuning: Tuning,
    folder: Path,
    *,
    stage: Stage,
    name: str,
    until: int | None = None,
    note: Note | None = None,
) -> Encoder | None:
    """Tune to the end, going on where a stopped run was, and give the encoder that `folder/encoder` then holds.

    `note` is given the rows of `losses.csv` at every look, at first those that a stopped run left. `until` stops after
    that many steps, as a killed run would, and gives None. Raises `SpecError` where the folder holds another run,
    `EncoderError` for a loss that is not finite.
    """
    spec = tuning.spec
    take_up(tuning, folder)
    if not tuning.rows:
        tuning.look()
    told, writes = 0, tuning.processes.first
    with stage(name, spec.steps) as advance:
        advance(tuning.step)
        kept = time.monotonic()
        while tuning.step < min(spec.steps, until or spec.steps):
            try:
                tuning.advance()
            except EncoderError:
                if writes:
                    _keep(tuning, folder)
                raise
            if tuning.step % max(1, spec.steps // LOOKS) == 0 or tuning.step == spec.steps:
                tuning.look()
                if note is not None:
                    note(name, tuning.rows[told:])
                    told = len(tuning.rows)
            advance(1)
            if writes and time.monotonic() - kept > spec.keep_every:
                _keep(tuning, folder)
                kept = time.monotonic()
    if writes:
        _keep(tuning, folder)
    if tuning.step < spec.steps:
        return None
    module = tuning.student.encoder.module
    module.load_state_dict(tuning.best[1])
    tuning.student.merge()
    if writes:
        tuning.student.encoder.save(folder / "encoder")
    tuning.processes.wait()
    return aligned.Aligned.load(str(folder / "encoder"), base=tuning.base)


def _learned_from(spec: AlignSpec, lessons: Lessons) -> str:
    if spec.labelled:
        return f"training targets of {', '.join(spec.labelled)}"
    of = f" of {', '.join(spec.series)}" if spec.series else ""
    return f"{spec.steps * spec.batch} {lessons.what}{of}, no labels"


def _keep(tuning: Tuning, folder: Path) -> None:
    replace_file(folder / CHECKPOINT, lambda handle: torch.save(tuning.state(), handle))
    names = list(dict.fromkeys(name for row in tuning.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(tuning.rows)
    replace_text(folder / "losses.csv", text.getvalue())
