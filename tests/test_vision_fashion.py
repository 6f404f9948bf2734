"""Fashion-MNIST in its own format, whole and broken."""

from __future__ import annotations

import gzip
import struct
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import tsprobe.tasks as found_tasks
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError
from tsprobe.tasks import load_task
from vision.images import to_images
from vision.tasks.fashion import ITEMS, list_tasks


@pytest.fixture(autouse=True)
def source(monkeypatch):
    point = EntryPoint("fashion", "vision.tasks.fashion:load_fashion", "tsprobe.tasks")
    monkeypatch.setattr(found_tasks, "entry_points", lambda group: [point])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A picture of class k is of brightness 20 k all over."""
    for part, n in (("train", 40), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        write(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
        write(tmp_path / f"{part}-images-idx3-ubyte.gz", np.repeat(20 * labels, 784).reshape(n, 28, 28))
    monkeypatch.setenv("TSPROBE_FASHION", str(tmp_path))
    return tmp_path


def write(path, array, head=None):
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) if head is None else head
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_pictures_and_their_kinds(folder):
    task = load_task("fashion/item?size=32&n_train=0&n_test=0")
    assert (task.train.n, task.test.n, set(task.labels)) == (40, 20, set(ITEMS))
    shown = to_images(task.train.stack())
    assert shown.shape == (40, 3, 32, 32)
    kinds = np.array([ITEMS.index(task.labels[y]) for y in task.y_train])
    np.testing.assert_allclose(shown.mean((1, 2, 3)) * 255, 20 * kinds, atol=1e-3)
    some = load_task("fashion/item?size=32&n_train=39&n_test=20")
    assert (some.train.n, some.test.n) == (39, 20)
    assert list_tasks()[0].here


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: write(f, np.zeros(40, np.uint8), b"\0\0\7\1" + struct.pack(">I", 40)), "not in MNIST's format"),
        (lambda f: write(f, np.zeros(30, np.uint8), b"\0\0\10\1" + struct.pack(">I", 40)), "its head says"),
        (lambda f: write(f, np.full(40, 11, np.uint8)), "labels from 0 to 9"),
        (lambda f: write(f, np.zeros(39, np.uint8)), "40 train pictures and 39 labels"),
        (lambda f: f.write_bytes(f.read_bytes()[:20]), "cannot be read"),
        (lambda f: f.write_bytes(b"no gzip"), "cannot be read"),
    ],
)
def test_broken_files_are_refused(folder, spoil, message):
    spoil(folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match=message):
        load_task("fashion/item?size=32")


def test_what_is_not_there_is_named(folder, monkeypatch):
    with pytest.raises(UnknownNameError, match="fashion/item"):
        load_task("fashion/items")
    with pytest.raises(SpecError, match="size=4"):
        load_task("fashion/item?size=4")
    monkeypatch.setenv("TSPROBE_FASHION", str(folder / "nowhere"))
    with pytest.raises(MissingPackageError, match="dataset-fashion-mnist"):
        load_task("fashion/item")
    assert not list_tasks()[0].here
