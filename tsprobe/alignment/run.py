"""From a spec to a folder: the study before, the teacher, the tuning, the study after, and what came of it.

With several seeds the first is tuned and studied in the folder itself, the others in `seeds/N/`; controls in
`controls/NAME/` of each. What is finished is not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tsprobe.alignment import families
from tsprobe.alignment.free import Free, why_not
from tsprobe.alignment.lift import COLUMNS, After, Before, Compared
from tsprobe.alignment.pretext import why_unknown
from tsprobe.alignment.processes import ALONE, Processes
from tsprobe.alignment.recipes import RECIPES
from tsprobe.alignment.series import lessons_of
from tsprobe.alignment.spec import CONTROLS, CUT, AlignSpec
from tsprobe.alignment.teachers import find_teachers
from tsprobe.alignment.train import Note, Tuning, tune
from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import DataError, EncoderError
from tsprobe.files import alone, replace_text
from tsprobe.report.alignment import write_alignment_report
from tsprobe.study import make_spec, run_study
from tsprobe.study import provenance as made_by
from tsprobe.study.pair import Pair
from tsprobe.study.result import write_table
from tsprobe.study.run import pick_device
from tsprobe.study.spec import StudySpec
from tsprobe.tasks import load_task
from tsprobe.tasks.base import Task

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

BEFORE, AFTER, ENCODER, SEEDS, OF_CONTROLS = "before", "after", "encoder", "seeds", "controls"
BY_SEED = "lift_by_seed.csv"
_FILES = ("checkpoint.pt", "losses.csv", "lift.csv", BY_SEED, families.FILE, "spec.yaml", "provenance.json")


@dataclass(frozen=True)
class Outcome:
    """What an alignment left in its folder. `encoder` is None where nothing was hidden, and nothing was tuned.

    `left_out` says in a line each which controls could not be had, and why.
    """

    folder: Path
    teachers: tuple[str, ...]
    lift: pd.DataFrame
    encoder: Encoder | None
    message: str
    left_out: tuple[str, ...] = ()


def run_alignment(
    spec: AlignSpec,
    folder: Path,
    *,
    stage: Stage,
    fresh: bool = False,
    encoder: Encoder | None = None,
    tasks: dict[str, Task] | None = None,
    note: Note | None = None,
    processes: Processes = ALONE,
) -> Outcome:
    """Tune an encoder so that its output carries what its hidden layers do, and study it before and after.

    An encoder whose final layer is not beaten, over the tasks of the families in `spec.lift`, by any other on inner
    folds by more than the margin is left as it is, unless `spec.force`. Controls are tuned and studied in the same
    way, in `controls/NAME/`, those of `spec.free` read from the study before. `note` is told the losses as they come
    (`tsprobe.tracking.loss_curves`). Of several `processes` the first studies and writes, and all of them tune; they
    share the folder. Raises `SpecError` for a request that
    makes no sense, `EncoderError` for an encoder that cannot be tuned.
    """
    with alone(folder) if processes.first else nullcontext():
        return _run(spec, folder, stage, encoder, dict(tasks or {}), note, processes, fresh=fresh)


def _run(
    spec: AlignSpec, folder: Path, stage: Stage, encoder: Encoder | None, loaded: dict[str, Task], note: Note | None,
    processes: Processes, *, fresh: bool,
) -> Outcome:  # fmt: skip
    if fresh and processes.first:
        _forget(folder)
    processes.wait()
    if processes.first:
        replace_text(folder / "spec.yaml", yaml.safe_dump(spec.dump(), sort_keys=False))
    work = Work.of(spec, folder, stage, encoder, loaded, note if processes.first else None, processes)
    refuse_early(work.spec, work.base, work.tasks)
    before = work.before()
    teachers, message = find_teachers(spec, before)
    tuned = None
    if teachers and (not message or spec.force):
        tuned = work.align(before, teachers)
    if processes.first:
        work.write(tuned, teachers, message)
    lift = pd.DataFrame(work.rows, columns=list(COLUMNS))
    return Outcome(folder, teachers, lift, tuned, message, tuple(work.left_out))


def refuse_early(spec: AlignSpec, base: Encoder, tasks: dict[str, Task]) -> None:
    """Raise what the tuning would raise for its request, before the study that comes first takes its time."""
    start = base if spec.cut is None else base.truncate(spec.cut)
    if not RECIPES[spec.recipe].labelled:
        lessons_of(start, [tasks[name].train for name in spec.series], spec, segments=spec.segmented)


@dataclass
class Work:
    """What is done for an alignment, and the tables that come of it. `spec` names the device."""

    spec: AlignSpec
    folder: Path
    base: Encoder
    tasks: dict[str, Task]
    stage: Stage
    note: Note | None = None
    processes: Processes = ALONE
    clock: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of lift.csv
    by_seed: list[dict[str, Any]] = field(default_factory=list)
    families: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, spec: AlignSpec, folder: Path, stage: Stage, encoder: Encoder | None = None,
        tasks: Mapping[str, Task] | None = None, note: Note | None = None, processes: Processes = ALONE,
    ) -> Work:  # fmt: skip
        """Load what is not given; raises what loading raises."""
        spec = spec.model_copy(update={"device": processes.device(pick_device(spec.device))})
        base = (encoder if encoder is not None else load_encoder(spec.encoder)).to(spec.device)
        loaded, named = dict(tasks or {}), dict.fromkeys((*spec.study.tasks, *spec.labelled, *spec.series))
        loaded |= {name: load_task(name) for name in named if name not in loaded}
        return cls(spec, folder, base, loaded, stage, note, processes)

    def before(self) -> dict[str, Before]:
        """The tasks that the encoder can take, in the order of the spec."""
        where = self.folder / BEFORE
        asked = self._study(self.base, where)
        fingerprint, found = self.base.fingerprint(), {}
        for name in asked.tasks:
            try:
                found[name] = Before.of(Pair(self.base, fingerprint, self.tasks[name], asked, where, self.stage))
            except (DataError, EncoderError):
                continue  # left out of the study too, with its reason
        return found

    def align(self, before: dict[str, Before], teachers: tuple[str, ...]) -> Encoder:
        """Tune, study and compare: the recipe, its controls, and what costs no tuning. Gives the tuned encoder."""
        cut = teachers[0] if len(teachers) == 1 else None
        first: Encoder | None = None
        for control in ("", *self.spec.controls):
            why = why_unknown(self.base) if control == "same-budget" else ""
            if why:
                self.left_out.append(f"{control}: {why}")
                continue
            afters: dict[str, list[After]] = {name: [] for name in before}
            for seed in self.spec.seeds:
                where = self._place(control, seed)
                found = self.tune(control, seed, where, teachers)
                first = first or found
                for name, after in self._after(found, where, list(before)).items():
                    afters[name].append(after)
            self._compare(control, [Compared.of(one, afters[name], cut) for name, one in before.items()], cut)
        assert first is not None
        if not self.processes.first:
            return first
        for control in self.spec.free:
            compared = []
            for name, one in before.items():
                if why := why_not(one.pair, control):
                    self.left_out.append(f"{control} on {name}: {why}")
                    continue
                pair = Free.of(one.pair, control, self.folder / OF_CONTROLS / control)
                compared.append(Compared.of(one, [After.of(pair)], cut))
            self._compare(control, compared, cut, tuned=False)
        return first

    def _compare(self, control: str, compared: list[Compared], cut: str | None, *, tuned: bool = True) -> None:
        shared = {"encoder": self.base.name, "recipe": self.spec.recipe, "control": control}
        self.rows += [shared | one.entries for one in compared]
        self.families += [shared | row for row in families.family_rows(compared, tuned=tuned)]
        if tuned and len(self.spec.seeds) > 1:
            for i, seed in enumerate(self.spec.seeds):
                alone = [Compared.of(one.before, one.afters[i : i + 1], cut) for one in compared]
                self.by_seed += [{"seed": seed} | shared | one.entries for one in alone]

    def _place(self, control: str, seed: int) -> Path:
        root = self.folder if seed == self.spec.seeds[0] else self.folder / SEEDS / str(seed)
        return root / OF_CONTROLS / control if control else root

    def tune(self, control: str, seed: int, where: Path, teachers: tuple[str, ...]) -> Encoder:
        """Tune to the end, from where a stopped run was; "" is the recipe itself. Raises what `train.tune` does."""
        begin = time.perf_counter()
        its = self.spec.seeded(seed).controlled(control)
        taught = teachers if its.teacher == self.spec.teacher else (str(its.teacher),)
        label = self._label(control, seed)
        labelled = [self.tasks[name] for name in (*self.spec.labelled, *self.spec.series)]
        start = self.base if its.cut is None else self.base.truncate(its.cut)
        tuning = Tuning(its, start, taught, labelled, pretext=control == "same-budget", processes=self.processes)
        found = tune(tuning, where, stage=self.stage, name=label, note=self.note)
        assert found is not None
        found.name = f"{self.base.name}+{label.replace(' ', '-')}"
        self.clock[f"tuning {label}"] = time.perf_counter() - begin
        return found

    def _label(self, control: str, seed: int) -> str:
        number = f" seed {seed}" if seed != self.spec.seeds[0] else ""
        return f"{self.spec.recipe}{' ' + control if control else ''}{number}"

    def _after(self, found: Encoder, where: Path, names: list[str]) -> dict[str, After]:
        return self._cells(found, where / AFTER, self._study(found, where / AFTER), names)

    def final_cells(self, found: Encoder, where: Path, names: Sequence[str]) -> dict[str, After]:
        """The final layer of a tuned encoder on some tasks, read in a folder without a study of all layers."""
        asked = self._asked(found, where).model_copy(update={"layers": (found.final,)})
        return self._cells(found, where, asked, names)

    def _cells(self, found: Encoder, where: Path, asked: StudySpec, names: Sequence[str]) -> dict[str, After]:
        fingerprint = found.fingerprint()
        return {n: After.of(Pair(found, fingerprint, self.tasks[n], asked, where, self.stage)) for n in names}

    def _asked(self, of: Encoder, where: Path) -> StudySpec:
        return make_spec(
            self.spec.study.model_dump() | {
                "name": where.name, "encoders": [of.name], "controls": ["chance"], "device": self.spec.device,
                "tracking": {"enabled": False},
            }
        )  # fmt: skip

    def _study(self, of: Encoder, where: Path) -> StudySpec:
        begin, asked = time.perf_counter(), self._asked(of, where)
        if self.processes.first:
            ran = run_study(asked, where, encoders={of.name: of}, tasks=self.tasks, stage=self.stage)
            ran.report(where / "report.html")
        self.processes.wait()  # the others find the study finished
        self.clock[str(where.relative_to(self.folder))] = time.perf_counter() - begin
        return asked

    def write(self, tuned: Encoder | None, teachers: tuple[str, ...], message: str) -> None:
        """Write the tables, where there was a tuning, and what they say."""
        if tuned is not None:
            write_table(self.folder / "lift.csv", self.rows, COLUMNS)
            write_table(self.folder / families.FILE, self.families, families.COLUMNS)
            if self.by_seed:
                write_table(self.folder / BY_SEED, self.by_seed, ("seed", *COLUMNS))
        self._describe(tuned, teachers, message)
        spec = self.spec
        about = {
            "encoder": self.base.name, "recipe": spec.recipe, "teachers": teachers, "message": message,
            "spec": spec.dump(), "left_out": self.left_out, "cut": CUT, "seeds": spec.seeds,
            "controls": {name: CONTROLS[name] for name in (*spec.controls, *spec.free)},
        }  # fmt: skip
        lift, changes = pd.DataFrame(self.rows, columns=list(COLUMNS)), pd.DataFrame(self.families)
        write_alignment_report(self.folder / "report.html", lift, changes, about)

    def _describe(self, tuned: Encoder | None, teachers: tuple[str, ...], message: str) -> None:
        """Write `provenance.json`."""
        encoders = [self.base] if tuned is None else [self.base, tuned]
        content = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": made_by.versions(),
            "device": made_by.describe_device(str(self.base.device)),
            "seed": self.spec.seed,
            "seeds": list(self.spec.seeds),
            "by_seed": self.by_seed and [{k: _plain(v) for k, v in row.items()} for row in self.by_seed],
            "teachers": list(teachers),
            "message": message,
            "left_out": self.left_out,
            "encoders": {one.name: made_by.describe_encoder(one, one.fingerprint()) for one in encoders},
            "tasks": made_by.describe_tasks(self.tasks.values()),
            "seconds": {name: round(seconds, 2) for name, seconds in self.clock.items()},
        }
        replace_text(self.folder / "provenance.json", json.dumps(content, indent=2))


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and value != value else value


def _forget(folder: Path) -> None:
    """Remove what an alignment wrote into a folder, and nothing else."""
    for name in (BEFORE, AFTER, ENCODER, OF_CONTROLS, SEEDS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*_FILES, "report.html"):
        (folder / name).unlink(missing_ok=True)
