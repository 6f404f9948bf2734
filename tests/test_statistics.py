"""Ridge from statistics equals ridge from kept features; statistics add up; a study by either way says the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_probes import METRIC, Data, G, K, M, N, loop

from tsprobe.errors import DataError, SpecError, StorageError
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe, statistics
from tsprobe.probes.base import Target
from tsprobe.probes.gram import Fits
from tsprobe.probes.statistics import CODED_R2, RidgeStatistics

GRID = (1e-4, 0.1, 10.0)
KINDS = [(kind, masked) for kind in METRIC for masked in (False, True) if not (masked and kind == "classification")]


@pytest.fixture(autouse=True)
def few_rows_wait(monkeypatch):
    """So that 90 rows are summed in several goes."""
    monkeypatch.setattr(statistics, "BUFFERED", 20)


def empty(data: Data) -> RidgeStatistics:
    return RidgeStatistics.of(data.target, data.folds, groups=G, width=data.x.shape[2])


def streamed(data: Data, rows: torch.Tensor | None = None, seed: int = 0) -> RidgeStatistics:
    """Statistics of some training rows, in blocks of 7 in any order."""
    found = empty(data)
    rows = torch.arange(N) if rows is None else rows
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    for block in order.split(7):
        found.update(data.x[:, block], block)
    return found


def coded(data: Data) -> Target:
    """The targets that ridge fits, as those of a regression."""
    if data.kind == "classification":
        return Target("regression", torch.nn.functional.one_hot(data.y[:N].long(), data.target.width) * 2.0 - 1)
    return Target("regression", data.y[:N].double())


@pytest.mark.parametrize("width", [12, 150])
@pytest.mark.parametrize(("kind", "masked"), KINDS)
def test_statistics_say_what_kept_features_say(kind, masked, width):
    data = Data(kind, width, masked=masked)
    solution = streamed(data).solve(get_metric(METRIC[kind]), strengths=GRID)
    # Out of fold, by the probe that keeps its features: for classes and labels as a regression on the coded targets.
    kept = get_probe("ridge")(data.x[:, :N], coded(data), data.x[:, N:], data.folds, get_metric("r2"), strengths=GRID)
    assert solution.criterion == ("r2" if kind == "regression" else CODED_R2)
    np.testing.assert_allclose(solution.inner, kept.inner, rtol=1e-8, atol=1e-8)  # 90 rows, condition number 1e6
    assert solution.inner.std() > 0.05  # or equality would say nothing
    assert torch.equal(solution.chosen, kept.chosen)
    for a, strength in enumerate(GRID):  # at the same strength, predictions are the same
        alone = streamed(data).solve(get_metric(METRIC[kind]), strengths=(strength,))
        expected = data.fit("ridge", strengths=(strength,)).prediction
        size = expected.abs().amax((0, 1))
        got = alone.predict(data.x[:, N:])
        np.testing.assert_allclose(got / size, expected / size, rtol=0, atol=1e-10, err_msg=f"strength {a}")


@pytest.mark.parametrize("masked", [False, True])
def test_statistics_agree_with_scikit_learn(masked):
    data = Data("regression", masked=masked)
    inner, tested = loop("ridge", data, GRID)
    solution = streamed(data).solve(get_metric("r2"), strengths=GRID)
    np.testing.assert_allclose(solution.inner, inner, rtol=1e-6)
    best = tested[np.arange(G), solution.chosen.numpy()]
    size = np.abs(best).max((0, 1))
    np.testing.assert_allclose(solution.predict(data.x[:, N:]).numpy() / size, best / size, rtol=0, atol=1e-8)


def test_the_other_metric_of_sums_of_squares():
    data = Data("regression", masked=True)
    solution = streamed(data).solve(get_metric("neg_rmse"), strengths=GRID)
    kept = get_probe("ridge")(
        data.x[:, :N], data.target, data.x[:, N:], data.folds, get_metric("neg_rmse"), strengths=GRID
    )
    np.testing.assert_allclose(solution.inner, kept.inner, rtol=1e-8)
    assert solution.criterion == "neg_rmse"


def test_targets_that_do_not_vary_are_left_out_of_the_score():
    data = Data("regression")
    data.y[:, 1] = 0.1 + 0.2  # no sum of squares of it is exactly 0
    kept = data.fit("ridge", strengths=GRID)
    solution = streamed(data).solve(get_metric("r2"), strengths=GRID)
    np.testing.assert_allclose(solution.inner, kept.inner, rtol=1e-8)
    data.y[:] = 0.3
    with pytest.raises(DataError, match="r2 is undefined on the training rows"):
        streamed(data).solve(get_metric("r2"))


def test_values_that_a_fit_does_not_know():
    data = Data("regression")
    data.y = data.y[:, 1:2]
    data.y[:N][data.folds != 0] = torch.nan  # the fit that predicts fold 0 sees none and gives the mean
    np.testing.assert_allclose(streamed(data).solve(get_metric("r2")).inner, 0, atol=1e-12)


def test_a_class_that_is_nowhere_scores_lowest():
    data = Data("classification")
    statistics = RidgeStatistics.of(
        replace(data.target, n_classes=data.target.width + 1), data.folds, groups=G, width=data.x.shape[2]
    )
    statistics.update(data.x[:, :N], torch.arange(N))
    far = data.x[:, N:] * 1e3
    prediction = statistics.solve(get_metric("accuracy")).predict(far)
    assert (prediction[..., :-1].amin() < -1).all()  # below its constant -1
    assert (prediction[..., -1:] < prediction[..., :-1]).all()


@pytest.mark.parametrize(("kind", "masked"), KINDS)
def test_shards_add_up_to_the_whole_in_any_order(kind, masked):
    data = Data(kind, masked=masked)
    whole = streamed(data)
    parts = [torch.arange(N)[torch.arange(N) % 3 == i] for i in range(2)] + [torch.arange(2, N, 3)]
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        first, *others = (streamed(data, parts[i], seed=i) for i in order)
        for other in others:
            first.merge(other)
        results.append(first)
    ab = streamed(data, parts[1])
    ab.merge(streamed(data, parts[2]))
    results.append(streamed(data, parts[0]))
    results[-1].merge(ab)  # a + (b + c)
    for result in results:
        for name, tensor in whole.tensors().items():
            size = tensor.abs().max()
            torch.testing.assert_close(result.tensors()[name], tensor, rtol=0, atol=1e-13 * float(size), msg=name)
        solution, expected = (s.solve(get_metric(METRIC[kind]), strengths=GRID) for s in (result, whole))
        torch.testing.assert_close(solution.inner, expected.inner, rtol=1e-9, atol=1e-9)
        assert torch.equal(solution.chosen, expected.chosen)


def test_folds_may_be_empty_in_a_shard():
    data = Data("regression")
    first = streamed(data, torch.arange(N)[data.folds == 0])
    first.merge(streamed(data, torch.arange(N)[data.folds != 0]))
    torch.testing.assert_close(
        first.solve(get_metric("r2"), strengths=GRID).inner,
        streamed(data).solve(get_metric("r2"), strengths=GRID).inner,
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_large_mean_costs_no_digits():
    """Mean 1e4 and deviation 1: products about zero lose eight digits, those about the means of parts four."""
    data = Data("regression")
    generator = torch.Generator().manual_seed(0)
    data.x = torch.randn(data.x.shape, generator=generator) + 1e4
    signal = data.x[0].double() @ torch.randn(data.x.shape[2], K, generator=generator).double()
    data.y = (signal - signal.mean(0)) / signal.std(0) + torch.randn(N + M, K, generator=generator) + 1e4
    inner, tested = loop("ridge", data, GRID)  # scikit-learn, which centres the rows of each fit
    mine = streamed(data)
    solution = mine.solve(get_metric("r2"), strengths=GRID)
    np.testing.assert_allclose(solution.inner, inner, rtol=1e-9)
    best = tested[np.arange(G), solution.chosen.numpy()]
    np.testing.assert_allclose(solution.predict(data.x[:, N:]), best, rtol=1e-13, atol=0)

    x = data.x[:, :N].double()
    mean = x.mean(1, keepdim=True)
    centred = (x - mean).mT @ (x - mean)
    about_zero = x.mT @ x - N * mean.mT @ mean
    mine_centred = Fits(mine.sums).pooled[0].product[:, -1]
    assert (about_zero - centred).abs().max() / N > 1e-9  # the control
    assert (mine_centred - centred).abs().max() / N < 2e-12  # as good as the means themselves


@pytest.mark.parametrize(("kind", "masked"), KINDS)
def test_a_file_gives_back_what_was_saved(kind, masked, tmp_path):
    data = Data(kind, masked=masked)
    rows = torch.arange(N)
    saved = streamed(data, rows[:50])  # some of which still wait
    saved.save(tmp_path / "some" / "statistics.npz")
    loaded = RidgeStatistics.load(tmp_path / "some" / "statistics.npz")
    assert [p.name for p in (tmp_path / "some").iterdir()] == ["statistics.npz"]
    for each in (saved, loaded):
        each.update(data.x[:, 50:N], rows[50:])
    for name, tensor in saved.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor), name
    metric = get_metric(METRIC[kind])
    torch.testing.assert_close(loaded.solve(metric).weights, saved.solve(metric).weights, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["half", "text", "missing"])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "statistics.npz"
    streamed(Data("regression")).save(path)
    content = path.read_bytes()
    if damage == "missing":
        np.savez(path, meta=np.array("{}"))
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"no archive")
    with pytest.raises(StorageError, match=r"statistics\.npz is damaged"):
        RidgeStatistics.load(path)


def test_mistakes_are_named():
    data = Data("regression")
    some, rows = streamed(data, torch.arange(50)), torch.arange(N)
    with pytest.raises(DataError, match="hold 50 of 90 training rows"):
        some.solve(get_metric("r2"))
    with pytest.raises(DataError, match="training row 49 was taken in before"):
        some.update(data.x[:, 49:52], rows[49:52])
    with pytest.raises(DataError, match="training row 60 was taken in before"):
        some.update(data.x[:, 60:62], torch.tensor([60, 60]))
    with pytest.raises(DataError, match="row 49 is in both"):
        some.merge(streamed(data, rows[49:]))
    with pytest.raises(DataError, match=r"features \[3, 2, 11\] where \[3, 2, 12\]"):
        some.update(data.x[:, 60:62, :-1], rows[60:62])
    with pytest.raises(DataError, match="NaN"):
        some.update(data.x[:, 60:62] * torch.nan, rows[60:62])
    some.update(data.x[:, 50:N], rows[50:])  # a refused block leaves no trace
    with pytest.raises(SpecError, match="not for regression"):
        some.solve(get_metric("accuracy"))
    other = Data("regression", seed=1)
    with pytest.raises(DataError, match="other targets, folds or widths"):
        streamed(data, rows[:10]).merge(streamed(other, rows[10:20]))
