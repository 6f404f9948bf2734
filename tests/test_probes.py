"""Probes against scikit-learn, fold by fold, and on the inputs that break probes: masks, missing classes, constants."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.metrics import get_metric
from tsprobe.probes import PROBES as ALL
from tsprobe.probes import base as probes_base
from tsprobe.probes import get_probe, newton, probes_for
from tsprobe.probes.base import Readout, Target

# those for forecasts and for questions are in test_quantile and test_language, and test_attentive has its own
PROBES = {name: entry for name, entry in ALL.items() if "classification" in entry.kinds and name != "attentive"}
G, N, M, C, K = 3, 90, 25, 4, 3
METRIC = {"classification": "accuracy", "multilabel": "auroc", "regression": "r2"}
# Ridge is exact on both sides. Logistic is stopped here at a relative gradient of 1e-7, which leaves less than 1e-4 in
# probabilities at the weakest penalty. k-nearest votes differ by the tie-break of 1e-6 alone.
TOLERANCE = {"ridge": 1e-6, "logistic": 1e-4, "knn": 2e-6, "correspondence": 1e-9}
STOP = newton.TOLERANCE  # what users have
STRENGTHS = {
    "ridge": (1e-4, 0.1, 10.0),
    "logistic": (1e-3, 0.1, 100.0),
    "knn": (1, 3, 11),
    "correspondence": (1, 3, 11),
}


@pytest.fixture(autouse=True)
def converged(monkeypatch):
    """Readouts are compared at the optimum."""
    monkeypatch.setattr(newton, "TOLERANCE", 1e-7)


class Data:
    """Features with unlike scales, large means and a constant column; targets that depend on them."""

    def __init__(self, kind: str, width: int = 12, seed: int = 0, masked: bool = False) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(G, N + M, width)) @ rng.normal(size=(G, width, width)) * rng.gamma(1, 10, width)
        x = x + rng.normal(size=width) * 100
        x[..., 1] = 1000.3
        self.x = torch.from_numpy(x).float()
        signal = np.stack([x[0, :, 2], x[0, :, 3], x[1, :, 4]], 1)
        signal = (signal - signal.mean(0)) / signal.std(0) + rng.normal(size=(N + M, K)) * 0.7
        if kind == "classification":
            y = np.digitize(signal[:, 0], [-0.8, 0.0, 0.8])
        elif kind == "multilabel":
            y = (signal > 0.2).astype(float)
        else:
            y = signal * [1e-6, 1.0, 1e4] + [0, 5, 0]
        if masked:
            y[rng.random(N + M) < 0.3, 1:] = np.nan  # two columns share a mask, one has none
        self.kind, self.y = kind, torch.from_numpy(y)
        self.folds = torch.from_numpy(rng.permutation(N) % 5)

    @property
    def target(self) -> Target:
        return Target(self.kind, self.y[:N], C if self.kind == "classification" else None)

    def fit(self, probe: str, **kwargs) -> Readout:
        kwargs = {"strengths": STRENGTHS[probe]} | kwargs
        metric = get_metric(METRIC[self.kind])
        return get_probe(probe)(self.x[:, :N], self.target, self.x[:, N:], self.folds, metric, **kwargs)


def kinds_of(probe: str) -> list[str]:
    """Without detection, a regression whose targets are places of pictures (`test_vision_detection`)."""
    return [kind for kind in probes_for(probe) if kind != "detection"]


def nearer(distance: np.ndarray) -> np.ndarray:
    """Equal votes but for the tie-break, in scikit-learn's terms."""
    return 1 + 1e-6 * (2 - distance) / 2


def carried(distance: np.ndarray) -> np.ndarray:
    """The weights of correspondence: a softmax over its temperature."""
    return np.exp((1 - distance) / 0.1)


