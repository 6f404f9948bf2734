"""Fit one member of the zoo: the loop, its checkpoints, and the folder that it leaves.

A folder `DIR/` holds `spec.yaml`, `losses.csv`, `run.json`, and, when the run is finished, `config.json` and
`model.safetensors` in half precision, which `load_encoder("zoo:DIR")` takes. Until then `checkpoint.pt` holds what is
needed to go on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import yaml
from torch import nn

from tsprobe.encoders import pickles
from tsprobe.encoders.zoo_model import ZooModel
from tsprobe.errors import SpecError, StorageError, reason
from tsprobe.files import alone, replace_file, replace_text
from tsprobe.pretraining.corpus import Corpus
from tsprobe.pretraining.held_out import examine
from tsprobe.pretraining.objectives import OBJECTIVES, Objective
from tsprobe.pretraining.record import Record, describe, write_weights
from tsprobe.pretraining.spec import PretrainSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

CHECKPOINT = "checkpoint.pt"
_FILES = ("spec.yaml", "losses.csv", "run.json", "config.json")
_CHECKS = 8  # looks at held-out series on the way


class Fitting(Protocol):
    """A run as the loop knows it. A recipe of another package gives one of its own to `fit`.

    The spec has `steps`, `keep_every` (seconds), `dump()` and `same_run(dumped)`; what is random in a step follows from
    the spec and the number of the step, so that a run that was stopped goes on to the same losses.
    """

    spec: Any
    device: torch.device
    record: Record
    step: int
    title: str
    loads_as: str  # the family of encoders that takes the finished folder, as in `zoo:DIR`

    def advance(self) -> None: ...

    def look(self) -> dict[str, Any]:
        """A row of held-out measures: `step`, `own`, `trivial` and `rank_means` at least."""
        ...

    def write_weights(self, folder: Path) -> None: ...

    def describe(self, folder: Path) -> dict[str, Any]:
        """Write `run.json` and give what it says."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Run:
    """All that changes while a network is fitted."""

    def __init__(self, spec: PretrainSpec, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)  # built on the CPU: the same start on every device
            self.model = ZooModel(spec.backbone, spec.objective)
            self.objective: Objective = OBJECTIVES[spec.objective](self.model)
        self.model.to(self.device)
        self.objective.to(self.device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), spec.rate, (0.9, 0.95), weight_decay=spec.decay)
        corpus = spec.corpus
        self.corpus = Corpus(
            corpus.sources, corpus.shortest, corpus.longest, spec.backbone.patch, spec.seed, str(self.device)
        )
        self.record = Record()
        self.step = 0
        self.title = f"pretrain {spec.objective}"
        self.loads_as = "zoo"

    def advance(self) -> None:
        """One step. Everything random in it follows from the seed and the number of the step."""
        spec = self.spec
        series = self.corpus.batch(self.step, spec.batch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, spec)
        with half_where_possible(self.device):
            loss = self.objective.loss(self.model, series, self.corpus.generator(self.step, stream=1))
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), spec.clip)
        self.optimiser.step()
        self.step += 1
        self.objective.after_step(self.model, self.step / spec.steps)
        self.record.add(self.step, series.values, loss)
        if self.step % spec.log_every == 0 or self.step == spec.steps:
            self.record.close_row(self.step, rate(self.step - 1, spec))

    def look(self) -> dict[str, Any]:
        return examine(self.model, self.objective, self.corpus, self.step)

    def write_weights(self, folder: Path) -> None:
        write_weights(self, folder)

    def describe(self, folder: Path) -> dict[str, Any]:
        return describe(self, folder)

    def state(self) -> dict[str, Any]:
        return {
            "spec": self.spec.dump(), "step": self.step, "model": self.model.state_dict(),
            "objective": self.objective.state_dict(), "optimiser": self.optimiser.state_dict(),
            "record": self.record.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.record = Record.restored(state["record"])


def pretrain(
    spec: PretrainSpec, folder: Path, device: str, *, stage: Stage, fresh: bool = False, until: int | None = None
) -> dict[str, Any]:
    """Fit the network of a spec; see `fit`."""
    return fit(Run(spec, device), folder, stage=stage, fresh=fresh, until=until)


def fit(run: Fitting, folder: Path, *, stage: Stage, fresh: bool = False, until: int | None = None) -> dict[str, Any]:
    """Go on where a stopped run was, to the end, and give what `run.json` says.

    `fresh` forgets what the folder holds; `until` stops after that many steps, as a killed run would. Raises
    `SpecError` where the folder holds another run, `StorageError` where another process is at work in it.
    """
    with alone(folder):
        return _fit(run, folder, stage, until, fresh=fresh)


def _fit(run: Fitting, folder: Path, stage: Stage, until: int | None, *, fresh: bool) -> dict[str, Any]:
    spec = run.spec
    if fresh:
        for file in (folder / CHECKPOINT, *(folder / name for name in _FILES), *folder.glob("*.safetensors")):
            file.unlink(missing_ok=True)
    take_up(run, folder)
    replace_text(folder / "spec.yaml", yaml.safe_dump(spec.dump(), sort_keys=False))
    with stage(run.title, spec.steps) as advance:
        advance(run.step)
        kept = time.monotonic()
        while run.step < min(spec.steps, until or spec.steps):
            began = time.monotonic()
            run.advance()
            if run.step % max(1, spec.steps // _CHECKS) == 0 and run.step < spec.steps:
                run.record.held_out.append(run.look())
            run.record.seconds += time.monotonic() - began
            advance(1)
            if time.monotonic() - kept > spec.keep_every:
                _keep(run, folder)
                kept = time.monotonic()
    _keep(run, folder)
    if run.step == spec.steps and not _looked_at(run):
        run.write_weights(folder)  # first, so that the last look is at the weights that are kept
        run.record.held_out.append(run.look())
        _keep(run, folder)
    return run.describe(folder)


def _looked_at(run: Fitting) -> bool:
    return bool(run.record.held_out) and run.record.held_out[-1]["step"] == run.step


def rate(step: int, spec: Any) -> float:
    """Linear warm-up to a spec's `rate`, then a cosine down to a hundredth of it."""
    if step < spec.warmup:
        return spec.rate * (step + 1) / spec.warmup
    part = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return spec.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)


@contextlib.contextmanager
def half_where_possible(device: torch.device) -> Iterator[None]:
    """bfloat16 for the matrix products on a GPU; float32 on the CPU."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        yield


class Resumed(Protocol):
    """What `take_up` needs to know of a run."""

    spec: Any
    device: torch.device

    def restore(self, state: dict[str, Any]) -> None: ...


def take_up(run: Resumed, folder: Path) -> None:
    """Bring a run to where the checkpoint in a folder is, if there is one.

    Raises `StorageError` for a damaged one, `SpecError` for that of a run with other settings.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return
    try:
        state = pickles.load_pickle(file, run.device)
        same = run.spec.same_run(state["spec"])
        if same:
            run.restore(state)
    except pickles.PICKLE_ERRORS as error:
        raise StorageError(
            f"{file} cannot be taken up ({reason(error)}): use --fresh, or another folder with --out"
        ) from error
    if not same:
        raise SpecError(f"{folder} holds a run with other settings: use --fresh, or another folder with --out")


def _keep(run: Fitting, folder: Path) -> None:
    replace_file(folder / CHECKPOINT, lambda handle: torch.save(run.state(), handle))
    run.record.write(folder)
    run.describe(folder)
