"""Generated tasks: which components a series holds (`process/kN`), and with which parameters (`process/kN-state`).

Both ask about the same series, so an encoder's features serve the two. A name may carry settings, as in
`process/k2?n_train=2000&n_test=1000&length=512&seed=1`:

| setting | default | meaning |
|---|---|---|
| n_train, n_test | 600, 400 | number of series |
| length | 512 | steps of each, at least 64 |
| seed | 0 | other seeds give other series; training and test never share draws |
| sampling_rate | 1.0 | steps a second: the unit of frequencies, times, slopes |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.data.process import COMPONENTS, PARAMETERS, Mixture, generate
from tsprobe.errors import UnknownNameError
from tsprobe.tasks import options
from tsprobe.tasks.base import Task, TaskInfo

NAMES = ("k1", "k1-state", "k2", "k2-state", "k3", "k3-state")
SOURCE = "generated mixtures of 14 components (tsprobe.data.process)"
LICENCE = "none needed (generated)"


@dataclass(frozen=True)
class _Settings:
    n_train: int = 600
    n_test: int = 400
    length: int = 512
    seed: int = 0
    sampling_rate: float = 1.0


def list_tasks() -> list[TaskInfo]:
    """The tasks with one to three components, at their default settings."""
    s = _Settings()
    return [
        TaskInfo(
            name=f"process/{name}",
            kind="regression" if state else "multilabel",
            metric="r2" if state else "auroc",
            n_train=s.n_train,
            n_test=s.n_test,
            channels=1,
            length=(s.length, s.length),
            n_classes=len(PARAMETERS) if state else len(COMPONENTS),
            source=SOURCE,
            licence=LICENCE,
            here=True,
        )
        for name in NAMES
        for state in [name.endswith("-state")]
    ]


def load_process(name: str) -> Task:
    """`kN` (multilabel presence, AUROC) or `kN-state` (masked regression of parameters, R²), N from 1 to 14.

    Raises `UnknownNameError` for another name, `SpecError` for a setting that does not exist or makes no sense.
    """
    base, _, query = name.partition("?")
    match = re.fullmatch(r"k(\d+)(-state)?", base)
    if not match or not 1 <= int(match[1]) <= len(COMPONENTS):
        raise UnknownNameError("task", f"process/{name}", [f"process/{n}" for n in NAMES], "(k1 to k14, or k1-state…)")
    settings = options.read_settings(f"process/{name}", query, _Settings())
    suffix = options.written(settings, _Settings())
    train, test = (
        generate(
            n,
            components=int(match[1]),
            # two seeds a setting: no seed of one task is the test seed of another
            seed=2 * settings.seed + is_test,
            length=settings.length,
            sampling_rate=settings.sampling_rate,
        )
        for is_test, n in enumerate((settings.n_train, settings.n_test))
    )
    state = match[2] is not None
    return Task(
        name=f"process/{base}{suffix}",
        family="classification",
        kind="regression" if state else "multilabel",
        metric="r2" if state else "auroc",
        train=_panel(train),
        test=_panel(test),
        y_train=_target(train, state),
        y_test=_target(test, state),
        labels=PARAMETERS if state else COMPONENTS,
        source=SOURCE,
        licence=LICENCE,
    )


def _panel(mixture: Mixture) -> Panel:
    return Panel(tuple(mixture.values.numpy()))


def _target(mixture: Mixture, state: bool) -> np.ndarray:
    """`[N, K]` in float64, as all tasks have it."""
    return (mixture.parameters if state else mixture.presence).numpy().astype(np.float64)
