"""Tasks: the user's own arrays, folds of the training rows, names, and the archives' sets that sktime ships."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pandas as pd
import pytest
import torch

import tsprobe.tasks as tasks
from tsprobe.data import Panel
from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.tasks import Classification, MultiLabel, Regression, list_tasks, load_task

rng = np.random.default_rng(0)
X, Z = rng.normal(size=(12, 2, 9)), rng.normal(size=(4, 2, 9))
A, B = list("abcabcabcabc"), list("cabb")
Y, YZ = rng.normal(size=(12, 2)), rng.normal(size=(4, 2))
BITS, ZBITS = (Y > 0).astype(int), (YZ > 0).astype(int)


# ---- making tasks


@pytest.mark.parametrize(
    ("labels", "test", "names"),
    [
        (A, B, ("a", "b", "c")),
        (np.array(A), np.array(B), ("a", "b", "c")),
        (np.array([ord(a) for a in A]), [ord(b) for b in B], ("97", "98", "99")),
        ([-0.5 * ord(a) for a in A], [-0.5 * ord(b) for b in B], ("-49.5", "-49.0", "-48.5")),
        (torch.tensor([ord(a) for a in A]), torch.tensor([float(ord(b)) for b in B]), ("97", "98", "99")),
        (pd.Series(A, dtype="category"), pd.Series(B, dtype="string"), ("a", "b", "c")),
        (np.array(A)[:, None], B, ("a", "b", "c")),
        (np.array([{"a": 1, "b": "x", "c": "y"}[a] for a in A], dtype=object), ["y", 1, "x", "x"], ("1", "x", "y")),
    ],
)
def test_labels_of_any_type_become_sorted_classes(labels, test, names):
    if isinstance(test, list) and {type(t) for t in test} == {int, str}:
        test = np.array(test, dtype=object)
    task = Classification("mine", (X, labels), (Z, test))
    assert task.labels == names
    assert task.n_classes == 3
    assert task.y_train.dtype == task.y_test.dtype == np.int64
    order = [2, 1, 0] if names[0] == "-49.5" else [0, 1, 2]
    assert task.y_train.tolist() == order * 4
    assert task.y_test.tolist() == [order["abc".index(b)] for b in B]
    assert (task.kind, task.metric, task.family) == ("classification", "accuracy", "classification")


def test_targets_of_regression_and_multilabel():
    task = Regression("r", (X, Y[:, 0].astype(np.float32)), (Z, YZ[:, 0]))
    assert task.y_train.shape == (12, 1)
    assert task.y_train.dtype == np.float64
    assert task.metric == "r2"
    frame = pd.DataFrame(Y, columns=["fat", "water"])
    task = Regression("r", (X, frame), (Z, YZ))
    assert task.labels == ("fat", "water")
    np.testing.assert_array_equal(task.y_train, Y)
    task = MultiLabel("m", (X, BITS), (Z, ZBITS.astype(bool)), labels=["p", "q"])
    assert task.labels == ("p", "q")
    assert task.metric == "auroc"
    assert task.kind == "multilabel"
    np.testing.assert_array_equal(task.y_test, ZBITS)


def with_entry(y, value, at=(1, 1)):
    y = np.array(y, dtype=object if isinstance(value, str) else float)
    y[at] = value
    return y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification("", (X, A), (Z, B)), "name"),
        (lambda: Classification("t", (X, A[:11]), (Z, B)), "12 training series but 11 targets"),
        (lambda: Classification("t", (X, A), (Z, B[:3])), "4 test series but 3 targets"),
        (lambda: Classification("t", (X, A), (Z[:, :1], B)), "training series have 2 channels, test series 1"),
        (lambda: Classification("t", (X[:0], A[:0]), (Z, B)), "'t', train: no series"),
        (lambda: Classification("t", (X, A), (Z[:0], B[:0])), "'t', test: no series"),
        (lambda: Classification("t", (X, ["a"] * 12), (Z, ["a"] * 4)), r"only one class \(a\)"),
        (lambda: Classification("t", (X, A), (Z, list("abxy"))), "test labels x, y do not occur in training"),
        (lambda: Classification("t", (X, [*range(11), np.nan]), (Z, [1, 2, 3, 4])), "training label 11 is missing"),
        (lambda: Classification("t", (X, A), (Z, ["a", "b", None, "c"])), "test label 2 is missing"),
        (lambda: Classification("t", (X, pd.Series([*A[:11], pd.NA])), (Z, B)), "training label 11 is missing"),
        (lambda: Classification("t", (X, Y), (Z, YZ)), r"shape \(12, 2\); give \[N\], or use MultiLabel"),
        (lambda: Classification("t", X, (Z, B)), r"train= must be a pair \(series, targets\)"),
        (lambda: Classification("t", (X, A), (Z, B), groups=[1, 2]), r"groups \(2,\) for 12 training series"),
        (lambda: Classification("t", (X, A), (Z, B), groups=A, ordered=True), "must be contiguous"),
        (lambda: MultiLabel("t", (X, with_entry(BITS, 2.0)), (Z, ZBITS)), "training target 2 is neither 0 nor 1"),
        (lambda: MultiLabel("t", (X, BITS), (Z, with_entry(ZBITS, 0.5))), "test target 0.5 is neither"),
        (lambda: MultiLabel("t", (X, BITS * 0), (Z, ZBITS)), "every label is the same"),
        (lambda: MultiLabel("t", (X, BITS), (Z, ZBITS), labels=["a"]), "1 label names for 2 targets"),
        (lambda: Regression("t", (X, with_entry(Y, np.inf)), (Z, YZ)), "infinite training target"),
        (lambda: Regression("t", (X, with_entry(Y, "high")), (Z, YZ)), "training targets are not numbers"),
        (
            lambda: Regression("t", (X, with_entry(Y, np.nan, np.s_[:, 1])), (Z, YZ)),
            "no training row has .* 'target 1'",
        ),
        (lambda: Regression("t", (X, Y), (Z, YZ[:, :1])), "2 training targets a row and 1 test"),
        (lambda: Regression("t", (X, Y[:11]), (Z, YZ)), "12 training series but 11 targets"),
        (lambda: Regression("t", (X, Y[:, :, None]), (Z, YZ)), r"shape \(12, 2, 1\)"),
    ],
)
def test_bad_tasks_have_one_clear_error(make, message):
    with pytest.raises(DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_odd_names_are_kept():
    assert Classification("a/b c?d=é\n", (X, A), (Z, B)).name == "a/b c?d=é\n"


def test_fingerprint_sees_what_a_score_depends_on():
    def make(name="t", x=X, y=A, z=Z, w=B, metric="accuracy", groups=None, ordered=False):
        return Classification(name, (x, y), (z, w), metric=metric, groups=groups, ordered=ordered).fingerprint()

    blocks = np.repeat([0, 1], 6)
    changed = [
        make(), make(x=X + 1), make(z=Z + 1), make(y=A[::-1]), make(w=B[::-1]), make(metric="f1"), make(groups=blocks),
        make(ordered=True), make(y=[a.upper() for a in A], w=[b.upper() for b in B]),
    ]  # fmt: skip
    assert len(set(changed)) == len(changed)
    assert make(name="other") == make()


def test_tasks_refuse_parts_that_do_not_fit():
    task = Regression("r", (X, Y), (Z, YZ))
    for change, message in (
        ({"kind": "ranking"}, "kind 'ranking'"),
        ({"labels": ("a",)}, r"training targets \(12, 2\), not \[12, 1\]"),
        ({"kind": "classification"}, "int64 class indices"),
        ({"test": Panel((np.zeros((3, 5), np.float32),)), "y_test": YZ[:1]}, "2 channels, test series 3"),
    ):
        with pytest.raises(DataError, match=message):
            dataclasses.replace(task, **change)


# ---- folds


def task_of(y, groups=None, ordered=False):
    x = np.zeros((len(y), 3))
    return Classification("folds", (x, y), (x[:1], y[:1]), groups=groups, ordered=ordered)


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_classes_are_spread_over_folds(n_folds):
    y = rng.permutation([0] * 40 + [1] * 7 + [2] * 2 + [3])
    task = task_of(y)
    fold = task.folds(n_folds, seed=1)
    assert fold.dtype == np.int64
    assert sorted(set(fold)) == list(range(n_folds))
    for members in (fold, *(fold[y == c] for c in range(4))):
        counts = np.bincount(members, minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(fold, task.folds(n_folds, seed=1))
    assert (fold != task.folds(n_folds, seed=2)).any()


def test_regression_folds_are_shuffled_and_spread_the_usable_rows():
    y = with_entry(rng.normal(size=(30, 2)), np.nan, np.s_[:9])
    x = np.zeros((30, 3))
    fold = Regression("r", (x, y), (x[:2], y[20:22])).folds(3, seed=0)
    assert np.bincount(fold).tolist() == [10] * 3
    assert np.bincount(fold[9:]).tolist() == [7] * 3
    assert (np.diff(fold) < 0).any()
    y[11:] = np.nan
    y[9, 0] = y[10, 1] = np.nan  # two rows are left, with one of two targets each
    fold = Regression("r", (x, y), (x[:2], y[9:11])).folds(5, seed=0)
    assert sorted(fold[9:11]) == [0, 1]
    assert np.bincount(fold).tolist() == [15, 15]


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_groups_stay_together_and_classes_stay_spread(n_folds):
    groups = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 9, 20)))
    y = rng.integers(0, 3, 20)[groups]  # a group is of one class: the hard case
    fold = task_of(y, groups).folds(n_folds, seed=0)
    assert all(len(set(fold[groups == g])) == 1 for g in groups)
    assert sorted(set(fold)) == list(range(n_folds))
    if n_folds == 2:
        for c in range(3):
            share = np.bincount(fold[y == c], minlength=2) / (y == c).sum()
            assert share.min() > 0.3  # whole groups of up to 8 rows cannot be cut finer
    shuffled = task_of(y, groups[rng.permutation(len(groups))]).folds(n_folds, seed=0)
    assert not all(len(set(shuffled[groups == g])) == 1 for g in groups)  # the check can fail


def test_group_names_may_be_text_and_regression_has_groups_too():
    groups = list("aabbbccdddee")
    fold = Regression("r", (X, Y), (Z, YZ), groups=groups).folds(3, 0)
    assert len({(g, f) for g, f in zip(groups, fold, strict=True)}) == 5
    assert len(set(fold)) == 3


def test_ordered_rows_make_contiguous_blocks():
    fold = task_of([0, 1] * 11, ordered=True).folds(4, seed=3)
    assert (np.diff(fold) >= 0).all()
    assert np.bincount(fold).tolist() in ([5, 6, 5, 6], [6, 5, 6, 5])
    groups = np.repeat([7, 3, 5], [2, 16, 4])
    fold = task_of([0, 1] * 11, groups, ordered=True).folds(3, seed=3)
    assert (np.diff(fold) >= 0).all()
    assert len(set(zip(groups, fold, strict=True))) == 3
    assert set(fold) == set(range(fold.max() + 1))
    assert fold.max() >= 1


def test_fewer_rows_or_groups_than_folds():
    assert sorted(task_of([0, 1, 1]).folds(5, 0)) == [0, 1, 2]
    assert set(task_of([0, 1, 1, 0], groups=[1, 1, 2, 2]).folds(5, 0)) == {0, 1}
    assert task_of([0, 1, 1], ordered=True).folds(5, 0).tolist() == [0, 1, 2]


def test_folds_that_cannot_be():
    with pytest.raises(SpecError, match="n_folds is 1"):
        task_of([0, 1]).folds(1, 0)
    with pytest.raises(DataError, match="1 groups with a target"):
        task_of([0, 1], groups=[1, 1]).folds(2, 0)
    y = with_entry(Y, np.nan, np.s_[1:])
    with pytest.raises(DataError, match="1 training rows with a target"):
        Regression("r", (X, y), (Z, YZ)).folds(2, 0)


# ---- names


LISTED = [row for row in list_tasks() if row["here"]]  # speech needs packages that are not here


@pytest.mark.parametrize("row", LISTED, ids=lambda row: row["name"])
def test_the_list_says_what_the_task_is(row):
    task = load_task(row["name"])
    lengths = np.concatenate([task.train.lengths, task.test.lengths])
    low, high = lengths.min(), lengths.max()
    loaded = {
        "n_train": task.train.n,
        "n_test": task.test.n,
        "channels": task.train.channels,
        "length": f"{low}-{high}" if low < high else f"{low}",
        "classes": task.n_classes,
        "here": True,
    }
    assert row == loaded | {
        key: getattr(task, key) for key in ("name", "family", "kind", "metric", "source", "licence")
    }
    gaps = "imputation" in row["name"]
    assert (task.train.missing > 0) == (task.test.missing > 0) == gaps
    assert task.description.startswith(f"{task.name}: {task.kind}, {task.train.n} train")


def test_the_shipped_sets_are_those_described():
    # series, channels, length, classes: from the description of the data, not from our table
    described = {
        "ucr/ACSF1": (200, 1, "1460", 10),
        "ucr/ArrowHead": (211, 1, "251", 3),
        "uea/BasicMotions": (80, 6, "100", 4),
        "ucr/GunPoint": (200, 1, "150", 2),
        "ucr/ItalyPowerDemand": (1096, 1, "24", 2),
        "ucr/OSULeaf": (442, 1, "427", 6),
        "uea/JapaneseVowels": (640, 12, "7-29", 9),
        "tser/Covid3Month": (201, 1, "84", 1),
        "tser/Tecator": (215, 1, "100", 1),
    }
    listed = {
        row["name"]: (row["n_train"] + row["n_test"], row["channels"], row["length"], row["classes"])
        for row in LISTED
        if row["name"].startswith(("ucr/", "uea/", "tser/"))
    }
    plaid = listed.pop("ucr/PLAID")
    assert listed == described
    assert (plaid[0], plaid[-1]) == (1074, 11)


def test_labels_of_shipped_sets():
    motions = load_task("uea/BasicMotions")
    assert motions.labels == ("Badminton", "Running", "Standing", "Walking")
    assert np.bincount(motions.y_train).tolist() == [10] * 4
    assert motions.train.stack().shape == (40, 6, 100)
    covid = load_task("tser/Covid3Month")
    y = np.concatenate([covid.y_train, covid.y_test])
    assert y.min() == 0
    assert 0.17 < y.max() < 0.19
    assert len(set(load_task("tser/Tecator").y_train[:, 0])) > 100


def test_ragged_sets_stay_ragged():
    vowels = load_task("ucr/JapaneseVowels")
    assert vowels.train.ragged
    assert vowels.train.channels == 12
    assert vowels.train.missing == 0
    assert np.isfinite(vowels.train[0]).all()
    assert vowels.train[0].shape == (12, 20)
    assert load_task("ucr/PLAID").test.ragged
    assert vowels.train.fingerprint() == load_task("uea/JapaneseVowels").train.fingerprint()


TS = "@timeStamps false\n@classLabel true Up down\n@data\n1,2,3:4,5,6:Up\n1,2,3:4,5,?:down\n"


def test_ts_files_by_path(tmp_path, monkeypatch):
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"Foo_{split}.ts").write_text(TS)
    monkeypatch.chdir(tmp_path.parent)
    names = (tmp_path, tmp_path / "Foo", tmp_path / "Foo_TRAIN.ts", f"ts/{tmp_path}/Foo", f"./{tmp_path.name}",
             f"{tmp_path.name}/Foo_TEST.ts", f"ts/{tmp_path.name}/Foo")  # fmt: skip
    for name in names:
        task = load_task(name)
        assert task.labels == ("Up", "down")
        assert task.train.channels == 2
        assert task.test.missing == 1
    assert load_task(str(tmp_path)).name == f"ts/{tmp_path}/Foo"
    (tmp_path / "Foo_TRAIN.ts").write_text("@targetLabel true\n@data\n1,2:0.5\n3,4:1.5\n")
    with pytest.raises(DataError, match=r"is a regression but .* a classification"):
        load_task(str(tmp_path))
    (tmp_path / "Foo_TEST.ts").write_text("@targetLabel true\n@data\n1,2:0.5\n")
    task = load_task(str(tmp_path))
    assert task.kind == "regression"
    assert task.metric == "r2"
    assert task.y_train.tolist() == [[0.5], [1.5]]


def test_ts_files_that_fail(tmp_path):
    (tmp_path / "Foo_TRAIN.ts").write_text(TS)
    with pytest.raises(DataError, match=r"no file .*Foo_TEST\.ts"):
        load_task(f"{tmp_path}/Foo")
    (tmp_path / "Foo_TEST.ts").write_text(TS + "1,2,oops:4,5,6:Up\n")
    with pytest.raises(DataError, match=r"Foo_TEST\.ts, line 6, channel 1: 'oops'"):
        load_task(f"{tmp_path}/Foo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ucrr/GunPoint", "did you mean 'ucr/GunPoint'"),
        ("GunPoint", "did you mean 'ucr/GunPoint'"),
        ("process/k2state", "did you mean 'process/k2-state'"),
        ("process/k0", "k1 to k14"),
        ("process/k15", "k1 to k14"),
        ("ucr/../secret", "letters, digits"),
        ("ucr/", "sources: .*process/"),
        ("", "sources: .*process/"),
    ],
)
def test_unknown_names_suggest_near_ones(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_task(name)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    from tsprobe.tasks import archive

    def fail(name):
        raise DataError(f"{name} could not be downloaded")

    monkeypatch.setattr(archive, "download", fail)
    with pytest.raises(DataError, match="GunPont could not be downloaded; did you mean 'ucr/GunPoint'"):
        load_task("ucr/GunPont")


def test_a_set_of_the_other_kind_is_refused():
    with pytest.raises(DataError, match="load it as tser/Tecator"):
        load_task("ucr/Tecator")
    with pytest.raises(DataError, match="load it as ucr/GunPoint"):
        load_task("tser/GunPoint")


def plugin(name):
    return f"loaded {name}"


def test_sources_of_other_packages(monkeypatch):
    def points(group):
        assert group == "tsprobe.tasks"
        return [EntryPoint("shop", f"{__name__}:plugin", group), EntryPoint("ucr", tasks._OWN["ucr"], group)]

    monkeypatch.setattr(tasks, "entry_points", lambda group: [])
    listed = list_tasks()
    monkeypatch.setattr(tasks, "entry_points", points)
    assert load_task("shop/a/b") == "loaded a/b"
    assert list_tasks() == listed  # this module has no list of its own, only ours by import
    monkeypatch.setattr(tasks, "entry_points", lambda group: [EntryPoint("ucr", "other:load", group)])
    with pytest.raises(SpecError, match="two packages provide the tasks ucr/: tsprobe"):
        load_task("ucr/GunPoint")


def test_nothing_heavy_is_imported():
    def heavy(code):
        show = "print([m for m in ('sktime', 'sklearn', 'scipy', 'transformers', 'mlflow') if m in sys.modules])"
        return subprocess.check_output([sys.executable, "-c", f"import sys; {code}; {show}"], text=True).strip()

    loads = "import tsprobe.tasks as t; t.list_tasks(); t.load_task('ucr/GunPoint'); t.load_task('process/k1')"
    assert heavy(loads) == "[]"
    assert heavy("import scipy") == "['scipy']"
