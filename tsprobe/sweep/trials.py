"""Trials: one is a setting that is scored step by step; several processes run them on one storage."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from tsprobe.errors import DataError, EncoderError, SpecError, StorageError, TsprobeError
from tsprobe.sweep import storage
from tsprobe.sweep.search import SearchSpec
from tsprobe.sweep.space import Asks
from tsprobe.sweep.storage import WHY, Place

# what a setting without a score raises: features or losses that are not finite, a metric that is undefined, no solution
NO_SCORE = (
    DataError, EncoderError, SpecError, ArithmeticError, torch.linalg.LinAlgError, torch.OutOfMemoryError,
)  # fmt: skip
Advance = Callable[[int], None]
_LOOK = 0.2  # seconds between looks at how far the workers are


class Choices(Protocol):
    """What may be chosen."""

    def ask(self, trial: Asks) -> Any:
        """The setting that a trial chooses."""

    def settings(self) -> Iterator[Any]:
        """All settings of a finite space."""

    def parameters(self, setting: Any) -> dict[str, Any]:
        """What a trial has to answer to come to a setting."""


class Bench(Protocol):
    """Where trials are run; it is sent to other processes."""

    @property
    def choices(self) -> Choices: ...

    @property
    def steps(self) -> int:
        """How many scores a setting has."""

    def scores(self, setting: Any) -> Iterator[float]:
        """One after the other; the last is that of the setting. Raises one of `NO_SCORE` where there is none."""

    def cost(self, setting: Any) -> float:
        """NaN where there is none; never asked for without `SearchSpec.cost`."""


def run_trials(bench: Bench, spec: SearchSpec, place: Place, count: int, advance: Advance, *, since: int = 0) -> float:
    """So many more trials, in `spec.workers` processes, or in this one where there is one worker.

    `since` numbers what came before, so that a sweep that goes on draws anew. Raises `StorageError` where a worker ends
    before its time; what is finished is kept. Gives the processor seconds of other processes.
    """
    if spec.workers == 1:
        with storage.telling(place.storage):
            work(bench, spec, place, count, (0, since), advance)
        return 0.0
    workers = min(spec.workers, count)
    shares = [count // workers + (i < count % workers) for i in range(workers)]
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["optuna", "tsprobe.sweep.trials"])
    done, spent = context.Value("i", 0), context.Value("d", 0.0)
    running = [
        context.Process(target=_worker, args=(bench, spec, place, share, (i, since), done, spent), daemon=True)
        for i, share in enumerate(shares)
    ]
    try:
        for process in running:
            process.start()
        told = 0
        while any(process.is_alive() for process in running):
            time.sleep(_LOOK)
            now = int(done.value)
            advance(now - told)
            told = now
    finally:
        for process in running:
            if process.is_alive():
                process.terminate()
    lost = [process.exitcode for process in running if process.exitcode]
    if lost:
        raise StorageError(
            f"{len(lost)} of {workers} workers ended early (exit code {lost[0]}); what is finished is kept, the same "
            "command goes on from there"
        )
    return float(spent.value)


def work(
    bench: Bench, spec: SearchSpec, place: Place, count: int, seed: tuple[int, ...], advance: Advance,
    *, wanted: Callable[[], bool] = lambda: True,
) -> None:  # fmt: skip
    """Run trials here until there are so many more, or they are no longer wanted."""
    study = storage.load(spec, place, seed)

    def after(study: Any, _: Any) -> None:
        advance(1)
        if not wanted():
            study.stop()

    if wanted():
        with storage.quietly():
            study.optimize(lambda trial: _objective(trial, bench, spec), n_trials=count, callbacks=[after])


def _objective(trial: Any, bench: Bench, spec: SearchSpec) -> Any:
    """The score of the setting that a trial chooses, and its cost where that is asked for.

    A trial without a score says why, and fails: Optuna takes NaN for that.
    """
    import optuna

    setting, score = bench.choices.ask(trial), math.nan
    try:
        for step, score in enumerate(bench.scores(setting)):
            if spec.prunes and not math.isnan(score):
                trial.report(score, step)
                if step + 1 < bench.steps and trial.should_prune():
                    raise optuna.TrialPruned
        if math.isnan(score):
            trial.set_user_attr(WHY, "the metric is not defined on the predictions")
    except NO_SCORE as error:
        score = math.nan
        trial.set_user_attr(WHY, " ".join(str(error).split())[:500])
    return (score, bench.cost(setting)) if spec.cost else score


def _worker(
    bench: Bench, spec: SearchSpec, place: Place, count: int, seed: tuple[int, ...], done: Any, spent: Any
) -> None:
    """The whole of a worker's process. It ends with its parent, which alone is told of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // spec.workers))
    parent = multiprocessing.parent_process()

    def advance(trials: int) -> None:
        with done.get_lock():
            done.value += trials

    try:
        with storage.telling(place.storage):
            work(bench, spec, place, count, seed, advance, wanted=lambda: parent is None or parent.is_alive())
        with spent.get_lock():
            spent.value += time.process_time()
    except TsprobeError as error:
        with contextlib.suppress(OSError):
            print(f"worker {seed[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
