"""Scores of dense tasks, on checked input: predictions `p [P, N, K]` of N steps.

Some are of all steps together, with weights `w [R, N]`, and give `[R, P]`. Others are of one series, whose steps stand
in order of time, and give `[P]`, NaN where that series has nothing to be scored; of several series, the mean is taken.
`metrics` registers them under their names, and says what they have in common with all other scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num


def macro_f1(y: Num[Tensor, " N"], p: Float[Tensor, "P N C"], w: Float[Tensor, "R N"]) -> Float[Tensor, "R P"]:
    """Unweighted mean of the F1 scores of all classes that occur, in the labels or among the predictions.

    As scikit-learn's `f1_score(average="macro", zero_division=0)`: a class is predicted where its score is the highest
    (the first of equals), and one that occurs among the predictions alone counts as 0.
    """
    guess = p.argmax(-1)  # [P, N]
    total, count = w.new_zeros(len(w), len(p)), w.new_zeros(len(w), len(p))
    for c in range(p.shape[2]):
        true, said = (y == c).double(), (guess == c).double()
        both = w @ (said * true).T  # [R, P]
        size = (w @ true)[:, None] + w @ said.T
        total += torch.where(size > 0, 2 * both / size, 0)
        count += size > 0
    return total / count


def jaccard(y: Num[Tensor, " N"], p: Float[Tensor, "P N C"]) -> Float[Tensor, " P"]:
    """Mean over classes of the intersection over union of the true and the predicted steps, the J of DAVIS.

    As scikit-learn's `jaccard_score(average="macro")`: classes count that occur in the series, in the labels or among
    the predictions. (The F of DAVIS, of the borders, is `change_f1`.)
    """
    guess = p.argmax(-1)  # [P, N]
    total, count = (torch.zeros(len(p), dtype=torch.float64, device=p.device) for _ in range(2))
    for c in range(p.shape[2]):
        true, said = y == c, guess == c
        either = (said | true).sum(1)
        total += (said & true).sum(1).double() / either.clamp(min=1)
        count += either > 0
    return total / count


def neg_circular_error(
    y: Num[Tensor, "N 2K"], p: Float[Tensor, "P N 2K"], w: Float[Tensor, "R N"]
) -> Float[Tensor, "R P"]:
    """Minus the mean absolute angle, in radians, between true and predicted phases; each phase is a pair (cos, sin).

    Predicted pairs may have any length; one of length 0 points nowhere, and is off by a quarter turn, as a guess is on
    average. Phases that are NaN are masked; the mean is taken of each phase, then over phases.
    """
    phases = y.shape[1] // 2
    total, count = w.new_zeros(len(w), len(p)), w.new_zeros(len(w), 1)
    for k in range(phases):
        true, said = y[:, 2 * k : 2 * k + 2].double(), p[:, :, 2 * k : 2 * k + 2]
        known = ~true.isnan().any(-1)
        true = torch.where(known[:, None], true, 0)
        cross = true[:, 0] * said[..., 1] - true[:, 1] * said[..., 0]
        angle = torch.atan2(cross.abs(), (true * said).sum(-1))
        angle = torch.where((said == 0).all(-1), torch.pi / 2, angle)
        size = (w @ known.double())[:, None]
        total += torch.where(size > 0, w @ (angle * known).T / size, 0)
        count += size > 0
    return -total / count


BUFFER = 20  # steps asked about, half of them on each side: the widest zone around an anomaly that `vus_pr` counts
_THRESHOLDS = 250
MARGIN = 0.02  # of the steps of a series that are asked about: how far off a change point may be found


def vus_pr(y: Num[Tensor, "N K"], p: Float[Tensor, "P N K"]) -> Float[Tensor, " P"]:
    """Volume under the surface of range-based precision and recall (Paparrizos et al. 2022) of anomaly scores.

    Mean, over buffers of 0 to `BUFFER` steps around the anomalies, of the average precision over at most 250
    thresholds. Inside its buffer a score counts in part, and recall is reduced by the share of anomalies of which no
    step is found. Agrees with `generate_curve(..., version="opt")` of the authors' package `vus`. Each of K labels that
    occurs is scored by itself; steps whose label is NaN are left out. NaN for a series without an anomaly.
    """
    volumes = []
    for k in range(y.shape[1]):
        known = ~y[:, k].double().isnan()
        label = y[known, k] == 1
        if label.any():
            volumes.append(_volume(label, p[:, known, k]))
    return torch.stack(volumes).mean(0) if volumes else p.new_full((len(p),), torch.nan)


def _volume(label: Bool[Tensor, " n"], score: Float[Tensor, "P n"]) -> Float[Tensor, " P"]:
    n = len(label)
    edges = torch.nn.functional.pad(label.int(), (1, 1)).diff()
    anomalies = list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))
    ranked, order = score.sort(1, descending=True)  # [P, n]
    at = torch.from_numpy(np.unique(np.linspace(0, n - 1, _THRESHOLDS).astype(int))).to(score.device)
    threshold = ranked[:, at]  # [P, t]
    found = torch.searchsorted(-ranked, -threshold, right=True)  # how many steps score as much, or more
    positive = label.double()
    inside = _reached(positive, order, found)
    total = score.new_zeros(len(score))
    for buffer in range(BUFFER + 1):
        half = buffer // 2
        weight = positive.clone()
        for start, stop in anomalies:
            after = torch.arange(stop, min(stop + half, n), device=score.device)
            before = torch.arange(max(start - half, 0), start, device=score.device)
            weight[after] += (1 - (after - stop + 1).double() / buffer).sqrt()
            weight[before] += (1 - (start - before).double() / buffer).sqrt()
        caught = _reached(weight.clamp(max=1), order, found)  # [P, t]
        zones = _zones(anomalies, half, n)
        hit = torch.stack([score[:, a:b].amax(1, keepdim=True) >= threshold for a, b in zones]).double().mean(0)
        # known anomalies and half of what was found around them
        recall = (caught / (positive.sum() + (caught - inside) / 2)).clamp(max=1) * hit
        total += (recall.diff(dim=1, prepend=recall.new_zeros(len(recall), 1)) * caught / found).sum(1)
    return total / (BUFFER + 1)


def _reached(weight: Float[Tensor, " n"], order: Tensor, found: Tensor) -> Float[Tensor, "P t"]:
    """Weight of the steps that score at least as much as each threshold."""
    return weight[order].cumsum(1).gather(1, found - 1)


def _zones(anomalies: list[tuple[int, int]], half: int, n: int) -> list[tuple[int, int]]:
    """The anomalies with their buffers; those whose buffers touch are one."""
    zones = [(max(anomalies[0][0] - half, 0), anomalies[0][1] + half)]
    for start, stop in anomalies[1:]:
        if zones[-1][1] - 1 < start - half:
            zones.append((start - half, stop + half))
        else:
            zones[-1] = (zones[-1][0], stop + half)
    return [(start, min(stop, n)) for start, stop in zones]


def covering(y: Num[Tensor, " N"], p: Float[Tensor, "P N C"]) -> Float[Tensor, " P"]:
    """How well the runs of equal states cover the true ones (Arbelaez et al. 2010; van den Burg and Williams 2020).

    Mean over the steps of the largest intersection over union that the true run of a step has with a run of the
    prediction, which is the state with the highest score, averaged over `margin` steps to both sides.
    """
    truth, run = _runs(y[None])[0], _runs(_states(p))  # numbers of runs: [N], [P, N]
    count = int(run.max()) + 1
    ones = torch.ones_like(run, dtype=torch.float64)
    size = ones.new_zeros(len(run), count).scatter_add_(1, run, ones)
    total = ones.new_zeros(len(run))
    for k in truth.unique():
        here = truth == k
        both = torch.zeros_like(size).scatter_add_(1, run[:, here], ones[:, here])
        total += here.sum() * (both / (here.sum() + size - both)).amax(1)
    return total / len(y)


def change_f1(y: Num[Tensor, " N"], p: Float[Tensor, "P N C"]) -> Float[Tensor, " P"]:
    """F1 of the steps at which the state changes, each matched with one that is at most `margin` steps off.

    The predicted state is that of `covering`. 1 where nothing changes, neither in truth nor in the prediction. It is
    the boundary measure F of DAVIS (Perazzi et al. 2016, §4.2) for a sequence, with one difference: a border is matched
    once, where in an image every pixel of a border counts that lies near the other. With `jaccard` it gives J and F.
    """
    reach = margin(len(y))
    truth = _changes(y[None])[0]
    return torch.tensor(
        [_f1(truth, found, reach) for found in _changes(_states(p))], dtype=torch.float64, device=p.device
    )


def margin(n: int) -> int:
    """Steps, of n that are asked about, by which a change point may be off."""
    return max(1, round(MARGIN * n))


def _f1(truth: list[int], found: list[int], reach: int) -> float:
    if not truth and not found:
        return 1.0
    i = j = matched = 0
    while i < len(truth) and j < len(found):  # in order, a pair that fits is part of a largest matching
        if abs(truth[i] - found[j]) <= reach:
            i, j, matched = i + 1, j + 1, matched + 1
        elif found[j] < truth[i]:
            j += 1
        else:
            i += 1
    return 2 * matched / (len(truth) + len(found))


def _states(p: Float[Tensor, "P N C"]) -> Int[Tensor, "P N"]:
    reach = margin(p.shape[1])
    smooth = torch.nn.functional.avg_pool1d(
        p.mT, 2 * reach + 1, stride=1, padding=reach, ceil_mode=False, count_include_pad=False
    )
    return smooth.argmax(1)


def _changes(states: Int[Tensor, "P N"]) -> list[list[int]]:
    """The first steps of all runs but the first."""
    return [(row.diff() != 0).nonzero()[:, 0].add(1).tolist() for row in states]


def _runs(states: Int[Tensor, "P N"]) -> Int[Tensor, "P N"]:
    return torch.nn.functional.pad((states.diff(dim=1) != 0).long().cumsum(1), (1, 0))