def one_fit(probe: str, kind: str, strength: float, x, y, x_new) -> np.ndarray:
    """scikit-learn's predictions [m, K] of one fit on features [n, D]; targets column by column where masked."""
    scaler = StandardScaler().fit(x)
    x, x_new = scaler.transform(x), scaler.transform(x_new)
    if kind == "classification":
        if probe == "ridge":
            return RidgeClassifier(alpha=strength * len(x), solver="svd").fit(x, y).decision_function(x_new)
        model = (
            LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
            if probe == "logistic"
            else KNeighborsClassifier(
                int(strength),
                weights={"knn": nearer, "correspondence": carried}[probe],
                metric="cosine",
                algorithm="brute",
            )
        )
        return model.fit(x, y).predict_proba(x_new)
    columns = []
    for k in range(y.shape[1]):
        seen = ~np.isnan(y[:, k])
        a, b = x[seen], y[seen, k]
        if probe == "ridge":
            # alpha counts rows; the scale is that of all rows, as the features do not depend on the target
            columns.append(Ridge(alpha=strength * len(a), solver="svd").fit(a, b).predict(x_new))
        elif probe == "logistic":
            columns.append(
                LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(a, b).predict_proba(x_new)[:, 1]
            )
        else:
            near = KNeighborsRegressor(int(strength), metric="cosine", algorithm="brute").fit(x, x[:, 0])
            votes = y[near.kneighbors(x_new, return_distance=False), k]  # NaN where a neighbour's value is unknown
            count = (~np.isnan(votes)).sum(1)
            mean = np.where(np.isnan(votes), 0, votes).sum(1) / np.maximum(count, 1)
            columns.append(np.where(count > 0, mean, b.mean()))
    return np.stack(columns, 1)


def loop(probe: str, data: Data, strengths) -> tuple[np.ndarray, np.ndarray]:
    """The whole procedure by an explicit loop: inner scores [G, A] and test predictions [G, A, M, K]."""
    x, y = data.x.double().numpy(), data.y.numpy()
    inner, tested = [], []
    for g in range(G):
        for s in strengths:
            held_out = np.zeros((N, data.target.width))
            for fold in data.folds.unique():
                out = (data.folds == fold).numpy()
                held_out[out] = one_fit(probe, data.kind, s, x[g, :N][~out], y[:N][~out], x[g, :N][out])
            inner.append(get_metric(METRIC[data.kind])(data.y[:N], torch.from_numpy(held_out)).item())
            tested.append(one_fit(probe, data.kind, s, x[g, :N], y[:N], x[g, N:]))
    return np.reshape(inner, (G, -1)), np.reshape(tested, (G, len(strengths), M, -1))


CASES = [
    (probe, kind, width, masked)
    for probe in PROBES
    for kind in kinds_of(probe)
    for width, masked in ((12, False), (150, False), (12, True))  # 150: more columns than rows
    if not (masked and kind == "classification")
]


@pytest.mark.parametrize(("probe", "kind", "width", "masked"), CASES)
def test_agrees_with_scikit_learn_at_every_strength(probe, kind, width, masked):
    data = Data(kind, width, masked=masked)
    strengths = STRENGTHS[probe]
    inner, tested = loop(probe, data, strengths)
    size = np.abs(tested).max((0, 1, 2))  # targets have unlike scales
    for a, strength in enumerate(strengths):
        alone = data.fit(probe, strengths=(strength,))
        np.testing.assert_allclose(alone.prediction.numpy() / size, tested[:, a] / size, atol=TOLERANCE[probe], rtol=0)
    readout = data.fit(probe)
    assert readout.strengths == strengths
    assert len(set(readout.inner.flatten().tolist())) > 3  # scores differ, so that equality says something
    # A score changes by one pair of samples at most where predictions agree to their tolerance.
    atol = 1e-5 if kind == "regression" else 1e-12 if kind == "classification" else 1e-3
    np.testing.assert_allclose(readout.inner, inner, atol=atol, rtol=0)
    rows = np.arange(G)
    best = tested[rows, readout.chosen.numpy()]
    np.testing.assert_allclose(readout.prediction.numpy() / size, best / size, atol=TOLERANCE[probe], rtol=0)
    assert (readout.inner[rows, readout.chosen] == readout.inner.amax(1)).all()


@pytest.mark.parametrize("width", [12, 150])
def test_logistic_stops_where_probabilities_are_good_to_a_thousandth(width, monkeypatch):
    """At the weakest penalty; where it is strong, to less."""
    monkeypatch.setattr(newton, "TOLERANCE", STOP)
    data = Data("classification", width)
    _, tested = loop("logistic", data, STRENGTHS["logistic"])
    for a, strength in enumerate(STRENGTHS["logistic"]):
        found = data.fit("logistic", strengths=(strength,)).prediction.numpy()
        np.testing.assert_allclose(found, tested[:, a], atol=1e-3 * min(1, strength), rtol=0)


