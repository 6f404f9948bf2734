"""What takes part in a study: the encoders asked for, an untrained copy behind each, and the baselines."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import UNTRAINED, Encoder
from tsprobe.encoders.baselines import Baseline, load_baseline
from tsprobe.errors import SpecError, TsprobeError, reason
from tsprobe.study.spec import EncoderSpec, StudySpec


@dataclass(frozen=True)
class Entry:
    """An encoder or a control, loaded when its turn comes, so that one at a time is in memory."""

    name: str
    role: str  # studied, untrained, baseline or chance
    make: Callable[[], Encoder | Baseline]

    def load(self, device: str) -> Encoder | Baseline:
        made = self.make()
        made.name = self.name
        return made if isinstance(made, Baseline) else made.to(device)


def plan_entries(spec: StudySpec, given: dict[str, Encoder]) -> list[Entry]:
    """All that takes part, in order. Each encoder is loaded once here, so that a mistake shows before hours of work.

    Objects in `given` stand for their names. Raises what loading raises, and `SpecError` for a name that comes twice.
    """
    entries: list[Entry] = []
    for source in spec.encoders:
        encoder = EncoderSpec(source=source) if isinstance(source, str) else source
        name = encoder.name or encoder.source
        make = _maker(encoder, given.get(name))
        trained = make().facts.objective != "none"  # what has no weights is a baseline, and its own untrained copy
        entries.append(Entry(name, "studied" if trained else "baseline", make))
        if "untrained" in spec.controls and trained and not name.endswith(UNTRAINED):
            entries.append(Entry(name + UNTRAINED, "untrained", _untrained(make)))
    for control in spec.controls:
        if control != "untrained":
            role = "chance" if control == "chance" else "baseline"
            entries.append(Entry(f"baseline/{control}", role, _baseline(control)))
    names = [entry.name for entry in entries]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise SpecError(f"{', '.join(doubled)} would be in the study twice; drop it from encoders or controls")
    return entries


def _maker(spec: EncoderSpec, given: Encoder | None) -> Callable[[], Encoder | Baseline]:
    if given is not None:
        return lambda: given
    if spec.source.startswith("baseline/"):
        return _baseline(spec.source)
    options = spec.model_dump(exclude={"source"}, exclude_none=True)
    if spec.source.startswith("python:"):
        return lambda: load_encoder(build_source(spec.source), **options)
    return lambda: load_encoder(spec.source, **options)


def _baseline(name: str) -> Callable[[], Baseline]:
    return lambda: load_baseline(name)


def _untrained(make: Callable[[], Encoder | Baseline]) -> Callable[[], Encoder]:
    def untrained() -> Encoder:
        encoder = make()
        assert isinstance(encoder, Encoder)
        return encoder.untrained(0)

    return untrained


def build_source(source: str) -> torch.nn.Module | Encoder:
    """What the user's own function `python:package.module:function` builds, weights drawn under seed 0."""
    _, module, function = [*source.split(":"), "", ""][:3]
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"{source!r} cannot be found ({error}); write python:package.module:function") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            built = build()
        except TsprobeError:
            raise
        except Exception as error:  # the user's own code may raise anything
            last = traceback.extract_tb(error.__traceback__)[-1]
            at = f"at {last.filename}, line {last.lineno}"
            raise SpecError(f"{source!r} raised {type(error).__name__} ({reason(error)}) {at}") from error
    if not isinstance(built, torch.nn.Module | Encoder):
        raise SpecError(f"{source!r} gives a {type(built).__name__}, not a torch.nn.Module or an Encoder")
    return built
