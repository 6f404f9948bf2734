"""What probes share whose heads are trained in steps: a head for each fold of each group, all of them together.

Strengths are the steps at which training may stop: fewer regularise more. What rows out of fold score at each of them
chooses one for each group, and the head that is trained on all rows answers for the test rows as it was at that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from tsprobe.errors import DataError, SpecError
from tsprobe.probes import base

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from tsprobe.probes.attentive import Goal

STEPS = (10, 25, 50, 100, 200)  # at which training may stop
_WARM = 10  # steps until the rates are reached; they fall to a tenth at the end


class Part(Protocol):
    """The rows of a split in groups of T, `index [S, T]`, -1 where there are fewer."""

    @property
    def index(self) -> Int[Tensor, "S T"]: ...

    def take(self, series: Tensor) -> Any: ...


P = TypeVar("P", bound=Part)


def stops_of(strengths: Sequence[float] | None, probe: str) -> tuple[float, ...]:
    """Raises `SpecError` for strengths that are no numbers of steps."""
    grid = base.check_strengths(strengths, STEPS)
    if any(s != int(s) for s in grid):
        raise SpecError(f"strengths {grid} of the {probe} probe are steps of training: give whole numbers")
    return grid


def steps_of(target: base.Target, n: int, m: int, probe: str) -> base.Steps | None:
    """The steps that n training and m test rows of a dense task are; None for a task that is not dense.

    Raises `DataError` where they are missing or do not fit the rows.
    """
    steps = target.steps
    if steps is None:
        if target.series is not None:
            raise DataError(f"the {probe} probe needs to know the steps that the rows of a dense task are")
        return None
    for name, numbers in (("series", steps.series), ("times", steps.time)):
        if [tuple(part.shape) for part in numbers] != [(n,), (m,)]:
            sizes = " and ".join(str(list(part.shape)) for part in numbers)
            raise DataError(f"{name} of steps of shapes {sizes} for {n} training and {m} test rows")
    return steps


def having(index: Int[Tensor, "S T"], rows: Bool[Tensor, " N"]) -> Int[Tensor, " s"]:
    """The numbers of the series that have some of these rows."""
    return (rows[index] & (index >= 0)).any(1).nonzero()[:, 0]


def trained(
    weights: list[dict[str, Any]], loss: Callable[[Tensor], Tensor], rows: Iterable[Tensor],
    stops: Sequence[float],
) -> Iterator[int]:  # fmt: skip
    """Learn by Adam from minibatches of `rows`, and give the number of steps taken at each of `stops`.

    Each group of weights has its own rate.
    """
    last = int(max(stops))
    optimiser = torch.optim.Adam(weights, betas=(0.9, 0.98), fused=True)
    slower = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / _WARM) * (1 - 0.9 * s / last))
    for step, at in zip(range(1, last + 1), rows, strict=False):
        found = loss(at)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        slower.step()
        if step in stops:
            yield step


@torch.no_grad()
def predicted(
    z: Tensor, part: P, goal: Goal, fit: int, read: Callable[[P], Float[Tensor, "G 1 n K"]], rows_at_once: int
) -> Float[Tensor, "G m K"]:
    """What one fit predicts for the rows of a part of `z [G, m, ...]`; 0 for others."""
    found = torch.zeros(*z.shape[:2], goal.y.shape[1], dtype=torch.float64, device=z.device)
    series = torch.arange(len(part.index), device=z.device)
    for some in series.split(max(1, rows_at_once // part.index.shape[1])):
        here = part.take(some)
        rows = here.index.flatten()
        out = read(here)[:, 0]
        found[:, rows[rows >= 0]] = goal.prediction(out[:, rows >= 0], fit)
    return found


def solved(
    problem: base.Problem, grid: Sequence[float], stops: Iterable[int],
    train: Callable[[Tensor, int], Float[Tensor, "G N K"]], test: Callable[[int], Float[Tensor, "G M K"]],
) -> base.Solved:  # fmt: skip
    """Predictions at each stop: of training rows, given as a mask, by the fit without them, and of test rows."""
    held_out: list[Tensor] = []
    answers: list[Tensor] = []
    masks = [problem.folds == fold for fold in range(problem.n_folds)]
    at = {}
    for step in stops:
        at[step] = len(answers)
        held_out.append(sum(train(rows, fold) * rows[:, None] for fold, rows in enumerate(masks)))  # type: ignore[arg-type]
        answers.append(test(problem.n_folds))
    order = [at[int(stop)] for stop in grid]
    return base.Solved(*(torch.stack([parts[i] for i in order], 1) for parts in (held_out, answers)))