@pytest.mark.parametrize("width", [12, 150])
@pytest.mark.parametrize("probe", ["ridge", "logistic"])
def test_columns_that_vary_in_one_row_alone(probe, width):
    """The fit without that row sees a constant, which no rounding may turn into a feature."""
    data = Data("classification", width)
    data.x[:, :, :4] = 0
    data.x[:, torch.arange(4) * 3, torch.arange(4)] = torch.tensor([1e-3, 0.01, 0.1, 10.0])
    inner, tested = loop(probe, data, STRENGTHS[probe])
    readout = data.fit(probe)
    np.testing.assert_allclose(readout.inner, inner, atol=1e-12, rtol=0)
    best = tested[np.arange(G), readout.chosen.numpy()]
    np.testing.assert_allclose(readout.prediction.numpy(), best, atol=TOLERANCE[probe], rtol=0)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_knn_is_that_of_scikit_learn_itself(kind):
    data = Data(kind)
    scaler = StandardScaler().fit(data.x[0, :N].double())
    x, x_new = scaler.transform(data.x[0, :N].double()), scaler.transform(data.x[0, N:].double())
    model = (KNeighborsClassifier if kind == "classification" else KNeighborsRegressor)(5, metric="cosine")
    model.fit(x, data.y[:N])
    want = model.predict_proba(x_new) if kind == "classification" else model.predict(x_new)
    np.testing.assert_allclose(data.fit("knn", strengths=(5,)).prediction[0], want, atol=2e-6, rtol=1e-9)


def test_knn_gives_equal_counts_to_the_nearer_class():
    def circle(degrees):
        angle = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angle.cos(), angle.sin()], 1)[None]

    x = circle([0.0, 40, 90, 130, 180, 220, 270, 310])  # symmetric, so that standardising keeps the angles
    target = Target("classification", torch.tensor([1, 0, 2, 2, 2, 2, 2, 2]))
    folds = torch.arange(8) % 2
    readout = get_probe("knn")(x, target, circle([10.0, 30]), folds, get_metric("accuracy"), strengths=(2,))
    torch.testing.assert_close(readout.prediction[0, :, :2], torch.full((2, 2), 0.5).double(), atol=2e-6, rtol=0)
    assert readout.prediction[0].argmax(1).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_logistic_converges_where_it_is_hard(seed):
    # More columns than rows, weak penalty, classes that can be told apart: the optimum is far out.
    rng = np.random.default_rng(seed)
    y = torch.from_numpy(rng.integers(0, C, N))
    x = torch.from_numpy(rng.normal(size=(G, N, 200)) * np.arange(1, 201) ** -1.0).float()
    folds = torch.arange(N) % 3
    readout = get_probe("logistic")(x, Target("classification", y), x, folds, get_metric("accuracy"), strengths=(1e3,))
    assert (readout.gradient_norm <= newton.TOLERANCE).all()
    assert (readout.gradient_norm > 0).all()
    assert (readout.prediction.argmax(-1) == y).all()


def test_logistic_reports_a_gradient_that_has_not_converged(monkeypatch):
    monkeypatch.setattr(newton, "_STEPS", 2)
    assert (Data("classification").fit("logistic").gradient_norm > newton.TOLERANCE).all()


