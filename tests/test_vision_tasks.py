"""Tasks about pictures: generated, in real formats as miniature folders, whole and broken, and shipped."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image

import tsprobe.tasks as found_tasks
from tsprobe.errors import DataError, MissingPackageError, SpecError, UnknownNameError
from tsprobe.metrics import get_metric
from tsprobe.tasks import list_tasks, load_task
from vision.images import to_images
from vision.tasks import files, pixels, tracking
from vision.tasks.generated import GENERATED
from vision.world.patterns import TEXTURES
from vision.world.plan import COLOURS
from vision.world.scenes import scenes
from vision.world.shapes import SHAPES

SOURCES = {
    "coco": "vision.tasks.coco:load_coco",
    "davis": "vision.tasks.folders:load_davis",
    "digits": "vision.tasks.shipped:load_digits",
    "imagefolder": "vision.tasks.folders:load_imagefolder",
    "nyu": "vision.tasks.folders:load_nyu",
    "stamps": "vision.tasks.shipped:load_stamps",
    "vision": "vision.tasks.generated:load_generated",
    "vqa": "vision.tasks.vqa:load_vqa",
}
SMALL = "n_train=24&n_test=16&size=32"


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    """The entry points, whether or not this copy of the package has been installed since they were written."""
    points = [EntryPoint(name, value, "tsprobe.tasks") for name, value in SOURCES.items()]
    monkeypatch.setattr(found_tasks, "entry_points", lambda group: points)


def images(panel):
    return to_images(panel.stack())


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)
    return path


def flat(colour, size=16):
    return np.tile(np.array(colour, np.uint8), (size, size, 1))


# ---- generated ----


def test_they_are_listed_as_they_are():
    rows = {row["name"]: row for row in list_tasks() if row["name"].startswith(("vision/", "digits/"))}
    assert set(rows) == {f"vision/{name}" for name in GENERATED} | {"digits/digit"}
    for name in ("vision/tracking", "digits/digit"):
        task, row = load_task(name), rows[name]
        assert (task.kind, task.metric, task.family) == (row["kind"], row["metric"], row["family"])
        assert (task.train.n, task.test.n, task.n_classes) == (row["n_train"], row["n_test"], row["classes"])
        assert str(task.train.lengths[0]) == row["length"]
        assert (task.source, task.licence) == (row["source"], row["licence"])


@pytest.mark.parametrize("name", [name for name in GENERATED if name not in ("tracking", "caption")])
def test_generated_tasks_load_small_are_repeatable_and_fit_their_metric(name):
    task = load_task(f"vision/{name}?{SMALL}")
    assert task.name == f"vision/{name}?{SMALL}"
    assert (task.train.n, task.test.n, task.train.channels) == (24, 16, 3)
    assert set(task.train.lengths) == set(task.test.lengths) == {32 * 32}
    how = GENERATED[name]
    assert (task.kind, task.metric, task.family) == (how.kind, how.metric, how.family)
    assert len(task.labels) <= how.n_labels
    assert task.fingerprint() == load_task(task.name).fingerprint()
    assert task.fingerprint() != load_task(f"{task.name}&seed=1").fingerprint()
    metric = get_metric(task.metric)
    assert task.kind in metric.kinds
    assert not metric.by_series or task.dense
    seen = {x.tobytes() for x in task.train.series}
    assert not seen & {x.tobytes() for x in task.test.series}
    assert len(task.folds(4, 0)) == 24


def test_targets_are_those_of_the_scenes():
    train = scenes(24, size=32, seed=(0, 0, 0), objects=(1, 1))
    test = scenes(16, size=32, seed=(0, 0, 1), objects=(1, 1))
    for name, table in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("texture", TEXTURES)):
        task = load_task(f"vision/{name}?{SMALL}")
        np.testing.assert_array_equal(task.train.stack(), train.values)
        for y, world in ((task.y_train, train), (task.y_test, test)):
            assert [task.labels[c] for c in y] == [table[c] for c in getattr(world.plan, name)[:, 0]]
    np.testing.assert_allclose(load_task(f"vision/light?{SMALL}").y_test, test.plan.light[:, :2])
    several = scenes(24, size=32, seed=(0, 0, 0))
    count = load_task(f"vision/count?{SMALL}")
    assert [int(count.labels[c]) for c in count.y_train] == several.there.sum(1).tolist()
    presence = load_task(f"vision/presence?{SMALL}")
    for i in range(24):
        assert {SHAPES[k] for k in presence.y_train[i].nonzero()[0]} == {
            SHAPES[s] for s in several.plan.shape[i] if s >= 0
        }
    segmentation = load_task(f"vision/segmentation?{SMALL}&grid=10")
    depth = load_task(f"vision/depth?{SMALL}&grid=10")
    assert segmentation.labels == ("background", *SHAPES)
    np.testing.assert_array_equal(segmentation.steps_train, depth.steps_train)
    for i in range(24):
        row, column = np.divmod(segmentation.steps_train[i], 32)
        np.testing.assert_array_equal(segmentation.y_train[i], several.classes[i, row, column] + 1)
        np.testing.assert_allclose(depth.y_train[i, :, 0], several.depth[i, row, column])


def test_tasks_about_one_set_share_its_pictures():
    """So that the features of an encoder serve all of them."""
    tasks = [load_task(f"vision/{name}?{SMALL}") for name in ("count", "presence", "segmentation", "depth", "choice")]
    assert len({task.train.fingerprint() for task in tasks}) == 1
    single = [load_task(f"vision/{name}?{SMALL}") for name in ("shape", "floor", "light")]
    assert len({task.train.fingerprint() for task in single}) == 1


def test_pointing_names_the_cell_that_holds_the_middle_of_the_box():
    task = load_task(f"vision/pointing?{SMALL}")
    world = scenes(24, size=32, seed=(0, 0, 0), objects=(2, 4))
    for i, question in enumerate(task.questions_train):
        column, row = (int(w) - 1 for w in question.answer.split()[1::2])
        middles = (world.boxes[i, :, :2] + world.boxes[i, :, 2:]) / 2 / 8
        cells = [tuple(m) for m in np.minimum(middles, 3).astype(int)[world.there[i]].tolist()]
        assert (column, row) in cells
        name = question.question.removeprefix("where is the ").removesuffix("?").split()[-1]
        assert SHAPES.index(name) in [s for s, c in zip(world.plan.shape[i], cells, strict=False) if c == (column, row)]


def test_captions_have_three_that_are_right():
    try:
        task = load_task(f"vision/caption?{SMALL}")
    except MissingPackageError:
        pytest.skip("pycocoevalcap, which scores captions, is not installed")
    assert task.kind == "caption"
    for question, world in zip(task.questions_train, scenes(24, size=32, seed=(0, 0, 0)).plan.shape, strict=True):
        assert len(question.answer) == 3
        assert all(any(SHAPES[s] in text for s in world if s >= 0) for text in question.answer)


def test_shift_changes_the_test_alone():
    usual, other = (load_task(f"vision/shape?{SMALL}{more}") for more in ("", "&shift=palette"))
    assert usual.train.fingerprint() == other.train.fingerprint()
    assert usual.test.fingerprint() != other.test.fingerprint()


def test_tracking_asks_for_the_same_objects_in_later_frames():
    task = load_task("vision/tracking?n_train=12&n_test=12&frames=6&size=32&grid=16")
    from vision.world.clips import clips

    made = clips(4, frames=6, size=32, seed=(0, 0, 2))
    frames = made.images.astype(np.float32) / 255
    np.testing.assert_allclose(images(task.train), frames[:, :3].reshape(-1, 3, 32, 32), atol=1e-6)
    np.testing.assert_allclose(images(task.test), frames[:, 3:].reshape(-1, 3, 32, 32), atol=1e-6)
    assert set(np.unique(task.y_train)) == set(range(task.n_classes))
    assert set(np.unique(task.y_test)) <= set(range(-1, task.n_classes))
    truth = made.frames.instance.reshape(4, 6, -1)
    for i in range(12):
        clip, moment = divmod(i, 3)
        for label, step in zip(task.y_test[i], task.steps_test[i], strict=True):
            k = truth[clip, 3 + moment, step]
            said = task.labels[label] if label >= 0 else None
            assert said in (("background",) if k == 0 else (f"clip {clip}, object {k}", None))
    assert set(task.groups) == {0, 1, 2}


def test_nearest_features_that_know_the_object_track_it():
    """The probe `correspondence` on features that are the answer, and on noise."""
    from tsprobe.probes import get_probe
    from tsprobe.probes.base import Target

    task = load_task("vision/tracking?n_train=12&n_test=12&frames=6&size=32")
    train, test = task.rows("train"), task.rows("test")
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(task.n_classes, 16, generator=generator)
    target = Target("classification", torch.from_numpy(train.y), task.n_classes)
    folds = torch.from_numpy(task.folds(3, 0)[train.series])
    scores = {}
    for name, noise in (("object", 0.1), ("noise", 100.0)):
        x, x_test = (code[y] + noise * torch.randn(len(y), 16, generator=generator) for y in (train.y, test.y))
        read = get_probe("correspondence")(x[None], target, x_test[None], folds, get_metric("macro_f1"))
        scores[name] = float((read.prediction[0].argmax(-1) == torch.from_numpy(test.y)).double().mean())
    assert scores["object"] > 0.98 > 0.9 > scores["noise"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape?shift=rain", "none of texture"),
        ("shape?size=16", "at least 32 pixels"),
        ("shape?grid=4", "no setting 'grid'"),
        ("depth?n_train=2&n_test=2&grid=0", "from 1 to 64 cells"),
        ("depth?n_train=2&n_test=2&grid=65", "from 1 to 64 cells"),
        ("floor?shift=background", "none of the floors"),
        ("tracking?frames=5", "even number from 4"),
        ("tracking?n_train=10&n_test=10", "multiples of 4"),
        ("tracking?n_train=8", "multiples of 4"),
        ("shape?n_train=0", "at least 1 scene"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, message):
    with pytest.raises(SpecError, match=message):
        load_task(f"vision/{name}")


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(UnknownNameError, match="vision/shape"):
        load_task("vision/shapes")


def test_one_pixel_of_each_cell_is_asked_about():
    at = pixels.draw(50, 30, 4, np.random.default_rng(0))
    assert at.shape == (50, 16)
    assert (np.diff(at, axis=1) > 0).all()
    edges = np.array([0, 7, 15, 22, 30])
    cells = [(np.searchsorted(edges, v, side="right") - 1) for v in np.divmod(at, 30)]
    np.testing.assert_array_equal(np.sort(cells[0] * 4 + cells[1], axis=1), np.tile(np.arange(16), (50, 1)))
    assert len(np.unique(at % 30)) == 30


# ---- DAVIS' protocol ----


def test_labels_follow_features_that_move():
    """Features of a square that moves by one token a frame; the background has features of its own."""
    h = w = 8
    generator = torch.Generator().manual_seed(1)
    inside, outside = torch.randn(2, 6, generator=generator)
    truth = torch.zeros(6, h, w, dtype=torch.long)
    for t in range(6):
        truth[t, 2:5, t : t + 3] = 1
    tokens = torch.where(truth[..., None] == 1, inside, outside) + 0.01 * torch.randn(6, h, w, 6, generator=generator)
    first = torch.nn.functional.one_hot(truth[0], 2).float()
    carried = tracking.propagate(tokens, first)
    assert (carried.argmax(-1) == truth).all()
    torch.testing.assert_close(carried.sum(-1), torch.ones(6, h, w))
    masks = tracking.to_masks(carried, 64)
    large = truth.repeat_interleave(8, 1).repeat_interleave(8, 2)
    region, border = tracking.region_and_border(large.numpy(), masks.numpy())
    assert region > 0.95
    assert border > 0.9


def test_propagation_agrees_with_its_definition_token_by_token():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(5, 4, 5, 3, generator=generator, dtype=torch.float64)
    first = torch.rand(4, 5, 3, generator=generator, dtype=torch.float64)
    got = tracking.propagate(tokens, first, context=2, nearest=3, temperature=0.2, radius=1)
    labels = [first]
    for t in range(1, 5):
        now = torch.zeros(4, 5, 3, dtype=torch.float64)
        for r in range(4):
            for c in range(5):
                near = [
                    (float(torch.cosine_similarity(tokens[t, r, c], tokens[s, a, b], dim=0)), labels[s][a, b])
                    for s in {0, *range(max(t - 2, 0), t)}
                    for a in range(max(r - 1, 0), min(r + 2, 4))
                    for b in range(max(c - 1, 0), min(c + 2, 5))
                ]
                near = sorted(near, key=lambda pair: -pair[0])[:3]
                weights = torch.tensor([similarity / 0.2 for similarity, _ in near], dtype=torch.float64).exp()
                now[r, c] = sum(w * y for w, (_, y) in zip(weights / weights.sum(), near, strict=True))
        labels.append(now)
    torch.testing.assert_close(got, torch.stack(labels))


def test_region_and_border_know_the_worth_of_a_shifted_mask():
    truth = np.zeros((4, 100, 100), int)
    truth[:, 20:60, 20:60] = 1
    assert tracking.region_and_border(truth, truth) == (1.0, 1.0)
    off = np.roll(truth, 1, axis=2)
    region, border = tracking.region_and_border(truth, off)
    assert region == pytest.approx(39 / 41)
    assert border == 1.0  # within 0.8 % of the diagonal, 2 pixels
    _, border = tracking.region_and_border(truth, np.roll(truth, 10, axis=2))
    assert border < 0.6
    assert tracking.region_and_border(truth, np.zeros_like(truth)) == (0.0, 0.0)
    worse = truth.copy()
    worse[[0, 3]] = 0  # the first and the last frame do not count
    assert tracking.region_and_border(truth, worse) == (1.0, 1.0)


def test_layers_are_scored_by_what_their_tokens_know():
    """On an encoder whose layers are the colours of finer and coarser cells."""
    from vision.encoders.pixels import Pixels

    frames = np.zeros((2, 5, 3, 64, 64), np.uint8)
    ids = np.zeros((2, 5, 64, 64), int)
    for t in range(5):
        ids[0, t, 20:40, 4 * t : 4 * t + 20] = 1
    frames[0, :, 0][ids[0] == 1] = 250  # the second clip shows nothing
    found = tracking.by_layer(Pixels(), list(frames), list(ids), grid=16)
    assert list(found) == ["fine", "middle", "coarse", "all"]
    assert min(found["fine"]) > 0.85
    assert found["fine"][0] > found["coarse"][0]
    assert list(tracking.by_layer(Pixels(), list(frames), list(ids), grid=16, layers=["all"])) == ["all"]
    with pytest.raises(DataError, match="no clip shows an object"):
        tracking.by_layer(Pixels(), list(frames[1:]), list(ids[1:]), grid=16)


def test_what_cannot_be_tracked_is_refused():
    tokens, first = torch.randn(3, 4, 4, 2), torch.rand(4, 4, 2)
    with pytest.raises(DataError, match="a clip of one frame"):
        tracking.propagate(tokens[:1], first)
    with pytest.raises(DataError, match=r"\[T, h, w, D\]"):
        tracking.propagate(tokens, first[:3])
    with pytest.raises(DataError, match="no object"):
        tracking.region_and_border(np.zeros((3, 8, 8), int), np.zeros((3, 8, 8), int))
    with pytest.raises(DataError, match="clip 0 has 1 frame; give at least 4"):
        tracking.task("x", [np.zeros((1, 3, 8, 8), np.uint8)], [np.zeros((1, 8, 8), int)], grid=2, seed=0)
    one_hot = tracking.one_hot(np.array([[0, 0, 1, 1]] * 4), 2, 2, 3)
    assert one_hot.argmax(-1).tolist() == [[0, 1], [0, 1]]


# ---- ImageFolder ----


@pytest.fixture
def imagefolder(tmp_path):
    for split, n in (("train", 4), ("val", 2)):
        for name, colour in (("blue", (0, 0, 250)), ("red", (250, 0, 0))):
            for i in range(n):
                save(tmp_path / split / name / f"{i}.png", flat(colour, 12 + i))
    return tmp_path


def test_imagefolder(imagefolder):
    task = load_task(f"imagefolder/{imagefolder}?size=8")
    assert task.labels == ("blue", "red")
    assert (task.train.n, task.test.n, task.train.lengths[0]) == (8, 4, 64)
    shown = images(task.train)
    assert (shown[task.y_train == 1, 0] > 0.9).all()
    assert (shown[task.y_train == 1, 2] == 0).all()
    assert load_task(f"imagefolder/{imagefolder}?size=8&n_train=5").train.n == 5


def test_pictures_of_all_modes_become_rgb(tmp_path):
    grey = np.full((9, 9), 100, np.uint8)
    clear = np.dstack([flat((250, 0, 0), 9), np.zeros((9, 9), np.uint8)])
    for name, array in (("grey", grey), ("clear", clear), ("two", np.dstack([grey, grey * 0 + 255]))):
        save(tmp_path / f"{name}.png", array)
    Image.fromarray(flat((250, 0, 0), 9)).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey > 50).save(tmp_path / "bits.png")
    read = {p.stem: files.read(p, 8)[:, 4, 4].tolist() for p in files.pictures(tmp_path)}
    assert read["grey"] == read["two"] == [100, 100, 100]
    assert read["clear"] == read["bits"] == [255, 255, 255]  # on white
    assert abs(read["palette"][0] - 250) < 10
    assert read["palette"][1] == 0


def break_picture(path):
    path.write_bytes(
        save(path, np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)).read_bytes()[:900]
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: break_picture(d / "train/red/0.png"), "no readable image"),
        (lambda d: (d / "train/red/0.png").write_text("hello"), "no readable image"),
        (lambda d: (d / "train/red/0.png").write_bytes(b""), "no readable image"),
        (
            lambda d: save(d / "train/red/0.png", np.full((9, 9), 3000, np.uint16)),
            "mode I;16; give a picture of 8 bits",
        ),
        (lambda d: (d / "train/green").mkdir(), "green has no picture"),
        (lambda d: save(d / "val/green/0.png", flat((0, 250, 0))), "do not occur in training"),
        (lambda d: (d / "val").rename(d / "other"), "has no folder val or validation or test"),
        (lambda d: [p.unlink() for p in d.glob("val/*/*")], "has no picture"),
    ],
)
def test_broken_imagefolders_are_refused_in_one_line(imagefolder, spoil, message):
    spoil(imagefolder)
    with pytest.raises(DataError, match=message) as error:
        load_task(f"imagefolder/{imagefolder}?size=8")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["imagefolder", "coco", "nyu", "davis", "vqa"])
def test_folders_that_are_not_there_or_empty(source, tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        load_task(f"{source}/{tmp_path}/nowhere")
    with pytest.raises(DataError, match=str(tmp_path)):
        load_task(f"{source}/{tmp_path}")
    with pytest.raises(SpecError, match="8 to 4096 pixels"):
        load_task(f"{source}/{tmp_path}?size=2")
    with pytest.raises(SpecError, match="no setting 'colour'"):
        load_task(f"{source}/{tmp_path}?colour=2")


# ---- NYU ----


@pytest.fixture(params=["folders", "names"])
def nyu(request, tmp_path):
    for split in ("train", "test"):
        for i in range(3):
            depth = np.full((12, 16), 1000 * (i + 1), np.uint16)
            depth[:6] = 4000
            depth[:, 0] = 0
            rgb, deep = (
                (f"{split}/rgb/{i}.jpg", f"{split}/depth/{i}.png")
                if request.param == "folders"
                else (f"{split}/kitchen/rgb_{i}.jpg", f"{split}/kitchen/sync_depth_{i}.png")
            )
            save(tmp_path / rgb, np.repeat(flat((50 * i, 90, 90), 12), 16, 1)[:, :16])
            save(tmp_path / deep, depth)
    return tmp_path


def test_nyu(nyu):
    task = load_task(f"nyu/{nyu}?size=16&grid=16")
    assert (task.kind, task.metric, task.train.n, task.test.n) == ("regression", "r2", 3, 3)
    for i in range(3):
        depth = task.y_train[i].reshape(16, 16)
        assert np.isnan(depth[:, 0]).all()
        assert (depth[:8, 1:] == 4).all()
        assert (depth[8:, 1:] == i + 1).all()
        assert abs(images(task.train)[i, 0].mean() * 255 - 50 * i) < 5
    assert load_task(f"nyu/{nyu}?size=16&grid=4&unit=500").y_train[0].ravel()[1] == 8
    assert task.scored_by("neg_rmse").metric == "neg_rmse"


def test_depths_in_metres(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "rgb" / "0.png", flat((9, 9, 9), 8))
        (tmp_path / split / "depth").mkdir()
        np.save(tmp_path / split / "depth" / "0.npy", np.full((8, 8), 2.5, np.float32))
    assert (load_task(f"nyu/{tmp_path}?size=8&grid=4").y_test == 2.5).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: next(d.glob("train/**/*[0-9].png")).unlink(), "has no depth beside it"),
        (lambda d: save(next(d.glob("train/**/*[0-9].png")), flat((1, 1, 1))), "mode RGB; give one channel"),
        (
            lambda d: [save(p, np.zeros((4, 4), np.uint16)) for p in d.glob("test/**/*[0-9].png")],
            "no pixel of the test",
        ),
        (lambda d: [p.unlink() for p in d.glob("train/**/*.jpg")], "neither rgb/ and depth/ nor"),
    ],
)
def test_broken_nyu_folders_are_refused(nyu, spoil, message):
    spoil(nyu)
    with pytest.raises(DataError, match=message):
        load_task(f"nyu/{nyu}?size=8&grid=4")
    with pytest.raises(SpecError, match="one metre"):
        load_task(f"nyu/{nyu}?unit=0")


# ---- DAVIS ----


@pytest.fixture
def davis(tmp_path):
    for name in ("bear", "camel"):
        for t in range(6):
            mask = np.zeros((12, 20), np.uint8)
            mask[3:9, 2 * t : 2 * t + 6] = 1
            mask[:2] = 2 if name == "camel" else 0
            picture = np.zeros((12, 20, 3), np.uint8)
            picture[mask == 1] = 200
            save(tmp_path / "JPEGImages/480p" / name / f"{t:05}.jpg", picture)
            indexed = Image.fromarray(mask, "P")
            indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            (tmp_path / "Annotations/480p" / name).mkdir(parents=True, exist_ok=True)
            indexed.save(tmp_path / "Annotations/480p" / name / f"{t:05}.png")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("bear\ncamel\n")
    return tmp_path


def test_davis(davis):
    task = load_task(f"davis/{davis}?size=20&grid=20")
    assert task.labels == ("background", "clip 0, object 1", "clip 1, object 1", "clip 1, object 2")
    assert (task.train.n, task.test.n, task.metric) == (6, 6, "jaccard")
    shown = images(task.test)[:3].mean(1).reshape(3, -1)
    bear = task.y_test[:3].reshape(3, -1) == 1
    light = np.take_along_axis(shown, task.steps_test[:3], 1)
    assert light[bear].mean() > 0.5 > 0.2 > light[~bear].mean()
    (davis / "ImageSets/2017/val.txt").write_text("camel\n")
    assert load_task(f"davis/{davis}?size=20").train.n == 3
    assert load_task(f"davis/{davis}?size=20&frames=4").train.n == 2


def test_masks_in_black_and_white_are_of_one_object(davis):
    for path in davis.glob("Annotations/480p/*/*.png"):
        mask = np.asarray(Image.open(path))
        save(path, ((mask == 1) * 255).astype(np.uint8))
    assert load_task(f"davis/{davis}?size=20").labels == ("background", "clip 0, object 1", "clip 1, object 1")


def only_one_frame(d):
    for path in d.glob("JPEGImages/480p/bear/0000[1-5].jpg"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (only_one_frame, "'bear' has 1 frame; give at least 4"),
        (lambda d: (d / "Annotations/480p/bear/00003.png").unlink(), "00003.jpg has no mask"),
        (lambda d: (d / "ImageSets/2017/val.txt").write_text(" "), "no clip in"),
        (lambda d: (d / "ImageSets/2017/val.txt").write_text("swan"), "'swan' has 0 frames"),
        (lambda d: break_picture(d / "JPEGImages/480p/bear/00002.jpg"), "no readable image"),
        (lambda d: save(d / "Annotations/480p/bear/00002.png", flat((3, 3, 3))), "one channel"),
        (lambda d: (d / "Annotations").rename(d / "Masks"), "has no folder Annotations"),
    ],
)
def test_broken_davis_folders_are_refused(davis, spoil, message):
    spoil(davis)
    with pytest.raises(DataError, match=message):
        load_task(f"davis/{davis}?size=16")


# ---- COCO ----


def coco_table(n, start=0):
    """A cat on the left half, on every second picture a dog on the lower right quarter."""
    objects = []
    for i in range(start, start + n):
        objects.append(box(i, 1, [0, 0, 10, 16]))
        if i % 2:
            objects.append(box(i, 3, [10, 8, 10, 8]))
    return {
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 20, "height": 16} for i in range(start, start + n)],
        "annotations": [{**o, "id": j} for j, o in enumerate(objects)],
    }


def box(image, category, bbox, **more):
    x, y, w, h = bbox
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"image_id": image, "category_id": category, "bbox": bbox, "segmentation": [polygon], "area": w * h, **more}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, n, start in (("train2017", 6, 0), ("val2017", 4, 10)):
        write(tmp_path, split, coco_table(n, start))
        for i in range(start, start + n):
            save(tmp_path / split / f"{i}.jpg", np.full((16, 20, 3), 20 * (i % 10), np.uint8))
    return tmp_path


def write(folder, split, table):
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))


def test_coco_presence(coco):
    task = load_task(f"coco/{coco}?size=16")
    assert (task.kind, task.labels) == ("multilabel", ("cat", "dog"))
    np.testing.assert_array_equal(task.y_train, [[1, i % 2] for i in range(6)])
    assert abs(images(task.train)[3].mean() * 255 - 60) < 3


def test_coco_segmentation(coco):
    table = coco_table(6)
    table["annotations"].append(box(1, 1, [12, 10, 4, 4], id=90))  # a small cat before the dog
    table["annotations"].append(
        box(2, 3, [10, 0, 10, 16], id=91, iscrowd=1, segmentation={"counts": [0], "size": [16, 20]})
    )
    write(coco, "train2017", table)
    task = load_task(f"coco/{coco}?ask=segmentation&size=40&grid=40")
    maps = task.y_train.reshape(6, 40, 40)
    assert task.labels == ("background", "cat", "dog")
    assert (maps[0, :, :19] == 1).all()
    assert (maps[0, :, 21:] == 0).all()
    assert (maps[1, 21:, 21:23] == 2).all()
    assert (maps[1, 26:34, 25:31] == 1).all()
    assert (maps[2, :, 21:] == -1).all()


def spoiled(change, split="train2017"):
    def spoil(folder):
        table = coco_table(6) if split == "train2017" else coco_table(4, 10)
        change(table)
        write(folder, split, table)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoiled(lambda t: t["annotations"][0].update(bbox=[15, 0, 10, 5])), "outside a picture of 20 x 16"),
        (spoiled(lambda t: t["annotations"][0].update(bbox=[-4, 0, 10, 5])), "outside a picture of 20 x 16"),
        (spoiled(lambda t: t["annotations"][0].update(bbox=[2, 2, 0, 5])), "or empty"),
        (spoiled(lambda t: t["annotations"][0].update(category_id=9)), "category 9, which the file does not name"),
        (spoiled(lambda t: t["annotations"][0].update(image_id=77)), "cannot be read as COCO"),
        (spoiled(lambda t: t.pop("images")), "cannot be read as COCO"),
        (
            spoiled(lambda t: t["categories"].pop(0) and t["annotations"].clear(), "val2017"),
            "categories of training and",
        ),
        (lambda d: (d / "annotations/instances_val2017.json").write_text("{"), "cannot be read as COCO"),
        (lambda d: (d / "annotations/instances_val2017.json").unlink(), "no instances_val"),
        (lambda d: (d / "train2017/2.jpg").unlink(), "2.jpg is no readable image"),
        (lambda d: save(d / "train2017/2.jpg", flat((1, 1, 1), 30)), "30 x 30 pixels, not 20 x 16"),
    ],
)
def test_broken_coco_folders_are_refused(coco, spoil, message):
    spoil(coco)
    with pytest.raises(DataError, match=message):
        load_task(f"coco/{coco}?ask=segmentation&size=16")


def test_coco_is_asked_for_what_there_is(coco):
    with pytest.raises(SpecError, match="presence, segmentation or detection"):
        load_task(f"coco/{coco}?ask=boxes")


# ---- VQA ----


@pytest.fixture
def vqa(tmp_path):
    for split, n in (("train", 4), ("val", 2)):
        questions = [
            {"question_id": 10 * i + j, "image_id": i, "question": f"what is {j}?"} for i in range(n) for j in (0, 1)
        ]
        answers = [
            {"question_id": q["question_id"], "multiple_choice_answer": "Grey!" if q["image_id"] % 2 else "black"}
            for q in questions
        ]
        (tmp_path / f"v2_OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps({"questions": questions}))
        (tmp_path / f"v2_mscoco_{split}2014_annotations.json").write_text(json.dumps({"annotations": answers}))
        for i in range(n):
            save(tmp_path / f"{split}2014" / f"COCO_{split}2014_{i:012}.jpg", flat((i % 2 * 90,) * 3))
    return tmp_path


def test_vqa(vqa):
    task = load_task(f"vqa/{vqa}?size=8")
    assert (task.kind, task.labels, task.train.n, task.test.n) == ("answer", ("black", "grey"), 8, 4)
    shown = images(task.train).mean((1, 2, 3))
    np.testing.assert_array_equal(shown > 0.2, task.y_train == 1)
    np.testing.assert_array_equal(task.groups, [0, 0, 1, 1, 2, 2, 3, 3])
    assert load_task(f"vqa/{vqa}?size=8&n_train=3").train.n == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: next(d.glob("*train*_questions.json")).unlink(), r"no \*train\*_questions.json"),
        (lambda d: next(d.glob("*val*_annotations.json")).write_text("[1]"), "cannot be read as VQA's annotations"),
        (lambda d: next(d.glob("*val*_annotations.json")).write_text('{"annotations": []}'), "not as VQA has it"),
        (lambda d: next(d.glob("*val*_questions.json")).write_text('{"questions": []}'), "no val question"),
        (lambda d: next(d.glob("val2014/*1.jpg")).unlink(), "no picture of image 1"),
    ],
)
def test_broken_vqa_folders_are_refused(vqa, spoil, message):
    spoil(vqa)
    with pytest.raises(DataError, match=message):
        load_task(f"vqa/{vqa}?size=8")


# ---- shipped ----


def test_digits_look_like_digits():
    task = load_task("digits/digit?size=16")
    assert task.labels == tuple("0123456789")
    shown = images(task.train)
    assert (shown[:, 0] == shown[:, 2]).all()
    zero, one = (shown[task.y_train == c, 0].mean(0) for c in (0, 1))
    assert zero[8, 8] < 0.3 < 0.6 < one[8, 8]  # the hole of the 0, the stroke of the 1


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    root = tmp_path / "stamps"
    for category in ("animals", "food", "rare"):
        for i in range(24 if category != "rare" else 3):
            picture = np.zeros((30, 20, 4), np.uint8)
            picture[10:20, 5:15] = (200, 30, 30, 255)
            path = save(root / category / "sub" / f"{i}.png", picture)
            path.with_suffix(".txt").write_text(f"A {category} number {i // 2}.\nde.utf8=Etwas\n")
            save(root / category / "sub" / f"{i}_mirror.png", picture)
    monkeypatch.setenv("TSPROBE_STAMPS", str(root))
    return root


def test_stamps(stamps):
    task = load_task("stamps/category")
    assert task.labels == ("animals", "food")
    assert task.train.n + task.test.n == 48
    assert (images(task.train)[:, :, 0, 0] == 1).all()  # on white
    segmentation = load_task("stamps/segmentation?size=60&grid=60")
    inside = np.zeros((60, 60), int)
    inside[20:40, 15:45] = 1
    differ = segmentation.y_test.reshape(-1, 60, 60) != inside
    assert differ.mean() < 0.03
    np.testing.assert_allclose(images(segmentation.test)[0, :, 30, 30] * 255, [200, 30, 30], atol=1)
    assert images(segmentation.test)[0, :, :10].std() > 0.05  # noise, not one colour
    assert "stamps/category" in {row["name"] for row in list_tasks() if row["here"]}


def test_stamps_with_one_caption_are_on_one_side(stamps):
    from vision.tasks import shipped

    found = shipped.stamps("x")
    assert len(found) == 51  # without the mirrored ones
    captions = [s.caption for s in found]
    train, test = shipped._parts(captions, 0)
    assert not {captions[i] for i in train} & {captions[i] for i in test}
    assert sorted([*train, *test]) == list(range(51))
    assert captions[0] == "A animals number 0."


def test_without_stamps_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("TSPROBE_STAMPS", str(tmp_path / "none"))
    with pytest.raises(MissingPackageError, match="apt-get install --no-install-recommends tuxpaint-stamps-default"):
        load_task("stamps/category")
    assert not any(row["here"] for row in list_tasks() if row["name"].startswith("stamps/"))
    monkeypatch.setenv("TSPROBE_STAMPS", str(tmp_path))
    with pytest.raises(DataError, match="no stamp with a caption"):
        load_task("stamps/category")
    with pytest.raises(UnknownNameError, match="stamps/caption"):
        load_task("stamps/captions")
