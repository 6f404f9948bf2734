"""The ways in which ridge computes the same thing, each against scikit-learn, on inputs that part them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_probes import METRIC, STRENGTHS, Data, G, M, N, loop

from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe, ridge, shifted
from tsprobe.probes.base import Readout, Target

CASES = [(kind, masked) for kind in METRIC for masked in (False, True) if not (masked and kind == "classification")]


def agrees(readout: Readout, data: Data, strengths: tuple[float, ...], atol: float = 1e-6) -> None:
    """Inner scores and predictions are those of a loop over groups, strengths and folds with scikit-learn."""
    inner, tested = loop("ridge", data, strengths)
    np.testing.assert_allclose(readout.inner, inner, atol=1e-3 if data.kind == "multilabel" else 1e-5, rtol=1e-9)
    best = tested[np.arange(G), readout.chosen.numpy()]
    size = np.abs(tested).max((0, 1, 2))
    np.testing.assert_allclose(readout.prediction.numpy() / size, best / size, atol=atol, rtol=0)


# 100: more columns than rows, and four stripes of X'X; 20: bands of two blocks of 16, padded
@pytest.mark.parametrize("width", [20, 100])
@pytest.mark.parametrize("solver", ["band", "cholesky"])
@pytest.mark.parametrize("form", ["primal", "dual"])
@pytest.mark.parametrize(("kind", "masked"), CASES)
def test_every_way_agrees_with_scikit_learn(kind, masked, form, solver, width, monkeypatch):
    taken = []
    monkeypatch.setattr(ridge, "_primal_is_quicker", lambda *sizes: form == "primal")
    monkeypatch.setattr(shifted, "_WIDTHS", (16,))
    monkeypatch.setattr(shifted, "_BAND_SIZE", 0 if solver == "band" else 10**9)
    monkeypatch.setattr(shifted, "_BAND_SHIFTS", 1)
    for module, name in ((ridge, "_Primal"), (ridge, "_Dual"), (shifted, "_by_band"), (shifted, "_by_cholesky")):
        way = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, way=way, name=name: (taken.append(name), way(*a))[1])
    data = Data(kind, width, masked=masked)
    agrees(data.fit("ridge"), data, STRENGTHS["ridge"])
    assert set(taken) == {f"_{form.capitalize()}", f"_by_{solver}"}


@pytest.mark.parametrize("width", [12, 100])
def test_what_one_fold_holds_does_not_touch_the_fits_without_it(width):
    # Values of 1e7 in fold 0: taken from the sums of all rows, they would leave noise of 1e-2 in the other folds' sums.
    data = Data("regression", width)
    data.x[:, :N][:, data.folds == 0, 2] *= 1e7
    data.x[:, :N, 3] = 5.0
    data.x[:, torch.arange(N)[data.folds == 0][0], 3] = 1e6  # constant in the fit that predicts fold 0
    agrees(data.fit("ridge"), data, STRENGTHS["ridge"])  # scores down to -1e15, of which the first nine digits count


def test_folds_of_unlike_sizes_in_any_order():
    data = Data("classification")
    data.folds = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([7, 3, 11], [60, 25, 5])))
    agrees(data.fit("ridge"), data, STRENGTHS["ridge"])


def test_more_rows_than_are_summed_together(monkeypatch):
    monkeypatch.setattr("tsprobe.probes.gram._ROWS", 7)
    monkeypatch.setattr("tsprobe.probes.gram._NUMBERS", 1)
    data = Data("regression", masked=True)
    agrees(data.fit("ridge"), data, STRENGTHS["ridge"])


def test_the_quicker_form_is_taken():
    # 5 folds, 9 strengths, and the widths of common encoders
    assert ridge._primal_is_quicker(10_000, 768, 5, 9)
    assert ridge._primal_is_quicker(1000, 768, 5, 9)
    assert not ridge._primal_is_quicker(500, 768, 5, 9)
    assert not ridge._primal_is_quicker(64, 384, 5, 9)


def test_only_the_chosen_strength_is_fitted_again(monkeypatch):
    asked = []
    solve = shifted.solve
    monkeypatch.setattr(
        shifted, "solve", lambda m, r, shifts, left: (asked.append(shifts.shape[1]), solve(m, r, shifts, left))[1]
    )
    Data("regression").fit("ridge")
    assert asked == [3] * 5 + [1]


def test_large_test_sets_are_predicted_alike():
    data = Data("regression")
    few = data.fit("ridge")
    many = get_probe("ridge")(
        data.x[:, :N], data.target, data.x[:, N:].repeat(1, 40, 1), data.folds, get_metric("r2"),
        strengths=STRENGTHS["ridge"],
    )  # fmt: skip
    torch.testing.assert_close(many.prediction[:, :M], few.prediction, rtol=1e-12, atol=0)
    assert many.prediction.shape == (G, 40 * M, 3)


def test_two_classes_are_each_others_negative():
    data = Data("classification")
    y = (data.y[:N] > 1).long()
    readout = get_probe("ridge")(
        data.x[:, :N], Target("classification", y), data.x[:, N:], data.folds, get_metric("accuracy")
    )
    torch.testing.assert_close(readout.prediction[..., 0], -readout.prediction[..., 1], rtol=0, atol=1e-10)
