"""Few training series of each class, and another metric, by the name of a task."""

from __future__ import annotations

import numpy as np
import pytest

from tsprobe.errors import DataError, SpecError, UnknownNameError
from tsprobe.tasks import Classification, load_task, load_tasks


def mine(counts=(9, 4, 6), groups=False):
    """Series of 5 steps that all hold their number."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.arange(len(y), dtype=np.float32)[:, None, None].repeat(5, 2)
    split = x, np.array(list("abcdefgh"))[y]
    return Classification("mine", split, split, groups=10 * np.arange(len(y)) if groups else None)


def numbers(task):
    return [int(x[0, 0]) for x in task.train.series]


@pytest.mark.parametrize("shots", [2, 3, 4])
def test_so_many_of_each_class_are_drawn_and_the_test_series_stay(shots):
    whole = mine(groups=True)
    few = whole.few_shot(shots, seed=1)
    assert np.bincount(few.y_train).tolist() == [shots] * 3
    rows = numbers(few)
    assert rows == sorted(set(rows))
    np.testing.assert_array_equal(few.y_train, whole.y_train[rows])
    np.testing.assert_array_equal(few.groups, 10 * np.array(rows))
    assert few.test is whole.test
    assert few.y_test is whole.y_test
    assert numbers(whole.few_shot(shots, seed=1)) == rows
    assert set(numbers(whole.few_shot(2, seed=1))) <= set(rows)
    assert len({tuple(numbers(whole.few_shot(shots, seed=seed))) for seed in range(8)}) > 1


def test_each_inner_fit_sees_as_many_of_one_class_as_of_another():
    few = mine().few_shot(3)
    folds = few.folds(5, seed=0)
    assert folds.max() == 2
    for fold in range(3):
        assert np.bincount(few.y_train[folds != fold]).tolist() == [2, 2, 2]
    assert mine().few_shot(4).folds(3, seed=0).max() == 2
    assert mine(groups=True).few_shot(2).folds(5, seed=0).max() == 1


def test_shots_and_seed_are_stated():
    by_name = load_task("ucr/GunPoint?seed=1&shots=5")
    assert by_name.name == "ucr/GunPoint?shots=5&seed=1"
    assert "10 train (5 a class, drawn with seed 1) and 150 test series" in by_name.description
    assert by_name.fingerprint() == load_task("ucr/GunPoint").few_shot(5, seed=1).fingerprint()
    assert by_name.test.n == 150
    # all series of a class alike, so that no draw leaves out any: the seed and the folds still differ
    same = mine((4, 4))
    assert len({task.fingerprint() for task in (same, same.few_shot(4), same.few_shot(4, seed=1))}) == 3
    assert load_task("uea/BasicMotions?shots=3").train.n == 12


def test_another_metric_by_name():
    assert load_task("ucr/GunPoint?metric=accuracy").name == "ucr/GunPoint"
    task = load_task("ucr/GunPoint?metric=balanced_accuracy&shots=3")
    assert (task.metric, task.name) == ("balanced_accuracy", "ucr/GunPoint?shots=3&metric=balanced_accuracy")
    assert load_task(task.name).fingerprint() == task.fingerprint()
    dense = load_task("dense/regimes?n_train=5&metric=covering&n_test=4&seed=2")
    assert (dense.metric, dense.name) == ("covering", "dense/regimes?n_train=5&n_test=4&seed=2&metric=covering")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ucr/GunPoint?shots=30", DataError, "'ucr/GunPoint': 30 shots, but class '1' has 24 training series"),
        ("ucr/GunPoint?shots=1", SpecError, "give at least 2 shots"),
        ("ucr/GunPoint?shots=3&seed=-1", SpecError, "a seed that is not negative"),
        ("ucr/GunPoint?shots=few", SpecError, "shots='few' is not int"),
        ("ucr/GunPoint?shots=3&seed=", SpecError, "seed='' is not int"),
        ("ucr/GunPoint?shot=3", SpecError, "no setting 'shot=3'; there are shots, with it seed, and metric"),
        ("ucr/GunPoint?seed=3", SpecError, "no setting 'seed=3'"),
        ("tser/Tecator?shots=3", SpecError, "shots are for one class a series, not for regression"),
        ("dense/regimes?n_train=5&shots=3", SpecError, "one class a series, not for dense classification"),
        ("ucr/GunPoint?metric=acuracy", UnknownNameError, "did you mean 'accuracy'"),
        ("ucr/GunPoint?metric=r2", SpecError, "'r2' is for regression or multilabel, not for classification"),
        ("ucr/GunPoint?metric=covering", SpecError, "is for dense classification, not for classification"),
    ],
)
def test_what_cannot_be_is_named(name, error, message):
    with pytest.raises(error, match=message):
        load_task(name)


def test_two_names_of_one_task_are_refused():
    twice = ["ucr/GunPoint", "ucr/GunPoint?metric=accuracy"]
    assert list(load_tasks([twice[1], twice[1]])) == [twice[1]]
    with pytest.raises(
        SpecError, match=r"ucr/GunPoint and ucr/GunPoint\?metric=accuracy are one task, ucr/GunPoint: ask"
    ):
        load_tasks(twice)
