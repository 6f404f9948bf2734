"""Files of the UCR Anomaly Archive, TSB-AD and TSSB: miniatures in the official formats, and bad ones."""

from __future__ import annotations

import numpy as np
import pytest

from tsprobe.data.annotated import read_tssb, read_ucr_anomaly
from tsprobe.errors import DataError, SpecError, TsprobeError, UnknownNameError
from tsprobe.tasks import load_task

LENGTH, BORDER, BEGIN, END = 1500, 800, 1101, 1110
UCR = f"135_UCR_Anomaly_Internal_Bleeding16_{BORDER}_{BEGIN}_{END}.txt"  # names may hold an underscore
TSB = "001_NAB_id_1_Facility_tr_800_1st_1100.csv"


def wave(n: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.sin(np.arange(n) / 7) + 0.1 * np.random.default_rng(seed).standard_normal(n)


def ucr_file(folder, name: str = UCR, values: np.ndarray | None = None, between: str = "\n"):
    path = folder / name
    path.write_text(between.join(f"{v:.8e}" for v in (wave() if values is None else values)) + "\n")
    return path


def tsb_file(folder, name: str = TSB, channels: int = 1, seed: int = 0, label: str = "Label"):
    columns = [wave(seed=seed + c) for c in range(channels)]
    truth = (np.arange(LENGTH) // 10 == 110).astype(int)
    header = "Data" if channels == 1 else ",".join(f"c{c}" for c in range(channels))
    rows = [",".join([*(f"{v:.8f}" for v in row[:-1]), f"{row[-1]:.0f}"]) for row in zip(*columns, truth, strict=True)]
    path = folder / name
    path.write_text("\n".join([f"{header},{label}", *rows]) + "\n")
    return path


def test_a_ucr_file_is_scored_behind_its_training_steps_and_learnt_from_before(tmp_path):
    path = ucr_file(tmp_path)
    task = load_task(f"ucr-anomaly/{path}")
    assert (task.family, task.kind, task.metric, task.labels) == ("dense", "multilabel", "vus_pr", ("anomaly",))
    assert (task.test.n, task.test.lengths.tolist()) == (1, [LENGTH - BORDER])
    np.testing.assert_allclose(task.test.series[0][0], wave()[BORDER:], atol=1e-6)
    positive = task.steps_test[0][task.y_test[0, :, 0] == 1] + BORDER
    assert positive.tolist() == [1102, 1106]  # of the steps 1100 to 1109, counted from 0
    assert np.diff(task.steps_test[0][~np.isnan(task.y_test[0, :, 0])]).tolist() == [4] * 174
    known = wave().astype(np.float32)[:BORDER]
    for series, at, y in zip(task.train.series, task.steps_train, task.y_train, strict=True):
        start = int(np.flatnonzero(np.isclose(known, series[0, 0], atol=1e-6))[0])
        piece = known[start : start + series.shape[1]]
        changed = ~np.isclose(series[0], piece, atol=1e-5)
        assert 0 < changed.sum() <= 32
        assert (y[changed[at], 0] == 1).all()
        assert 2 <= y.sum() <= 8
    assert task.train.n == 8 * 8
    folds = task.folds(4, 0)
    assert all(len(np.unique(folds[task.groups == g])) == 1 for g in np.unique(task.groups))


def test_a_ucr_file_may_have_all_values_on_one_line(tmp_path):
    (tmp_path / "lines").mkdir()
    (tmp_path / "line").mkdir()
    lines, line = ucr_file(tmp_path / "lines"), ucr_file(tmp_path / "line", between="  ")
    assert len(line.read_text().splitlines()) == 1
    series = [read_ucr_anomaly(path) for path in (lines, line)]
    np.testing.assert_array_equal(series[0].values, series[1].values)
    assert np.flatnonzero(series[0].anomalous).tolist() == list(range(BEGIN - 1, END))


def test_steps_asked_may_lie_closer_and_never_pass_an_anomaly(tmp_path):
    point = ucr_file(tmp_path, f"001_UCR_Anomaly_point_{BORDER}_1003_1004.txt")
    task = load_task(f"ucr-anomaly/{point}")
    assert np.diff(task.steps_test[0]).max() == 2
    assert (task.y_test == 1).sum() == 1
    every = load_task(f"ucr-anomaly/{point}?every=1")
    assert every.steps_test.shape == (1, LENGTH - BORDER)
    assert (every.y_test == 1).sum() == 2
    with pytest.raises(SpecError, match="every=3; give 1 to 2, the steps of the shortest anomaly"):
        load_task(f"ucr-anomaly/{point}?every=3")


def test_a_folder_has_a_sample_a_file(tmp_path):
    for i, length in enumerate((1500, 1300, 1700)):
        ucr_file(tmp_path, f"{i:03d}_UCR_Anomaly_x_{BORDER}_{BEGIN}_{END + i}.txt", wave(length, seed=i))
    (tmp_path / "readme.txt").write_text("not a series")
    task = load_task(f"ucr-anomaly/{tmp_path}")
    assert task.test.lengths.tolist() == [700, 500, 900]
    assert sorted(set(task.groups.tolist())) == [0, 1, 2]
    assert not task.ordered
    for at, y in zip(task.steps_test, task.y_test[..., 0], strict=True):
        asked = at[~np.isnan(y)]
        assert set(np.diff(asked).tolist()) == {4}  # equally far apart in short and long series
        assert (y == 1).any()


def test_tsb_ad_of_one_and_of_many_channels(tmp_path):
    one = load_task(f"tsb-ad/{tsb_file(tmp_path)}")
    assert (one.train.channels, one.test.lengths.tolist(), one.metric) == (1, [700], "vus_pr")
    assert (one.steps_test[0][one.y_test[0, :, 0] == 1] + 800).tolist() == [1102, 1106]
    many = load_task(f"tsb-ad/{tsb_file(tmp_path, TSB.replace('001', '002'), channels=3)}")
    assert many.test.channels == 3
    clean = np.stack([wave(seed=c) for c in range(3)]).astype(np.float32)[:, :800]
    touched = set()
    for series in many.train.series:
        starts = range(0, 800 - series.shape[1] + 1, series.shape[1])
        start = min(starts, key=lambda a: np.median(np.abs(series - clean[:, a : a + series.shape[1]])))
        changed = ~np.isclose(series, clean[:, start : start + series.shape[1]], atol=1e-5).all(1)
        assert changed.sum() == 1  # one channel at a time
        touched.add(int(changed.argmax()))
    assert touched == {0, 1, 2}
    with pytest.raises(DataError, match=r"channels, 001.* has 1; files of one folder need the same"):
        load_task(f"tsb-ad/{tmp_path}")


def test_rows_with_a_missing_value_are_left_out_of_tsb_ad(tmp_path):
    path = tsb_file(tmp_path)
    lines = path.read_text().splitlines()
    lines.insert(5, ",0")
    path.write_text("\n".join(lines))
    assert load_task(f"tsb-ad/{path}").test.lengths.tolist() == [700]


def test_a_labelled_anomaly_or_a_constant_piece_before_the_border_is_not_learnt_from(tmp_path):
    path = tsb_file(tmp_path)
    lines = path.read_text().splitlines()
    whole = load_task(f"tsb-ad/{path}").train.n
    lines[150] = lines[150][:-1] + "1"
    lines[301:401] = ["0.5,0"] * 100
    path.write_text("\n".join(lines))
    assert load_task(f"tsb-ad/{path}").train.n == whole - 2 * 8


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (UCR, "", "is empty"),
        (UCR, "1 2\n3\n", "line 1: 2 values; give one a line, or all on one line"),
        (UCR, "1\nx\n", "line 2: 'x' is not a number"),
        (UCR, "1\nnan\n", "value 2 is not finite"),
        (UCR, "1\n2\n3\n", "800 training steps and an anomaly from 1101 to 1110 do not fit 3 steps"),
        ("135_UCR_Anomaly_x_800_1101.txt", "1\n", "the name must be NNN_UCR_Anomaly_NAME_TRAIN_BEGIN_END.txt"),
        ("135_UCR_Anomaly_x_100_1101_1110.txt", None, "make no two pieces of 64 steps"),
        ("135_UCR_Anomaly_x_800_700_710.txt", None, "800 training steps and an anomaly from 700 to 710 do not fit"),
    ],
)
def test_a_bad_ucr_file(tmp_path, name, text, complaint):
    path = ucr_file(tmp_path, name)
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=complaint):
        load_task(f"ucr-anomaly/{path}")


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (TSB, "", "cannot be read"),
        (TSB, "Data,Label\n1,0\n1,0,5,6\n", "cannot be read"),
        (TSB, "Data,label\n1,0\n", "columns Data, label; channels are due, and Label"),
        (TSB, "Label\n1\n", "columns Label; channels are due"),
        (TSB, "Data,Label\na,0\n", "column 'Data' is not numbers"),
        (TSB, "Data,Label\n1,2\n", "other values than 0 and 1"),
        (TSB, "Data,Label\n1,0\n2,1\n", "800 training steps of 2; some must be left"),
        ("001_NAB_624_2087.csv", "Data,Label\n1,0\n", "the name must be NNN_…_tr_TRAIN_1st_FIRST.csv"),
        (TSB, "Data,Label\n" + "1,0\n" * 900, "has no anomaly after its 800 training steps"),
    ],
)
def test_a_bad_tsb_ad_file(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=complaint):
        load_task(f"tsb-ad/{path}")


