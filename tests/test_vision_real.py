"""Boxes in Pascal VOC's format and of packages, and stereo pairs, as miniatures, whole and broken."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from PIL import Image

import tsprobe.tasks as found_tasks
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError
from tsprobe.tasks import load_task
from vision.images import to_images
from vision.tasks import stereo, trees
from vision.tasks.detection import Objects
from vision.tasks.tiles import tiles

SOURCES = {name: f"vision.tasks.{name}:load_{name}" for name in ("stereo", "trees", "voc")}


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    points = [EntryPoint(name, value, "tsprobe.tasks") for name, value in SOURCES.items()]
    monkeypatch.setattr(found_tasks, "entry_points", lambda group: points)


# ---- tiles ----


def test_tiles_cover_a_picture_without_overlap():
    found = tiles("t", "p", 23, 12, 5)
    assert [(t.top, t.left) for t in found] == [(0, x) for x in (0, 6, 12, 18)] + [(7, x) for x in (0, 6, 12, 18)]
    assert [t.behind for t in found[:4]] == [False, False, False, True]
    shown = np.zeros((12, 23), int)
    for tile in found:
        shown[tile.top : tile.top + 5, tile.left : tile.left + 5] += 1
    assert shown.max() == 1
    with pytest.raises(DataError, match="less than a tile of 13"):
        tiles("t", "p", 23, 12, 13)


def test_boxes_are_cut_and_kept_by_half():
    """Boxes `left top right bottom` in pixels of a picture of 20 x 10, and the tile of 10 x 10 at its right."""
    boxes = np.array([[12, 2, 16, 6], [8, 2, 12, 6], [7, 2, 11, 6], [0, 0, 4, 4], [6, 0, 14, 10]]) / [20, 10, 20, 10]
    tile = tiles("t", "p", 20, 10, 10)[1]
    cut = tile.of_objects(Objects.of([0, 1, 2, 3, 4], boxes, [5, 6], boxes[[2, 3]]), 20, 10)
    assert cut.classes.tolist() == [0, 1, 4]
    np.testing.assert_allclose(cut.boxes * 10, [[2, 2, 6, 6], [0, 2, 2, 6], [0, 0, 4, 10]])
    assert cut.crowd_classes.tolist() == [5]  # a place that a crowd marks is kept, however little is seen
    np.testing.assert_allclose(cut.crowds * 10, [[0, 2, 1, 6]])


# ---- Pascal VOC, and trees ----


def note(path, width, height, objects):
    rows = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, (a, b, c, d), hard in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{size}{rows}</annotation>")


def picture(path, width, height, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return values


@pytest.fixture
def voc(tmp_path):
    """Four pictures of 20 x 10 pixels; the cat fills the left half, the hard dog the right one."""
    for i in range(4):
        picture(tmp_path / f"JPEGImages/p{i}.png", 20, 10, i)
        objects = [("cat", (1, 1, 10, 10), 0)] if i % 2 else [("dog", (11, 1, 20, 10), 0), ("cat", (1, 1, 10, 10), 1)]
        note(tmp_path / f"Annotations/p{i}.xml", 20, 10, objects)
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p0\np1\n")
    (lists / "val.txt").write_text("p2  1\np3 -1\n")
    return tmp_path


def test_voc_presence_and_detection(voc):
    task = load_task(f"voc/{voc}?size=16")
    assert task.labels == ("cat", "dog")
    np.testing.assert_array_equal(task.y_train, [[np.nan, 1], [1, 0]])
    found = load_task(f"voc/{voc}?ask=detection&size=16&grid=2")
    assert found.labels[:2] == ("cat", "dog")
    boxes = found.y_train[1][:, :2]  # the cat of the second picture: places at its left
    np.testing.assert_allclose(boxes[[0, 2], 0].max(), 1)
    assert boxes[[1, 3], 0].max() == 0
    assert np.isnan(found.y_train[0][[0, 2], 0]).all()  # the hard cat of the first: nothing is due there
    left, top, right, bottom = found.y_train[1][0, 2:6]
    np.testing.assert_allclose([left + right, top + bottom], [0.5, 1])


def test_voc_without_lists_and_cut_into_tiles(voc):
    (voc / "ImageSets/Main/train.txt").unlink()
    with pytest.raises(DataError, match="list both splits"):
        load_task(f"voc/{voc}?size=16")
    (voc / "ImageSets/Main/val.txt").unlink()
    task = load_task(f"voc/{voc}?ask=detection&size=16&grid=2&tile=10")
    assert (task.train.n, task.test.n) == (6, 2)
    assert task.groups is not None
    assert task.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert not np.array_equal(task.train[0], task.train[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: note(d / "Annotations/p0.xml", 20, 10, [("cat", (5, 5, 22, 9), 0)]), "5 5 22 9, empty or outside"),
        (lambda d: note(d / "Annotations/p0.xml", 20, 10, [("cat", (5, 5, 4, 9), 0)]), "5 5 4 9, empty or outside"),
        (lambda d: note(d / "Annotations/p0.xml", 20, 10, [("cat", ("nan", 5, 9, 9), 0)]), "nan 5 9 9, empty or"),
        (lambda d: note(d / "Annotations/p0.xml", 20, 10, [("cat", ("a", 5, 9, 9), 0)]), "annotation of Pascal VOC"),
        (lambda d: note(d / "Annotations/p0.xml", 21, 10, []), "20 x 10 pixels, not 21 x 10"),
        (lambda d: (d / "Annotations/p0.xml").write_text("<annotation><size>"), "annotation of Pascal VOC"),
        (lambda d: (d / "Annotations/p0.xml").write_text("<annotation/>"), "without size/width"),
        (lambda d: (d / "Annotations/p0.xml").unlink(), "p0 has no annotation"),
        (lambda d: (d / "JPEGImages/p0.png").unlink(), "p0 has no picture"),
        (lambda d: cut_off(d / "JPEGImages/p0.png"), "no readable image"),
        (lambda d: (d / "JPEGImages/p0.png").write_bytes(b"none"), "no readable image"),
        (lambda d: (d / "ImageSets/Main/train.txt").write_text("\n"), "no training picture"),
        (lambda d: Image.fromarray(np.zeros((10, 20), np.uint16)).save(d / "JPEGImages/p0.png"), "has mode I;16"),
        (lambda d: [note(p, 20, 10, []) for p in (d / "Annotations").iterdir()], "no picture shows an object"),
    ],
)
def test_broken_voc_folders_are_refused(voc, spoil, message):
    spoil(voc)
    with pytest.raises(DataError, match=message) as error:
        load_task(f"voc/{voc}?ask=detection&size=16&grid=4")
    assert "\n" not in str(error.value)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-400])


def test_empty_folders_and_settings_that_make_no_sense(voc, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("voc/nowhere", "is no folder"), (f"voc/{tmp_path}/empty", "has no folder JPEGImages")):
        with pytest.raises(DataError, match=message):
            load_task(name)
    for query, message in (("ask=boxes", "presence or detection"), ("tile=-1", "tile=-1"), ("size=3", "size=3")):
        with pytest.raises(SpecError, match=message):
            load_task(f"voc/{voc}?{query}")
    with pytest.raises(DataError, match="less than a tile of 11"):
        load_task(f"voc/{voc}?tile=11")


@pytest.fixture
def forest(tmp_path, monkeypatch):
    """A picture of 60 x 40 pixels and one of 20 x 20, a tree in the middle of each 20 x 20 of them."""
    for name, width, height in (("a", 60, 40), ("b", 20, 20)):
        picture(tmp_path / f"{name}.png", width, height)
        corners = [(x, y) for y in range(0, height, 20) for x in range(0, width, 20)]
        note(tmp_path / f"{name}.xml", width, height, [("Tree", (x + 6, y + 6, x + 15, y + 15), 0) for x, y in corners])
    Image.new("F", (20, 20)).save(tmp_path / "b.tif")  # of no use, and beside the one that is
    monkeypatch.setenv("TSPROBE_TREES", str(tmp_path))
    return tmp_path


def test_crowns_are_split_by_picture_and_by_region(forest):
    task = load_task("trees/crown?tile=20&size=20&grid=2")
    assert (task.train.n, task.test.n, task.labels[0], task.licence) == (6, 1, "tree", "MIT")
    assert task.groups.tolist() == [0, 1, 2, 0, 1, 2]
    sides = task.y_train[0, 0, 1:5]  # a tree from 5 to 15 pixels, seen from 5.5
    np.testing.assert_allclose(sides, [0.025, 0.025, 0.475, 0.475])
    region = load_task("trees/crown?tile=20&size=20&grid=2&split=region&n_train=3")
    assert (region.train.n, region.test.n) == (3, 3)  # two of the large picture, and the only tile of the small one
    where = np.asarray(Image.open(forest / "a.png"))[:20, 40:].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(to_images(region.test.stack())[0], where, atol=1e-6)


def test_without_trees_it_is_said_what_to_install(forest, monkeypatch):
    for name in ("trees/crowns", "stereo/depths"):
        with pytest.raises(UnknownNameError, match="did you mean"):
            load_task(name)
    with pytest.raises(SpecError, match="picture or region"):
        load_task("trees/crown?split=half")
    (forest / "a.xml").unlink()
    with pytest.raises(DataError, match="no test tile"):
        load_task("trees/crown?tile=20")
    (forest / "b.xml").unlink()
    with pytest.raises(DataError, match="no picture with an annotation"):
        load_task("trees/crown?tile=20")
    monkeypatch.setenv("TSPROBE_TREES", str(forest / "nowhere"))
    with pytest.raises(MissingPackageError, match="pip install --no-deps deepforest"):
        load_task("trees/crown")
    monkeypatch.delenv("TSPROBE_TREES")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not trees.list_tasks()[0].here


# ---- stereo pairs ----


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Disparities rise by one a column; the first column of the one and 0 of the other were not measured."""
    for name, width, height in (("motorcycle", 36, 24), ("aloe", 20, 12)):
        monkeypatch.setenv(f"TSPROBE_{name.upper()}", str(tmp_path))
        values = np.tile(np.arange(width, dtype=np.float32), (height, 1))
        picture(tmp_path / {"motorcycle": "motorcycle_left.png", "aloe": "aloeL.jpg"}[name], width, height)
        if name == "aloe":
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "aloeGT.png")
        else:
            values[:, 0] = np.inf
            np.savez(tmp_path / "motorcycle_disp.npz", values)
    return tmp_path


