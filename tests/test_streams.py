"""Streams of real data and generated anomalies: what is true of their steps, and that nothing scored is learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from tsprobe.data.anomalies import KINDS, LONGEST, SHORTEST, anomalies, inject
from tsprobe.errors import DataError, MissingPackageError, UnknownNameError
from tsprobe.tasks import load_task, streams


def test_anomalies_are_where_their_labels_say():
    rng = np.random.default_rng(0)
    clean = np.sin(np.arange(200) / 4) + 0.1 * rng.standard_normal(200)
    for _ in range(60):
        changed, where = inject(rng, clean)
        assert SHORTEST <= len(where) <= LONGEST
        assert (np.diff(where) == 1).all()
        rest = np.delete(np.arange(200), where)
        np.testing.assert_array_equal(changed[rest], clean[rest])
        assert (changed[where] != clean[where]).mean() > 0.7
    made = anomalies(50, length=256, seed=1)
    assert made.values.shape == (50, 1, 256)
    share = made.truth.mean(axis=(1, 2))
    assert (share > 0).all()
    assert share.max() <= 2 * LONGEST / 256
    assert set(np.unique(made.truth)) == {0, 1}
    assert len(KINDS) == 5


def test_spliced_series_keep_their_classes_and_their_split():
    task, whole = load_task("spliced/BasicMotions"), load_task("uea/BasicMotions")
    assert task.labels == whole.labels
    assert (task.family, task.metric, task.train.n, task.test.n) == ("dense", "macro_f1", 10, 10)
    for split in ("train", "test"):
        panel, source, y = getattr(task, split), getattr(whole, split), getattr(whole, f"y_{split}")
        index = {series.tobytes(): label for series, label in zip(source.series, y, strict=True)}
        used = [np.ascontiguousarray(s[:, a : a + 100]).tobytes() for s in panel.series for a in range(0, 400, 100)]
        assert len(set(used)) == 40  # each series of this split once
        for n, (at, targets) in enumerate(
            zip(getattr(task, f"steps_{split}"), getattr(task, f"y_{split}"), strict=True)
        ):
            assert [index[used[4 * n + step // 100]] for step in at] == targets.tolist()


def test_too_few_series_to_splice(monkeypatch):
    monkeypatch.setattr(streams, "PIECES", 30)
    with pytest.raises(DataError, match="40 training series make fewer than 2 streams of 30"):
        load_task("spliced/BasicMotions")


def test_the_gunpoint_stream_is_the_training_set_that_is_not_learnt_from():
    task, whole = load_task("dense/gunpoint-stream"), load_task("ucr/GunPoint")
    (stream,) = task.test.series
    assert stream.shape == (1, 1875)
    assert task.y_test[0].tolist() == (task.steps_test[0] >= 900).astype(int).tolist()
    # every fourth step of a series of the class on that side of the border is found again, up to scale
    windows = np.lib.stride_tricks.sliding_window_view(stream[0], 37)
    windows = (windows - windows.mean(1, keepdims=True)) / windows.std(1, keepdims=True)

    def likeness(panel, y, label):
        series = np.stack([s[0, ::4][:37] for s, c in zip(panel.series, y, strict=True) if c == label])
        series = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
        return windows @ series.T / 37  # [offsets, series]

    for label, side in ((0, slice(0, 860)), (1, slice(900, None))):
        best = likeness(whole.train, whole.y_train, label)[side].max(0)
        assert np.median(best) > 0.99
        assert np.median(likeness(whole.test, whole.y_test, label)[side].max(0)) < np.median(best)
    learnt = np.concatenate([s[0] for s in task.train.series])
    held = np.concatenate([s[0] for s in whole.test.series])
    assert set(learnt.tolist()) <= set(held.tolist())
    assert {len(np.unique(y[y >= 0])) for y in task.y_train} == {2}


def test_the_arrhythmia_of_mitdb_is_scored_and_not_learnt_from():
    task = load_task("dense/mitdb")
    assert (task.train.n, task.test.n, task.metric) == (64, 1, "vus_pr")
    positive = task.steps_test[0][task.y_test[0, :, 0] == 1] + 4000
    assert 6936 <= positive.min() <= 6940
    assert len(positive) == pytest.approx(352 / 4, abs=1)
    folds = task.folds(4, 0)
    assert all(len(np.unique(folds[task.groups == g])) == 1 for g in np.unique(task.groups))  # copies stay together
    assert (task.y_train.max(axis=(1, 2)) == 1).all()


def test_data_of_a_package_that_is_missing_or_has_moved(monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "package_folder", lambda package: None)
    with pytest.raises(MissingPackageError, match="needs the package 'aeon'"):
        load_task("dense/kdd-tsad")
    monkeypatch.setattr(streams, "package_folder", lambda package: tmp_path)
    with pytest.raises(DataError, match="the package has moved its data"):
        load_task("dense/kdd-tsad")
    with pytest.raises(UnknownNameError):
        load_task("dense/kdd-tsad?seed=1")
    folder = tmp_path / "datasets" / "data" / "KDD-TSAD_135"
    folder.mkdir(parents=True)
    steps = np.arange(2000)
    table = np.stack([steps, np.sin(steps / 9), (steps // 12 == 120).astype(int)], 1)
    header = "timestamp,value,is_anomaly"
    np.savetxt(folder / "135_UCR_Anomaly_InternalBleeding16_TEST.csv", table, delimiter=",", header=header, comments="")
    task = load_task("dense/kdd-tsad")
    assert task.test.lengths.tolist() == [800]
    assert (task.steps_test[0][task.y_test[0, :, 0] == 1] + 1200).tolist() == [1442, 1446, 1450]