def test_files_that_are_not_there(tmp_path):
    for source in ("ucr-anomaly", "tsb-ad"):
        with pytest.raises(DataError, match=f"no file .* in {tmp_path}"):
            load_task(f"{source}/{tmp_path}")
    with pytest.raises(DataError, match="cannot be read"):
        load_task(f"ucr-anomaly/{tmp_path / UCR}")
    with pytest.raises(DataError, match="cannot be read"):
        load_task(f"tsb-ad/{tmp_path / TSB}")
    with pytest.raises(SpecError, match="no setting 'piece'"):
        load_task(f"ucr-anomaly/{ucr_file(tmp_path)}?piece=3")


DESC = "Slow,10,400,720\nStill,10\nShort,5,400,420\nBad,10,x\nBack,10,500,300\nGone,10,400\n"


def tssb_folder(folder):
    (folder / "desc.txt").write_text(DESC)
    values = np.concatenate([wave(400), np.sin(np.arange(320) / 2), np.cos(np.arange(480) / 20)])
    for name in ("Slow", "Still", "Short", "Bad", "Back"):
        np.savetxt(folder / f"{name}.txt", values)
    return folder, values.astype(np.float32)


def test_tssb_learns_from_the_middles_and_is_scored_about_the_changes(tmp_path):
    folder, values = tssb_folder(tmp_path)
    task = load_task(f"tssb/{folder}/Slow")
    assert (task.kind, task.metric, task.labels) == (
        "classification", "covering", ("segment 1", "segment 2", "segment 3")
    )  # fmt: skip
    np.testing.assert_array_equal(task.test.series[0][0], values)  # as it was published
    truth = (np.arange(1200) >= 400).astype(int) + (np.arange(1200) >= 720)
    asked = task.steps_test[0]
    np.testing.assert_array_equal(task.y_test[0], truth[asked])
    for begin, end in ((0, 400), (400, 720), (720, 1200)):
        quarter = (end - begin) // 4
        inner = (asked >= begin + quarter - 10) & (asked < end - quarter + 10)  # a window beside the middle
        assert not inner.any()
    for change in (400, 720):
        assert np.abs(asked - change).min() <= 4
    index = {v: i for i, v in enumerate(values.tolist())}
    used: list[int] = []
    for series, at, y in zip(task.train.series, task.steps_train, task.y_train, strict=True):
        steps = np.array([index[v] for v in series[0].tolist()])
        assert (truth[steps[at]] == y).all()
        assert set(y.tolist()) == {0, 1, 2}
        used += steps.tolist()
    assert len(task.train.series) == 4
    middles = [(100, 300), (480, 640), (840, 1080)]
    assert all(any(a <= step < b for a, b in middles) for step in used)
    assert len(used) == sum(b - a for a, b in middles)


