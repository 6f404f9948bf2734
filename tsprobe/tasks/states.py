"""Generated dense tasks, `dense/NAME`: what state a series is in, step by step.

| name | asked at each step | metric |
|---|---|---|
| regimes | which of four regimes it is in (`tsprobe.data.states`) | macro F1 |
| segments, changes | the same, for where one regime ends and another begins | covering, F1 of change points |
| state, phase | phase, frequency, amplitude and level of a wave; its phase alone | R², circular error |
| anomalies | whether it is part of an anomaly (`tsprobe.data.anomalies`) | VUS-PR |
| events | how many steps it lies before or after the nearest event, within 16 (`tsprobe.data.events`) | R² |
| event-kinds | which kind of event is within 16 steps of it, if any is | AUROC |
| imputation | its value, where that is missing (`tsprobe.tasks.imputation`) | R² |

Steps far from all events have no offset, and are not asked about. An offset is linear in time about each event, which a
distance to the nearest, or the time since the last, is not.

Streams of real data are named likewise (`tsprobe.tasks.streams`). The name of a generated task may carry settings, as
in `dense/regimes?n_train=400&steps=64&causal=1`:

| setting | default | meaning |
|---|---|---|
| n_train, n_test | 200, 200 | number of series; of segments, changes and anomalies half as many |
| length | 512 | steps of each, at least 64 |
| seed | 0 | other seeds give other series; training and test never share draws |
| steps | 32 | steps of each series that are asked about; of segments, changes and anomalies 128 |
| causal | 0 | 1: a step is read from the last token that covers no later step |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tsprobe.data import events
from tsprobe.data.anomalies import anomalies
from tsprobe.data.panel import Panel
from tsprobe.data.states import REGIMES, STATE, States, regimes, waves
from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.tasks import imputation, options, streams
from tsprobe.tasks.base import Kind, Task, TaskInfo
from tsprobe.tasks.dense import STEPS, ask

LICENCE = "none needed (generated)"
SOURCE = "generated states (tsprobe.data.states)"


@dataclass(frozen=True)
class _Settings:
    n_train: int = 200
    n_test: int = 200
    length: int = 512
    seed: int = 0
    steps: int = STEPS
    causal: int = 0


@dataclass(frozen=True)
class _Generated:
    make: Callable[..., States]
    kind: Kind
    metric: str
    labels: tuple[str, ...]
    fine: bool = False  # borders matter: fewer series, asked about at more steps
    first: int = 0  # column of the truth

    @property
    def settings(self) -> _Settings:
        return _Settings(n_train=100, n_test=100, steps=128) if self.fine else _Settings()


GENERATED = {
    "anomalies": _Generated(anomalies, "multilabel", "vus_pr", ("anomaly",), fine=True),
    "changes": _Generated(regimes, "classification", "change_f1", REGIMES, fine=True),
    "segments": _Generated(regimes, "classification", "covering", REGIMES, fine=True),
    "event-kinds": _Generated(events.events, "multilabel", "auroc", events.KINDS, first=1),
    "events": _Generated(events.events, "regression", "r2", ("offset",)),
    "imputation": _Generated(waves, "regression", "r2", ("value",)),
    "regimes": _Generated(regimes, "classification", "macro_f1", REGIMES),
    "state": _Generated(waves, "regression", "r2", STATE),
    "phase": _Generated(waves, "regression", "neg_circular_error", STATE[:2]),
}


def list_tasks() -> list[TaskInfo]:
    """All of them, at their default settings, and the streams."""
    infos = []
    for name, how in GENERATED.items():
        s = how.settings
        infos.append(
            TaskInfo(
                name=f"dense/{name}",
                kind=how.kind,
                metric=how.metric,
                n_train=s.n_train,
                n_test=s.n_test,
                channels=1,
                length=(s.length, s.length),
                n_classes=len(how.labels),
                source=SOURCE,
                licence=LICENCE,
                here=True,
                family="dense",
            )
        )
    return infos + streams.streams()


def load_dense(name: str) -> Task:
    """Raises `UnknownNameError` for another name, `SpecError` for a setting that there is not or makes no sense."""
    base, _, query = name.partition("?")
    if base in streams.STREAMS and not query:
        return streams.load_stream(base)
    if base not in GENERATED:
        raise UnknownNameError("task", f"dense/{name}", [f"dense/{n}" for n in (*GENERATED, *streams.STREAMS)])
    how = GENERATED[base]
    settings = options.read_settings(f"dense/{name}", query, how.settings)
    if settings.steps < 1 or settings.causal not in (0, 1):
        raise SpecError(f"task 'dense/{name}': steps must be at least 1, causal 0 or 1")
    suffix = options.written(settings, how.settings)
    made = [
        how.make(n, length=settings.length, seed=(settings.seed, is_test))
        for is_test, n in enumerate((settings.n_train, settings.n_test))
    ]
    panels = Panel(tuple(made[0].values)), Panel(tuple(made[1].values))
    rest: dict[str, Any] = {"causal": bool(settings.causal), "source": SOURCE, "licence": LICENCE}
    if base == "imputation":
        return imputation.with_gaps(f"dense/{base}{suffix}", panels, seed=settings.seed, steps=settings.steps, **rest)
    columns = slice(how.first, how.first + len(how.labels))
    truths = [list(m.truth if m.truth.ndim == 2 else m.truth[..., columns]) for m in made]
    return ask(f"dense/{base}{suffix}", how.kind, how.metric, panels, truths, how.labels, steps=settings.steps, **rest)
