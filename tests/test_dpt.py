"""The convolutional head for values at pixels: its parts against torch, what only neighbours tell, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import get_metric
from tsprobe.probes import dpt, get_probe, maps, probes_for
from tsprobe.probes.base import Steps, Target
from vision.tasks import pixels

SIZE, GRID, WIDTH, N, M = 40, 6, 5, 48, 20
R2 = get_metric("r2")


def asked(n, seed, size=SIZE, grid=GRID):
    """Series and times of one pixel a cell of n pictures."""
    at = torch.from_numpy(pixels.draw(n, size, grid, np.random.default_rng(seed)))
    return torch.arange(n).repeat_interleave(grid * grid), at.flatten()


def by_cell(values, part):
    """Values of rows `[n, ...]` on the map of each picture, `[S, P, ...]`."""
    return values[part.index]


class Case:
    """Three groups: a truth that is the difference of a feature from its neighbours above and below, noise, nothing."""

    def __init__(self, n=N, m=M, kept=1.0):
        (s, t), (s2, t2) = asked(n, 0), asked(m, 1)
        whole = maps.both(Steps((s, s2), (t, t2)), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        x = [torch.randn(len(part), WIDTH, generator=generator) for part in (s, s2)]
        y = []
        for part, features in zip(whole, x, strict=True):
            plane = F.pad(by_cell(features[:, 0], part).view(-1, 1, GRID, GRID), (0, 0, 1, 1))
            truth = (2 * plane[:, :, 1:-1] - plane[:, :, :-2] - plane[:, :, 2:]).view(len(part.index), -1)
            values = torch.zeros(len(features))
            values[part.index.flatten()] = truth.flatten()
            y.append(values.double()[:, None] * 3 + 100)
        noise = [torch.randn(part.shape, generator=generator) for part in x]
        keep = [torch.rand(len(part), generator=generator) < kept for part in (s, s2)]
        self.x, self.x_test = (
            torch.stack([a, b, torch.ones_like(a)])[:, k] for a, b, k in zip(x, noise, keep, strict=True)
        )
        self.y, self.y_test = (part[k] for part, k in zip(y, keep, strict=True))
        steps = Steps((s[keep[0]], s2[keep[1]]), (t[keep[0]], t2[keep[1]]))
        self.target = Target("regression", self.y, series=steps.series[0], steps=steps)
        self.folds = steps.series[0] % 3

    def fit(self, groups=slice(None), probe="dpt", **changes):
        return get_probe(probe)(self.x[groups], self.target, self.x_test[groups], self.folds, R2, **changes)


@pytest.mark.parametrize(("size", "grid"), [(40, 6), (64, 8), (45, 7), (9, 9), (33, 1)])
def test_pictures_and_cells_are_those_that_were_drawn_from(size, grid):
    (s, t), (s2, t2) = asked(40, 0, size, grid), asked(30, 1, size, grid)
    keep = torch.rand(len(t), generator=torch.Generator().manual_seed(0)) < 0.8 if grid > 1 else torch.ones(len(t)) > 0
    part, test = maps.both(Steps((s[keep], s2), (t[keep], t2)), torch.device("cpu"))
    edges = np.arange(grid + 1) * size // grid
    for row, (series, time) in enumerate(zip(s[keep].tolist(), t[keep].tolist(), strict=True)):
        cell = [np.searchsorted(edges, place, side="right") - 1 for place in divmod(time, size)]
        assert part.index[series, cell[0] * grid + cell[1]] == row
    assert part.grid == grid
    assert (part.index >= 0).sum() == keep.sum()
    assert (test.index >= 0).all()


def test_places_in_a_cell_are_from_its_middle():
    steps = Steps(
        (torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0])), (torch.tensor([0, 3, 8, 15, 9]), torch.tensor([5]))
    )
    part, _ = maps.both(steps, torch.device("cpu"))  # 4 x 4 pixels, 2 x 2 cells
    assert part.index.tolist() == [[0, 1, 2, 3], [-1, -1, 4, -1]]
    assert part.offset[0].tolist() == [[-0.25, -0.25], [-0.25, 0.25], [-0.25, -0.25], [0.25, 0.25]]
    assert part.offset[1].tolist() == [[0, 0], [0, 0], [-0.25, 0.25], [0, 0]]


def test_convolutions_are_those_of_torch():
    case = Case(n=6, m=3)
    goal = dpt.attentive.Goal.of(dpt.base.check(case.x, case.target, case.x_test, case.folds, R2))
    heads = dpt.Heads(case.x, goal, torch.Generator().manual_seed(0))
    for name in ("first", "second"):
        heads.weights[name] = torch.randn(heads.weights[name].shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 4, 6, GRID * GRID, dpt.CHANNELS, generator=torch.Generator().manual_seed(2))
    ours = heads._conv("first", x, GRID, slice(None))
    kernel = heads.weights["first"][1, 2].view(3, 3, dpt.CHANNELS, -1).permute(3, 2, 0, 1)
    theirs = F.conv2d(x[1, 2].unflatten(1, (GRID, GRID)).movedim(3, 1), kernel, padding=1)
    torch.testing.assert_close(ours[1, 2], theirs.movedim(1, 3).flatten(1, 2), atol=1e-4, rtol=1e-4)


def test_what_only_neighbours_tell_is_read_and_noise_is_not():
    case = Case()
    told, noise, nothing = R2(case.y_test, case.fit().prediction).tolist()
    alone = R2(case.y_test, case.fit([0], "ridge").prediction).item()
    assert alone == pytest.approx(24 / 34, abs=0.05)  # the pixel's own share: 4 of 6 parts, and 4 of 5 at the border
    assert told > alone + 0.1
    assert abs(noise) < 0.1
    assert abs(nothing) < 0.05


def test_pixels_without_a_value_are_no_neighbours():
    case = Case(kept=0.9)
    told, alone = (R2(case.y_test, case.fit([0], probe).prediction).item() for probe in ("dpt", "ridge"))
    assert told > alone + 0.05


def test_layers_do_not_depend_on_each_other(monkeypatch):
    case = Case(n=12, m=6)
    together = case.fit(strengths=(3, 12))
    torch.testing.assert_close(case.fit([1], strengths=(3, 12)).prediction[0], together.prediction[1])
    monkeypatch.setattr("tsprobe.probes.base.CHUNK_BYTES", 1)  # a group at a time
    torch.testing.assert_close(case.fit(strengths=(3, 12)).prediction, together.prediction, atol=1e-3, rtol=1e-4)


def test_test_pictures_do_not_depend_on_each_other():
    case = Case(n=12, m=6)
    whole = case.fit([0], strengths=(5,)).prediction
    first = case.target.steps.series[1] == 0
    steps = replace(case.target.steps, series=(case.target.steps.series[0], case.target.steps.series[1][first]),
                    time=(case.target.steps.time[0], case.target.steps.time[1][first]))  # fmt: skip
    alone = get_probe("dpt")(
        case.x[:1], replace(case.target, steps=steps), 5 * case.x_test[:1, first] / 5, case.folds, R2, strengths=(5,)
    )
    torch.testing.assert_close(alone.prediction[0], whole[0, first], atol=1e-4, rtol=1e-5)


def test_whole_series_are_maps_of_one_cell():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 400, 4, generator=generator)
    y = (x[0, :, :1].abs() + 0.1 * torch.randn(400, 1, generator=generator)).double()
    args = (x[:, :300], Target("regression", y[:300]), x[:, 300:], torch.arange(300) % 3, R2)
    bent, straight = (R2(y[300:], get_probe(name)(*args).prediction).item() for name in ("dpt", "ridge"))
    assert bent > 0.8
    assert straight < 0.2


def test_what_cannot_be_read_is_refused():
    case = Case(n=12, m=6)
    assert probes_for("dpt") == ("regression",)
    (s, s2), (t, t2) = case.target.steps.series, case.target.steps.time
    together = replace(case.target, steps=Steps((s, s2), (s * 0 + torch.arange(len(s)) % GRID**2, t2)))
    for target, message in (
        (replace(together, steps=Steps((s, s2), (t % 36 * 0 + torch.arange(len(t)) % 36, t2 % 2))), "square pictures"),
        (replace(case.target, steps=None), "needs to know the steps"),
        (replace(case.target, steps=Steps((s[1:], s2), (t, t2))), "series of steps of shapes"),
    ):
        with pytest.raises(DataError, match=message):
            get_probe("dpt")(case.x, target, case.x_test, case.folds, R2)
    with pytest.raises(SpecError, match="whole numbers"):
        case.fit(strengths=(2.5,))
    classes = replace(case.target, kind="classification", y=(case.y[:, 0] > 0).long())
    with pytest.raises(SpecError, match="not classification"):
        get_probe("dpt")(case.x, classes, case.x_test, case.folds, get_metric("accuracy"))
    case.x[0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        case.fit()