def test_the_stream_of_electric_devices_that_sktime_ships():
    task = load_task("dense/electric-stream")
    assert (task.train.n, task.test.lengths.tolist(), task.n_classes) == (4, [11532], 5)
    changes = task.steps_test[0][1:][np.diff(task.y_test[0]) != 0]
    assert np.abs(changes - [1090, 4436, 5712, 7923]).max() <= 5
    from sktime.datasets import load_electric_devices_segmentation

    values, _, expected = load_electric_devices_segmentation()
    assert expected.tolist() == [1090, 4436, 5712, 7923]
    np.testing.assert_allclose(task.test.series[0][0], values.to_numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "error", "complaint"),
    [
        ("Slov", UnknownNameError, "did you mean 'Slow'"),
        ("Still", DataError, "segments of 1200 steps; two of at least 64 are due"),
        ("Short", DataError, "segments of 400, 20, 780 steps"),
        ("Bad", DataError, "the line of Bad is not NAME,WINDOW,CHANGE"),
        ("Back", DataError, r"changes of Back at \[500, 300\] do not divide its 1200 steps in order"),
        ("Gone", DataError, "Gone.txt cannot be read"),
        ("Slow?seed=1", SpecError, "no setting 'seed=1'; there is metric"),
    ],
)
def test_a_bad_folder_of_tssb(tmp_path, name, error, complaint):
    tssb_folder(tmp_path)
    with pytest.raises(error, match=complaint):
        load_task(f"tssb/{tmp_path}/{name}")


def test_tssb_without_a_description_or_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"desc\.txt cannot be read"):
        read_tssb(tmp_path, "Slow")
    with pytest.raises(TsprobeError, match="give tssb/DIR/NAME"):
        load_task("tssb/Slow")
