"""Panels from everything that users hold, and `.ts` files: what is read, and the one clear error for what is not."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from tsprobe.data import Panel, as_panel, from_dataset
from tsprobe.data.sources import bundled_folder, download, find_ts, read_ts
from tsprobe.errors import DataError, MissingPackageError

X = np.random.default_rng(0).normal(size=(5, 2, 7)).astype(np.float32)

HEADER = "# a comment\xe9\n@problemName Foo\n@timeStamps false\n@univariate false\n@classLabel true Up down\n@data\n"


def nested(x):
    return pd.DataFrame({f"c{c}": [pd.Series(row[c]) for row in x] for c in range(x.shape[1])})


def multi_index(x):
    frames = [pd.DataFrame(row.T, columns=["a", "b"]) for row in x]
    return pd.concat(frames, keys=[f"s{9 - i}" for i in range(len(x))])  # keys that a sort would turn round


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.astype(np.float64),
        lambda x: torch.from_numpy(x).requires_grad_(),
        list,
        lambda x: [torch.from_numpy(row) for row in x],
        lambda x: x.tolist(),
        nested,
        multi_index,
        as_panel,
        lambda x: from_dataset(list(zip(torch.from_numpy(x), range(len(x)), strict=True)))[0],
    ],
)
def test_every_form_gives_the_same_panel(form):
    panel = as_panel(form(X))
    assert (panel.n, len(panel), panel.channels, panel.ragged, panel.missing) == (5, 5, 2, False, 0)
    assert panel.lengths.dtype == np.int64
    assert panel.lengths.tolist() == [7] * 5
    np.testing.assert_array_equal(panel.stack(), X)
    assert panel.fingerprint() == as_panel(X).fingerprint()


@pytest.mark.parametrize(
    "form", [lambda x: x, pd.DataFrame, list, torch.from_numpy, lambda x: pd.DataFrame(x).astype("Float32")]
)
def test_two_axes_are_series_by_steps(form):
    np.testing.assert_array_equal(as_panel(form(X[:, 0])).stack(), X[:, :1])


def test_ragged_series():
    panel = as_panel([X[0], X[1, :, :3], X[2, :, :1]])
    assert panel.ragged
    assert panel.lengths.tolist() == [7, 3, 1]
    np.testing.assert_array_equal(panel[1], X[1, :, :3])
    ragged = multi_index(X).drop(index=("s8", 6))  # the last step of the second series
    assert as_panel(ragged).lengths.tolist() == [7, 6, 7, 7, 7]
    objects = np.empty(2, dtype=object)
    objects[:] = [X[0, 0], X[1, 0, :3]]
    assert as_panel(objects).lengths.tolist() == [7, 3]
    with pytest.raises(DataError, match=r"lengths differ \(1 to 7\)"):
        panel.stack()


def test_missing_values_are_nan_and_infinities():
    x = X.copy()
    x[0, 0, 0], x[1, 1, 3], x[4, 0, 6] = np.nan, np.inf, -np.inf
    assert as_panel(x).missing == 3
    frame = pd.DataFrame({"a": [1, None, 3], "b": [4, 5, 6]}, dtype="Int64")
    assert as_panel(frame).missing == 1


def test_a_panel_does_not_follow_its_source():
    x = X.copy()
    for form in (x, list(x), torch.from_numpy(x), pd.DataFrame(x[:, 0], copy=False)):
        panel = as_panel(form)
        before = panel.stack().copy()
        x += 1
        np.testing.assert_array_equal(panel.stack(), before)


def test_take_keeps_order_and_shares_values():
    panel = as_panel(X).take([3, 0, 3])
    np.testing.assert_array_equal(panel.stack(), X[[3, 0, 3]])
    with pytest.raises(DataError, match="no series"):
        panel.take([])


def test_fingerprint_sees_values_order_and_shapes():
    prints = [
        as_panel(x).fingerprint() for x in (X, X[::-1], X + 1e-6, X.reshape(5, 1, 14), X.reshape(1, 10, 7), X[:4])
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == as_panel(X.copy()).fingerprint()


def test_from_dataset():
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.arange(5))
    panel, y = from_dataset(dataset)
    np.testing.assert_array_equal(panel.stack(), X)
    assert y.tolist() == [0, 1, 2, 3, 4]
    _, y = from_dataset((x, name) for x, name in zip(X, "abcde", strict=True))
    assert y.tolist() == list("abcde")
    _, y = from_dataset([(x, np.array([1.0, np.nan])) for x in X])
    assert y.shape == (5, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "no series"),
        (np.zeros((0, 1, 5)), "no series"),
        (np.zeros((3, 1, 0)), "series 0 has no step"),
        (np.zeros((3, 0, 5)), "series 0 has no channel"),
        ([np.zeros(4), np.zeros(0)], "series 1 has no step"),
        ([np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((2, 4))], "series 2 has 2 channels but series 0 has 1"),
        (np.zeros(5), r"array of shape \(5,\)"),
        (np.zeros((2, 2, 2, 2)), r"array of shape \(2, 2, 2, 2\)"),
        ([1.0, 2.0], r"series 0 has shape \(\)"),
        ([np.zeros((1, 2, 3))], r"series 0 has shape \(1, 2, 3\)"),
        ([[[1, 2, 3], [4, 5]]], "series 0: its channels differ in length"),
        ([(np.zeros(5), 1)], r"from_dataset\(\)"),
        (np.array([["a", "b"]]), "not numbers"),
        ([np.array(["a", "b"])], "series 0: values of type <U1 are not numbers"),
        (np.array([[1, None]], dtype=object), "object"),
        (np.zeros((2, 2), dtype="datetime64[s]"), "not numbers"),
        (np.zeros((2, 5), dtype=complex), "as two channels"),
        (np.full((2, 5), 1e39), "beyond float32"),
        ("ucr/GunPoint", "from a str"),
        (3, "from a int"),
        (pd.Series([1.0]), "pandas Series"),
        (pd.DataFrame(), "frame is empty"),
        (pd.DataFrame({"a": ["x"], "b": [1.0]}), "column 'a' holds object"),
        (pd.DataFrame({"a": [pd.Series([1.0, 2.0])], "b": [pd.Series([1.0])]}), r"series 0: .* \(\[1, 2\]\)"),
        (pd.DataFrame({"a": [1.0]}, index=pd.MultiIndex.from_tuples([(1, 2, 3)])), "3 levels"),
    ],
)
def test_bad_series_have_one_clear_error(x, message):
    with pytest.raises(DataError, match=message) as caught:
        as_panel(x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no series"),
        ([X[0]], "not a pair"),
        ([(X[0], 1, 2)], "not a pair"),
        ([(X[0], 1), (X[1], [1, 2])], "labels differ in shape"),
    ],
)
def test_bad_data_sets(pairs, message):
    with pytest.raises(DataError, match=message):
        from_dataset(pairs)


def test_a_panel_takes_only_float32_arrays():
    with pytest.raises(DataError, match=r"as_panel\(\)"):
        Panel((np.zeros((1, 3)),))


def write(folder, text, name="Foo_TRAIN.ts"):
    path = folder / name
    path.write_bytes(text.encode("latin-1"))  # a byte above 127 is then no UTF-8
    return path


def test_read_ts(tmp_path):
    file = read_ts(write(tmp_path, HEADER + "1,?,3.5:4,5,6:down\n\n1e1,-2:NaN,.5:Up\n"))
    assert file.kind == "classification"
    assert file.labels.tolist() == ["down", "Up"]
    np.testing.assert_array_equal(file.panel[0], np.float32([[1, np.nan, 3.5], [4, 5, 6]]))
    np.testing.assert_array_equal(file.panel[1], np.float32([[10, -2], [np.nan, 0.5]]))
    file = read_ts(write(tmp_path, "@targetlabel true\n@DATA\n1,2:0.25\n3,4:?\n"))
    assert file.kind == "regression"
    np.testing.assert_array_equal(file.labels, [0.25, np.nan])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1,2:3,4:Up\n1,2:3,x:Up\n", "line 8, channel 2: 'x' is not a number"),
        (HEADER + "1,2:3,4:Up\n1,2:\xe93,4:Up\n", "line 8, channel 2"),
        (HEADER + "1,2:3,4:Up\n1,2:Up\n", "line 8: 1 channels, but 2"),
        (HEADER + "1,2:3:Up\n", r"line 7: channels of \[1, 2\] steps"),
        (HEADER + "1,2:3,4:up\n", "line 7: class 'up' is not in the header"),
        (HEADER + "1,2,3\n", "line 7: no label"),
        (HEADER + "1,2,3:\n", "line 7: no label"),
        (HEADER + "1,1e39:3,4:Up\n", "line 7, channel 1: a value lies beyond float32"),
        (HEADER.replace("@data", "@equalLength true\n@data") + "1:2:Up\n1,2:3,4:Up\n", "line 9: 2 steps, but 1"),
        (HEADER, "no series after '@data'"),
        (HEADER.replace("@data\n", ""), "no line '@data'"),
        (HEADER.replace("@data\n", "1,2:3,4:Up\n"), "line 6: not a header tag"),
        (HEADER.replace("@timeStamps false", "@timeStamps true") + "(0,1):Up\n", "time stamps"),
        ("@classLabel false\n@data\n1,2\n", "no labels"),
        ("@targetLabel true\n@data\n1,2:high\n", "line 3: target 'high'"),
        ("", "no line '@data'"),
    ],
)
def test_corrupt_ts_files_name_file_and_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_ts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ts_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_ts(tmp_path / "none.ts")


def test_find_ts(tmp_path):
    folder = tmp_path / "data.v1"
    folder.mkdir()
    pair = write(folder, "", "Foo_TRAIN.ts"), write(folder, "", "Foo_TEST.ts")
    for path in (*pair, folder, folder / "Foo"):
        assert find_ts(path) == pair
    pair[1].unlink()
    with pytest.raises(DataError, match=r"no file .*Foo_TEST\.ts beside .*Foo_TRAIN\.ts"):
        find_ts(folder)
    with pytest.raises(DataError, match=r"no file .*Bar_TRAIN\.ts; "):
        find_ts(folder / "Bar")
    write(folder, "", "Bar_TRAIN.ts")
    with pytest.raises(DataError, match="holds 2 data sets"):
        find_ts(folder)


@pytest.mark.parametrize("name", ["JapaneseVowels", "Tecator"])
def test_reader_agrees_with_sktime(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sktime.datasets import load_from_tsfile
    path = bundled_folder(name) / f"{name}_TEST.ts"
    x, y = load_from_tsfile(str(path), return_data_type="nested_univ")
    ours = read_ts(path)
    assert as_panel(x).fingerprint() == ours.panel.fingerprint()
    assert y.astype(ours.labels.dtype).tolist() == ours.labels.tolist()


def test_download_without_a_network_is_one_line(tmp_path, monkeypatch):
    import urllib.request

    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("no network\nand more")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sktime.datasets import _dataset_downloader
    monkeypatch.setattr(_dataset_downloader, "urlretrieve", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setenv("TSPROBE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"be downloaded \(and more\); .*Coffee_TRAIN\.ts") as caught:
        download("Coffee")
    assert "\n" not in str(caught.value)


def test_download_uses_what_was_kept(tmp_path, monkeypatch):
    folder = tmp_path / "archive" / "Coffee"
    folder.mkdir(parents=True)
    write(folder, "", "Coffee_TRAIN.ts"), write(folder, "", "Coffee_TEST.ts")
    monkeypatch.setenv("TSPROBE_CACHE", str(tmp_path))
    monkeypatch.setattr("tsprobe.data.sources.find_spec", lambda _: None)  # without sktime
    assert download("Coffee") == folder
    with pytest.raises(MissingPackageError, match="pip install sktime"):
        download("Beef")