@pytest.mark.parametrize("probe", PROBES)
def test_ties_go_to_the_most_regularised(probe):
    # A target that the first column gives away: all strengths score 1.
    y = torch.arange(N) % 2
    x = (y * 2.0 - 1)[None, :, None].repeat(1, 1, 2)
    strengths = {"ridge": (0.1, 10.0, 1.0), "logistic": (1.0, 0.1, 10.0)}.get(probe, (1, 7, 3))
    metric = get_metric("accuracy")
    readout = get_probe(probe)(x, Target("classification", y), x, torch.arange(N) // 30, metric, strengths=strengths)
    assert (readout.inner == 1).all()
    assert readout.chosen.tolist() == [1]


@pytest.mark.parametrize("probe", PROBES)
def test_order_of_the_strengths_does_not_matter(probe):
    data = Data("classification")
    forward = data.fit(probe)
    backward = data.fit(probe, strengths=STRENGTHS[probe][::-1])
    torch.testing.assert_close(forward.inner, backward.inner.flip(1), rtol=0, atol=0)
    torch.testing.assert_close(forward.prediction, backward.prediction, rtol=0, atol=0)


@pytest.mark.parametrize(("probe", "kind"), [(p, k) for p in PROBES for k in kinds_of(p)])
def test_two_calls_are_equal_bit_by_bit_and_chunks_do_not_matter(probe, kind, monkeypatch):
    data = Data(kind, masked=kind != "classification")
    first, second = data.fit(probe), data.fit(probe)
    assert torch.equal(first.inner, second.inner)
    assert torch.equal(first.prediction, second.prediction)
    monkeypatch.setattr(probes_base, "CHUNK_BYTES", 1)  # one group (and one query) at a time
    alone = data.fit(probe)
    # Groups share nothing but matrix products, whose rounding depends on their shape.
    size = first.prediction.abs().amax((0, 1))
    torch.testing.assert_close(alone.prediction / size, first.prediction / size, rtol=0, atol=TOLERANCE[probe])
    assert torch.equal(alone.chosen, first.chosen)


@pytest.mark.parametrize("probe", PROBES)
def test_default_strengths_are_used_and_limited_by_the_rows(probe):
    data = Data("classification")
    readout = data.fit(probe, strengths=None)
    assert readout.inner.shape == (G, len(readout.strengths))
    assert readout.prediction.shape == (G, M, C)
    if probe in ("knn", "correspondence"):
        assert readout.strengths == (1, 3, 5, 10, 20, 50)
        few = torch.arange(0, N, 9)
        small = get_probe(probe)(
            data.x[:, few],
            Target("classification", data.y[few], C),
            data.x,
            torch.arange(10) % 2,
            get_metric("accuracy"),
        )
        assert small.strengths == (1, 3, 5)


@pytest.mark.parametrize("probe", PROBES)
def test_a_class_that_a_fit_has_not_seen_scores_lowest(probe):
    y = torch.arange(N) % C
    noise = torch.randn(1, N, C, generator=torch.Generator().manual_seed(0))
    x = 8.0 * torch.nn.functional.one_hot(y, C) + noise
    only_in_fold_0 = y == 3
    folds = torch.where(only_in_fold_0, 0, torch.arange(N) // C % 5)
    target = Target("classification", y, C + 1)  # and class 4 is nowhere
    both = torch.cat([x, x * 1e3], 1)  # far out, linear scores of the seen classes fall below the unseen one's -1
    readout = get_probe(probe)(x, target, both, folds, get_metric("accuracy"), strengths=STRENGTHS[probe])
    assert (readout.prediction[..., C] == readout.prediction.amin(-1)).all()
    assert (readout.prediction.argmax(-1) < C).all()
    if probe != "ridge":
        assert (readout.prediction[..., C] == 0).all()
    # The rows of class 3 are predicted by a fit that does not know it: they, and no others, are missed.
    assert readout.inner.amax() == 1 - only_in_fold_0.double().mean()


@pytest.mark.parametrize("probe", [name for name in PROBES if "multilabel" in probes_for(name)])
def test_a_label_that_a_fold_does_not_know_gets_one_score_for_all(probe):
    data = Data("multilabel")
    data.y[:N][data.folds != 0] = torch.nan  # the fit that predicts fold 0 knows no value at all
    assert (data.fit(probe).inner == 0.5).all()
    data = Data("multilabel")
    free = data.fit(probe, strengths=STRENGTHS[probe][:1])
    data.y[:N, 0][data.folds != 1] = 1  # the fit that predicts fold 1 sees label 0 as 1 only
    data.y[:N, 1] = torch.where(torch.arange(N) % 3 == 0, torch.nan, 1)
    tied = data.fit(probe, strengths=STRENGTHS[probe][:1])
    assert tied.inner.isfinite().all()
    assert (tied.prediction[..., 1] >= 0.9).all()
    spread = tied.prediction[..., 1].amax(1) - tied.prediction[..., 1].amin(1)
    assert (spread <= (0 if probe == "logistic" else 1e-12)).all()  # else noise would rank samples; a mean is rounded
    torch.testing.assert_close(tied.prediction[..., 2], free.prediction[..., 2], atol=TOLERANCE[probe], rtol=0)


@pytest.mark.parametrize("probe", ["ridge", "knn"])
def test_a_value_that_a_fold_does_not_know_is_the_mean_of_all(probe):
    data = Data("regression")
    data.y = data.y[:, 1:2]
    data.y[:N][data.folds != 0] = torch.nan  # so that every scored row is predicted without any value known
    np.testing.assert_allclose(data.fit(probe).inner, 0, atol=1e-12)  # R2 of the mean; sums of about 20 terms


def test_constant_columns_and_float32_noise_are_ignored():
    data = Data("classification")
    plain = data.fit("ridge")
    noise = torch.randn(G, N + M, 1, generator=torch.Generator().manual_seed(0))
    data.x = torch.cat([data.x, 1e4 + noise * 1e-3, torch.full((G, N + M, 1), 7.0)], 2)
    data.x[:, N:, -1] = 1e6  # constant in training alone
    for probe in PROBES:
        assert data.fit(probe).prediction.isfinite().all()
    torch.testing.assert_close(data.fit("ridge").prediction, plain.prediction, atol=1e-9, rtol=0)


@pytest.mark.parametrize("probe", PROBES)
def test_features_without_any_information_do_not_crash(probe):
    data = Data("classification")
    data.x = torch.full((G, N + M, 4), 3.0)
    readout = data.fit(probe)
    assert readout.prediction.isfinite().all()
    assert readout.gradient_norm is None or (readout.gradient_norm <= newton.TOLERANCE).all()
    if probe not in ("knn", "correspondence"):  # whose neighbours are arbitrary here
        majority = data.y[:N].bincount().argmax()
        assert (readout.prediction.argmax(-1) == majority).all()


def mistakes() -> dict[str, tuple[dict, type[Exception], str]]:
    """Arguments of fit_predict that are wrong, the exception due, and what its message must say."""
    data = Data("classification")
    y, x = data.y[:N], data.x.clone()
    x[0, 0, 0] = torch.nan
    labels = torch.zeros(N, 2)
    some_known = labels.clone()
    some_known[0], some_known[:, 1] = 1, torch.nan
    auroc = get_metric("auroc")

    def classes(y, n):
        return {"target": Target("classification", y, n)}

    def multilabel(y):
        return {"target": Target("multilabel", y), "metric": auroc}

    return {
        "one class": (classes(torch.zeros(N).long(), 2), DataError, "fewer than two classes"),
        "one class a label": (multilabel(labels), DataError, "fewer than two classes"),
        "label never known": (multilabel(some_known), DataError, r"columns \[1\] have no known value"),
        "label 2": (multilabel(labels + 2), DataError, "other than 0, 1"),
        "class outside": (classes(y, 2), DataError, "outside 0 to 1"),
        "float classes": (classes(y.float(), C), DataError, "integers"),
        "NaN features": ({"x": x[:, :N]}, DataError, "training features hold NaN"),
        "NaN test features": ({"x_test": x[:, :5]}, DataError, "test features hold NaN"),
        "no rows": ({"x": x[:, :0], **classes(y[:0], 2), "folds": data.folds[:0]}, DataError, "training .* are empty"),
        "no test rows": ({"x_test": x[:, :0]}, DataError, "test features are empty"),
        "one fold": ({"folds": torch.zeros(N).long()}, DataError, "one fold"),
        "short folds": ({"folds": data.folds[:-1]}, DataError, "fold ids"),
        "unlike widths": ({"x_test": data.x[:, N:, :-1]}, DataError, r"\[G, M, D\]"),
        "metric of another kind": ({"metric": get_metric("r2")}, SpecError, "not for classification"),
        "negative strength": ({"strengths": (1, -1)}, SpecError, "positive"),
        "no strength": ({"strengths": ()}, SpecError, "positive"),
    }


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(("changes", "error", "message"), mistakes().values(), ids=mistakes())
def test_bad_input_is_named(probe, changes, error, message):
    data = Data("classification")
    if probe == "correspondence" and changes.get("target", data.target).kind != "classification":
        error, message = SpecError, "take knn"
    good = {"x": data.x[:, :N], "target": data.target, "x_test": data.x[:, N:], "folds": data.folds}
    with pytest.raises(error, match=message):
        get_probe(probe)(**{**good, "metric": get_metric("accuracy"), **changes})


def test_targets_that_do_not_vary_are_named():
    data = Data("regression")
    data.y = torch.ones_like(data.y)
    with pytest.raises(DataError, match="r2 is undefined on the training rows"):
        data.fit("ridge")


def test_what_only_one_probe_refuses():
    with pytest.raises(SpecError, match="take ridge or knn"):
        Data("regression").fit("logistic")
    with pytest.raises(SpecError, match="correspondence carries classes, not multilabel targets; take knn"):
        Data("multilabel").fit("correspondence")
    for k in (N, 2.5):
        with pytest.raises(SpecError, match="whole numbers of neighbours from 1 to 72"):
            Data("classification").fit("knn", strengths=(k,))


def test_registry_names_every_probe_and_suggests_near_ones():
    for name, entry in PROBES.items():
        assert callable(get_probe(name))
        assert entry.description
    for ask in (get_probe, probes_for):
        with pytest.raises(UnknownNameError, match="did you mean 'ridge'"):
            ask("rigde")


@pytest.mark.parametrize("probe", PROBES)
def test_probes_take_the_kinds_that_they_name(probe):
    taken = []
    for kind in METRIC:
        try:
            Data(kind).fit(probe)
        except SpecError:
            continue
        taken.append(kind)
    assert taken == kinds_of(probe)


def test_probes_need_torch_and_numpy_alone():
    code = (
        "import sys; from tsprobe.probes import PROBES, get_probe; [get_probe(n) for n in PROBES];"
        "print([m for m in ('sklearn', 'scipy', 'pandas', 'xarray') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
