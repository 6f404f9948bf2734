"""Measures over pooled features against plain definitions and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from tsprobe.diagnostics import CATALOGUE, DIAGNOSTICS, chosen, of_kind
from tsprobe.diagnostics.catalogue import Undefined
from tsprobe.diagnostics.inputs import BANDS, input_statistics
from tsprobe.diagnostics.lens import STRENGTHS, held_out, lens_r2
from tsprobe.diagnostics.measures import (
    alpha_req,
    anisotropy,
    displacement,
    effective_rank,
    rankme,
    relative_change,
    sample_entropy,
    singular_values,
    two_nn,
    uniformity,
)
from tsprobe.diagnostics.pooled import drawn_pairs, measure_pooled
from tsprobe.diagnostics.similarity import cka_matrix, linear_cka
from tsprobe.errors import UnknownNameError

NAMES = of_kind(CATALOGUE, "features")


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_rank_of_known_spectra() -> None:
    orthogonal = torch.linalg.qr(normal(40, 8))[0]
    centred = torch.cat([orthogonal, -orthogonal])  # mean zero, eight equal singular values
    assert effective_rank(centred) == pytest.approx(8, abs=1e-9)
    assert effective_rank(normal(50, 1) @ normal(1, 6)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(5, 3, dtype=torch.float64)) == 0


@pytest.mark.parametrize(("n", "d"), [(60, 9), (9, 60)])
def test_spectra_equal_those_of_a_singular_value_decomposition(n: int, d: int) -> None:
    x = normal(n, d) * torch.logspace(0, -4, d, dtype=torch.float64) + 3
    assert torch.allclose(singular_values(x).flip(0), torch.linalg.svdvals(x), rtol=1e-6)
    raw, centred = (np.linalg.svd(a, compute_uv=False) for a in (x.numpy(), x.numpy() - x.numpy().mean(0)))

    def entropy(weights: np.ndarray) -> float:
        share = weights / weights.sum()
        return -sum(p * math.log(p) for p in share if p > 0)

    assert rankme(x) == pytest.approx(math.exp(entropy(raw)), rel=1e-6)
    assert effective_rank(x) == pytest.approx(math.exp(entropy(centred)), rel=1e-6)
    kernel = x.numpy() @ x.numpy().T
    eigenvalues = np.linalg.eigvalsh(kernel / np.trace(kernel))
    assert sample_entropy(x) == pytest.approx(entropy(eigenvalues.clip(0)), rel=1e-6)


@pytest.mark.parametrize(("n", "d", "fitted"), [(400, 60, slice(10, 30)), (200, 12, slice(0, 12))])
def test_alpha_is_the_weighted_slope_of_the_spectrum(n: int, d: int, fitted: slice) -> None:
    x = normal(n, d) @ torch.diag(torch.arange(1, d + 1, dtype=torch.float64) ** -0.6)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T)))[::-1]
    j = np.arange(1, d + 1)
    slope = np.polyfit(np.log(j)[fitted], np.log(eigenvalues)[fitted], 1, w=j[fitted] ** -0.5)[0]
    assert alpha_req(x) == pytest.approx(-slope, rel=1e-8)


def test_alpha_of_an_exact_power_law() -> None:
    orthogonal = torch.linalg.qr(normal(300, 40))[0]
    x = orthogonal * torch.arange(1, 41, dtype=torch.float64) ** -0.75
    assert alpha_req(torch.cat([x, -x])) == pytest.approx(1.5, rel=1e-9)


def test_two_nn_equals_the_definition_and_finds_the_dimension_of_a_plane() -> None:
    x = normal(80, 5)
    distance = np.linalg.norm(x.numpy()[:, None] - x.numpy()[None], axis=-1)
    mu = np.sort([row[2] / row[1] for row in np.sort(distance)])
    along, share = np.log(mu[:72]), -np.log(1 - np.arange(1, 73) / 80)
    assert two_nn(x) == pytest.approx((along @ share) / (along @ along), rel=1e-8)
    plane = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ normal(2, 30)
    assert two_nn(plane) == pytest.approx(2, abs=0.15)  # of ten seeds the spread is 0.05
    doubled = torch.cat([x, x[:40]])
    assert math.isfinite(two_nn(doubled))


def test_measures_of_pairs_equal_the_mean_over_pairs() -> None:
    x = normal(20, 4) + 1
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    others = ~np.eye(20, dtype=bool)
    assert anisotropy(x) == pytest.approx((unit @ unit.T)[others].mean(), abs=1e-12)
    square = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    assert uniformity(x) == pytest.approx(math.log(np.exp(-2 * square)[others].mean()), abs=1e-12)


def test_what_a_layer_moves() -> None:
    before, after = normal(30, 6), normal(30, 6, seed=1)
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before.numpy(), after.numpy(), strict=True)]
    assert displacement(after, before) == pytest.approx(1 - np.mean(cosine), abs=1e-12)
    step = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(before.numpy(), after.numpy(), strict=True)]
    assert relative_change(after, before) == pytest.approx(np.mean(step), abs=1e-12)
    assert displacement(3 * before, before) == pytest.approx(0, abs=1e-12)
    assert relative_change(3 * before, before) == pytest.approx(2, abs=1e-12)


def test_cka_equals_the_u_statistic_summed_over_quadruples() -> None:
    """Song et al. 2012: unbiased HSIC as the mean over four different samples, written out."""
    x, y = normal(7, 3), normal(7, 2, seed=1)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        values = []
        for i in range(7):
            for j in set(range(7)) - {i}:
                for q in set(range(7)) - {i, j}:
                    for r in set(range(7)) - {i, j, q}:
                        values.append(a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]))
        return float(np.mean(values))

    right = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(right, abs=1e-10)


def test_cka_is_one_under_rotation_and_scale_and_near_zero_for_strangers() -> None:
    x = normal(300, 5)
    rotation = torch.linalg.qr(normal(5, 5, seed=2))[0]
    whole = cka_matrix([x, 3 * x @ rotation + 7, normal(300, 5, seed=3), torch.ones(300, 2) / 3])
    assert torch.allclose(whole, whole.T, equal_nan=True)
    assert whole[0, 1] == pytest.approx(1, abs=1e-9)
    assert abs(whole[0, 2]) < 0.05  # its standard deviation here is about 0.005
    assert whole[3].isnan().all()  # a layer that is the same for all samples
    assert cka_matrix([x[:3], x[:3]]).isnan().all()


@pytest.mark.parametrize("width", [6, 90])
def test_the_lens_is_ridge_on_rows_that_are_held_out(width: int) -> None:
    x, final = normal(80, width), normal(80, 5, seed=1)
    final[:, :3] = x[:, :3] + 0.1 * final[:, :3]
    out = torch.from_numpy(held_out(np.arange(80)))
    assert int(out.sum()) == 27
    fit, target = x[~out].numpy(), final[~out].numpy()
    mean_eigenvalue = ((fit - fit.mean(0)) ** 2).sum() / min(fit.shape)
    scores, criterion = [], []
    for strength in STRENGTHS:
        ridge = Ridge(alpha=strength * mean_eigenvalue).fit(fit, target)
        scores.append(r2_score(final[out].numpy(), ridge.predict(x[out].numpy()), multioutput="variance_weighted"))
        centred = fit - fit.mean(0)
        hat = centred @ np.linalg.solve(
            centred.T @ centred + strength * mean_eigenvalue * np.eye(width), centred.T
        ) + 1 / len(fit)
        residual = ((target - ridge.predict(fit)) ** 2).sum()
        criterion.append(residual / (1 - np.trace(hat) / len(fit)) ** 2)
    assert lens_r2(x, final, out) == pytest.approx(scores[int(np.argmin(criterion))], abs=1e-7)


def test_the_lens_never_fits_and_tests_rows_of_one_series() -> None:
    groups = np.repeat(np.arange(9), 5)
    out = held_out(groups, seed=1)
    assert sum(len(set(out[groups == g])) == 1 for g in range(9)) == 9
    assert out.sum() == 15


def test_statistics_of_series_and_pictures() -> None:
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((2, n)) * (i + 1) + i for i, n in enumerate([64, 64, 50, 9, 40])]
    found = input_statistics(series, pictures=False)
    means = np.stack([s.mean(1) for s in series])
    assert np.allclose(found["cka_mean"], (means - means.mean(0)) / means.std(0))
    assert found["cka_std"].shape == (5, 2)
    assert found["cka_spectrum"].shape[1] <= 2 * BANDS
    assert np.allclose(found["cka_spectrum"].mean(0), 0)
    slow, fast = (np.sin(2 * np.pi * f * np.arange(64))[None] for f in (1 / 32, 0.2))
    spectrum = input_statistics([slow, fast], pictures=False)["cka_spectrum"]
    assert (spectrum[0] > 0).any()
    assert (np.abs(spectrum) > 0.99).all()
    same = input_statistics([slow, slow], pictures=False)
    assert [value.shape for value in same.values()] == [(2, 0)] * 3
    pictures = [rng.random((3, 64)) for _ in range(6)]
    assert input_statistics(pictures, pictures=True)["cka_spectrum"].shape[0] == 6


def layers(n: int = 40) -> dict[str, torch.Tensor]:
    first = normal(n, 6).float()
    return {"a": first, "b": first + 0.5 * normal(n, 6, seed=1), "c": normal(n, 4, seed=2)}


def test_all_layers_at_once_equal_one_measure_at_a_time() -> None:
    x = layers(300)
    series = list(normal(300, 32, seed=4).numpy()[:, None])
    drawn = drawn_pairs(300, 0)
    assert len(drawn) == 256
    statistics = input_statistics([series[i] for i in drawn], pictures=False)
    found = measure_pooled(x, "c", NAMES, inputs=statistics)
    assert found.layers == ("a", "b", "c")
    assert all(set(row) == set(NAMES) for row in found.values.values())
    b = found.values["b"]
    wide = x["b"].double()
    assert b["effective_rank"].value == effective_rank(wide)
    assert b["rankme"].value == pytest.approx(rankme(wide), rel=1e-9)  # its Gram matrix is made of the centred one
    assert b["sample_entropy"].value == pytest.approx(sample_entropy(wide), rel=1e-9)
    assert b["alpha_req"].value == alpha_req(wide)
    assert b["anisotropy"].value == anisotropy(wide)
    assert b["two_nn"].value == two_nn(wide[drawn])
    assert b["uniformity"].value == uniformity(wide[drawn])
    assert b["displacement"].value == displacement(wide, x["a"].double())
    assert b["relative_change"].value == relative_change(wide, x["a"].double())
    assert b["cka_final"].value == pytest.approx(linear_cka(wide[drawn], x["c"][drawn]), abs=1e-12)
    spectrum = torch.from_numpy(statistics["cka_spectrum"])
    assert b["cka_spectrum"].value == pytest.approx(linear_cka(wide[drawn], spectrum), abs=1e-12)
    assert b["lens_r2"].value == lens_r2(wide[drawn], x["c"].double()[drawn], torch.from_numpy(held_out(drawn)))
    assert found.cka is not None
    assert np.allclose(np.diag(found.cka), 1)
    for layer in ("a", "c"):  # nothing before it, or nothing of its width
        assert math.isnan(found.values[layer]["displacement"].value)
        assert "before" in found.values[layer]["displacement"].note


@pytest.mark.parametrize("n", [1, 3])
def test_few_samples_are_not_measured(n: int) -> None:
    found = measure_pooled(layers(n), "c", NAMES)
    assert found.cka is None
    for value in found.values["a"].values():
        assert math.isnan(value.value)
        assert f"{n} samples" in value.note


def test_a_layer_that_overflows_or_is_constant_says_so_and_spares_the_others() -> None:
    x = layers()
    right = measure_pooled(x, "c", NAMES).values["a"]
    x = {"a": x["a"], "over": x["a"].clone(), "constant": torch.ones(40, 6), "zero": torch.zeros(40, 6), "c": x["c"]}
    x["over"][3, 2] = torch.inf
    found = measure_pooled(x, "c", NAMES)
    for name, value in found.values["a"].items():
        assert value.value == pytest.approx(right[name].value, rel=1e-9, nan_ok=True), name
        assert value.note == right[name].note
    assert all("not finite" in value.note for value in found.values["over"].values())
    for layer in ("constant", "zero"):
        for name, value in found.values[layer].items():
            assert math.isnan(value.value) == bool(value.note), (layer, name)
    assert found.values["constant"]["effective_rank"].value == 0
    defined = ("effective_rank", "rankme", "relative_change")  # ranks of 0, and a layer that takes all away
    for name in ("alpha_req", "two_nn", "cka_final", "lens_r2"):
        assert math.isnan(found.values["constant"][name].value), name
    assert all(math.isnan(v.value) for k, v in found.values["zero"].items() if k not in defined)
    broken = measure_pooled(x, "over", NAMES).values["a"]
    assert "not finite" in broken["lens_r2"].note
    assert broken["two_nn"] == right["two_nn"]


def test_undefined_measures_say_why() -> None:
    with pytest.raises(Undefined, match="three directions"):
        alpha_req(torch.ones(20, 5, dtype=torch.float64))
    with pytest.raises(Undefined, match="neighbours"):
        two_nn(torch.ones(20, 5, dtype=torch.float64))
    with pytest.raises(Undefined, match="hold"):
        lens_r2(normal(8, 2), normal(8, 2), torch.zeros(8, dtype=torch.bool))


def test_names_and_groups() -> None:
    assert chosen("all") == tuple(CATALOGUE) == tuple(DIAGNOSTICS)
    assert chosen("none") == ()
    assert chosen(["two_nn", "anisotropy"]) == ("two_nn", "anisotropy")
    assert not of_kind(chosen("standard"), "views")
    assert len(chosen(("standard", "dime"))) == len(chosen("standard")) + 1
    with pytest.raises(UnknownNameError, match="did you mean 'curvature'"):
        chosen(["curvture"])
    assert all(entry.unit and entry.what and entry.missing for entry in CATALOGUE.values())