def test_disparities_become_relative_and_what_was_not_measured_is_masked(pair):
    task = load_task("stereo/depth?train=motorcycle&tiles=2&size=12&grid=12")
    assert (task.train.n, task.test.n, task.kind, task.metric) == (4, 2, "regression", "r2")
    assert task.groups.tolist() == [0, 1, 0, 1]
    y = task.y_train[..., 0].reshape(4, 12, 12)
    assert np.isnan(y[0, :, 0]).all()
    known = np.arange(1.0, 36)
    relative = (known - np.median(known)) / np.abs(known - np.median(known)).mean()
    np.testing.assert_allclose(y[0, 3, 1:], relative[:11])
    np.testing.assert_allclose(y[1, 3], relative[11:23])
    test = task.y_test[..., 0].reshape(2, 12, 12)
    np.testing.assert_allclose(test[1, 0], relative[23:])


def test_pairs_are_split_by_region_or_by_picture(pair):
    both = load_task("stereo/depth?tiles=2&size=8&grid=4")
    assert (both.train.n, both.test.n) == (4 + 4, 2 + 2)
    across = load_task("stereo/depth?train=aloe&test=motorcycle&tiles=2&size=8&grid=4")
    assert (across.train.n, across.test.n) == (6, 6)
    assert set(both.groups.tolist()) == {0, 1, 1000, 1001}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "motorcycle_disp.npz").write_bytes(b"none"), "cannot be read"),
        (lambda d: cut_off(d / "motorcycle_disp.npz"), "cannot be read"),
        (lambda d: np.savez(d / "motorcycle_disp.npz"), "one number a pixel"),
        (lambda d: np.savez(d / "motorcycle_disp.npz", np.ones((24, 36, 3))), "one number a pixel"),
        (lambda d: np.savez(d / "motorcycle_disp.npz", np.zeros((24, 36))), "no pixel of"),
        (lambda d: np.savez(d / "motorcycle_disp.npz", np.ones((24, 36))), "the same disparity"),
        (lambda d: np.savez(d / "motorcycle_disp.npz", np.ones((24, 35)) * np.arange(35)), "35 x 24 pixels"),
        (lambda d: cut_off(d / "motorcycle_left.png"), "no readable image"),
        (lambda d: Image.new("RGB", (20, 12)).save(d / "aloeGT.png"), "has mode RGB"),
    ],
)
def test_broken_pairs_are_refused(pair, spoil, message):
    spoil(pair)
    with pytest.raises(DataError, match=message) as error:
        load_task("stereo/depth?tiles=2&size=8&grid=4")
    assert "\n" not in str(error.value)


def test_what_of_stereo_is_not_there_or_makes_no_sense(pair, monkeypatch):
    for query, message in (
        ("train=aloe&test=aloe", "aloe is for training too"),
        ("test=motorcycle", "motorcycle is for training too"),
        ("train=cones", "motorcycle or aloe"),
        ("tiles=1", "at least 2"),
        ("tiles=999", "has 24 pixels there"),
    ):
        with pytest.raises(SpecError, match=message):
            load_task(f"stereo/depth?{query}")
    assert stereo.list_tasks()[0].here
    (pair / "aloeL.jpg").unlink()
    assert not stereo.list_tasks()[0].here
    with pytest.raises(MissingPackageError, match="opencv-doc"):
        load_task("stereo/depth?tiles=2&size=8&grid=4")
    assert load_task("stereo/depth?train=motorcycle&tiles=2&size=8&grid=4").train.n == 4
    (pair / "motorcycle_disp.npz").unlink()
    with pytest.raises(MissingPackageError, match="pip install --no-deps scikit-image"):
        load_task("stereo/depth")
