"""Detection and boxes in words: known answers, COCO's own code as referee, resamples, studies, bad input."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tsprobe as tp
import tsprobe.tasks as found_tasks
from tsprobe.data.panel import Panel
from tsprobe.data.text import Question, read_box
from tsprobe.detection_metrics import MOST, OVERLAPS, not_covered, overlap
from tsprobe.encoders.base import Tap
from tsprobe.errors import DataError, SpecError
from tsprobe.metrics import get_metric
from tsprobe.probes import get_probe, language
from tsprobe.probes.base import Steps, Target
from tsprobe.stats import paired_gap, resample_counts, resampled_scores
from tsprobe.tasks import Questions, load_task
from vision.encoders.base import ImageEncoder, Look, image_facts
from vision.encoders.grids import picture_tokens
from vision.images import to_panel
from vision.tasks import detection
from vision.tasks.detection import Objects
from vision.world.scenes import scenes

SOURCES = {
    "coco": "vision.tasks.coco:load_coco",
    "refs": "vision.tasks.boxes:load_refs",
    "vision": "vision.tasks.generated:load_generated",
}
AP = get_metric("ap")


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    """The entry points, whether or not this copy of the package has been installed since they were written."""
    points = [EntryPoint(name, value, "tsprobe.tasks") for name, value in SOURCES.items()]
    monkeypatch.setattr(found_tasks, "entry_points", lambda group: points)


def asked(pictures, n_classes=2, grid=8, size=32, train=None):
    """A task about black pictures that show these objects."""
    train = [Objects.of([0], [[0.1, 0.1, 0.6, 0.6]])] * 2 if train is None else train
    panels = tuple(numbered(len(part), size) for part in (train, pictures))
    classes = tuple(f"class {c}" for c in range(n_classes))
    return detection.ask("x", panels, (train, pictures), classes, size=size, grid=grid)


def rows(task):
    part = task.rows("test")
    return torch.from_numpy(part.y), torch.from_numpy(part.series)


def crowded(n, n_classes, seed, most=5):
    """Pictures of 0 to `most` objects of any size, every third with a double of one of them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        count = int(rng.integers(0, most + 1)) if i else most
        low = rng.uniform(0, 0.6, (count, 2))
        high = np.minimum(low + rng.uniform(0.08, 0.6, (count, 2)), 1)
        boxes, classes = np.concatenate([low, high], 1), rng.integers(0, n_classes, count)
        if count and i % 3 == 0:
            boxes, classes = np.concatenate([boxes, boxes[:1]]), np.append(classes, classes[0])
        found.append(Objects.of(classes, boxes))
    return found


def perfect(y):
    return torch.nan_to_num(y)[None]


def noisy(y, seed, size=0.1):
    return perfect(y) + size * torch.randn(1, *y.shape, generator=torch.Generator().manual_seed(seed)).double()


# ---- targets and known answers ----


def test_targets_hold_every_object_of_the_scenes_and_perfect_ones_score_1():
    task, found = load_task("vision/detection?n_train=8&n_test=60"), scenes(60, seed=(0, 0, 1))
    y, series = rows(task)
    own = (y[:, :8] == 1).nonzero()
    boxes = torch.cat([y[own[:, 0], -2:] - y[own[:, 0], 8:10], y[own[:, 0], -2:] + y[own[:, 0], 10:12]], 1) * 64
    for i in range(60):
        here = series[own[:, 0]] == i
        said = sorted(zip(own[here, 1].tolist(), boxes[here].round().long().tolist(), strict=True))
        there = found.area[i] >= 16
        assert said == sorted(zip(found.plan.shape[i, there].tolist(), found.boxes[i, there].tolist(), strict=True))
    assert (found.area >= 16).sum() > 100
    assert float(AP(y, perfect(y), series=series)[0]) == pytest.approx(1)


def test_a_place_belongs_to_the_smallest_box_and_each_object_has_one_of_its_own():
    places = np.stack([np.tile(np.arange(4) / 4 + 0.125, 4), np.repeat(np.arange(4) / 4 + 0.125, 4)], 1)
    y = detection.targets(Objects.of([0, 1, 1], [[0, 0, 1, 1], [0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1]]), places, 2)
    heat = y[:, :2].reshape(4, 4, 2)
    assert (heat[:2, :, 1] == 0).all()
    assert ((heat[2:, 2:, 1] > 0) | (heat[2:, 2:, 0] == 1)).all()  # that of the large one may be among them
    assert ((y[:, :2] == 1).sum(0) == [1, 2]).all()  # doubles too
    np.testing.assert_allclose(heat[0, 0, 0], 0.125 / 0.875)  # centre-ness: both sides an eighth against seven
    np.testing.assert_allclose(y[0, 2:], [0.125, 0.125, 0.875, 0.875, 0.125, 0.125])
    small = detection.targets(Objects.of([0], [[0.26, 0.26, 0.3, 0.3]]), places, 1)  # holds no place
    assert np.flatnonzero(small[:, 0]).tolist() == [5]
    assert np.isnan(small[np.arange(16) != 5, 1:5]).all()
    assert (detection.targets(Objects.of([], []), places, 1)[:, 0] == 0).all()


@pytest.mark.parametrize(("shared", "score"), [(0.97, 1.0), (0.72, 0.5), (0.52, 0.1), (0.48, 0.0)])
def test_shifted_boxes_score_what_their_overlap_is_worth(shared, score):
    """A box shifted by a share d of its width covers (1 - d) / (1 + d) of the union."""
    box = np.array([0.3, 0.2, 0.6, 0.9])
    task = asked([Objects.of([i % 2], [box]) for i in range(6)] + [Objects.of([], [])])
    y, series = rows(task)
    shift = (1 - shared) / (1 + shared) * 0.3
    p = perfect(y)
    p[..., 2] -= shift
    p[..., 4] += shift
    assert float(AP(y, p, series=series)[0]) == pytest.approx(score, abs=1e-9)


def test_noise_and_the_mean_are_near_0():
    task = load_task("vision/detection?n_train=8&n_test=60")
    y, series = rows(task)
    noise = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(0)).double()
    mean = torch.nanmean(y, 0).expand(1, *y.shape)
    assert float(AP(y, torch.cat([noise, mean]), series=series).max()) < 0.005


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    alone = Objects.of([0], [[0.0, 0.0, 0.4, 0.4]])
    beside = replace(alone, crowd_classes=np.array([0]), crowds=np.array([[0.5, 0.5, 1.0, 1.0]]))
    scores = []
    for there in (alone, beside):
        y, series = rows(asked([there] * 3))
        p = perfect(y)
        wrong = (y[:, -2:] > 0.5).all(1)
        p[0, wrong, 0], p[0, wrong, 2:6] = 2, 0.05  # surer than what is right
        scores.append(float(AP(y, p, series=series)[0]))
    assert scores[0] < 0.5
    assert scores[1] == pytest.approx(1)
    only = Objects.of([], [], [0], [[0.0, 0.0, 1.0, 1.0]])
    assert asked([alone, only], n_classes=1).rows("test").y.shape == (128, 7)  # its places stay rows


# ---- the referee ----


def plain(y, p, series, n_classes):
    """Detections of each picture, pair by pair, with torchvision's suppression: (picture, class, box, score)."""
    from torchvision.ops import batched_nms

    found = []
    for number in series.unique().tolist():
        at = (series == number).nonzero()[:, 0]
        pairs = [(p[i, c], c, i) for i in at.tolist() for c in range(n_classes) if not y[i, c].isnan()]
        pairs = sorted(pairs, key=lambda pair: -float(pair[0]))[:MOST]
        sides = torch.stack([p[i, n_classes : n_classes + 4] for *_, i in pairs])
        place = torch.stack([y[i, -2:] for *_, i in pairs])
        boxes = torch.cat([place - sides[:, :2], place + sides[:, 2:]], 1).clamp(0, 1)
        classes = torch.tensor([c for _, c, _ in pairs])
        boxes[(boxes[:, :2] >= boxes[:, 2:]).any(1)] = -1  # covers none, and is none
        kept = batched_nms(boxes, torch.stack([s for s, *_ in pairs]), classes, 0.5)
        kept = [k for k in kept.tolist() if boxes[k, 0] >= 0]
        found += [(number, int(classes[k]), boxes[k].tolist(), float(pairs[k][0])) for k in kept]
    return found


def by_coco(pictures, detections, n_classes):
    coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))

    def bbox(box):
        left, top, right, bottom = (1000 * float(side) for side in box)
        return [left, top, right - left, bottom - top]

    objects = [
        {"image_id": i, "category_id": int(c) + 1, "bbox": bbox(b), "iscrowd": 0, "area": np.prod(bbox(b)[2:])}
        for i, one in enumerate(pictures)
        for c, b in zip(one.classes, one.boxes, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(pictures))],
            "categories": [{"id": c + 1} for c in range(n_classes)],
            "annotations": [{**row, "id": i} for i, row in enumerate(objects, 1)],
        }
        truth.createIndex()
        said = truth.loadRes(
            [{"image_id": i, "category_id": c + 1, "bbox": bbox(b), "score": s} for i, c, b, s in detections]
        )
        judge = cocoeval.COCOeval(truth, said, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


@pytest.mark.parametrize(("seed", "noise"), [(0, 0.02), (1, 0.05), (2, 0.1), (3, 0.3)])
def test_ap_is_that_of_pycocotools(seed, noise):
    pictures = crowded(24, 3, seed)
    pictures[5] = Objects.of([], [])
    y, series = rows(asked(pictures, 4))  # the fourth class does not occur
    p = noisy(y, seed, noise)
    expected = by_coco(pictures, plain(y, p[0], series, 4), 4)
    assert float(AP(y, p, series=series)[0]) == pytest.approx(expected, abs=1e-12)
    assert 0.0001 < expected < 0.9


def test_suppression_is_that_of_torchvision():
    from torchvision.ops import batched_nms

    generator = torch.Generator().manual_seed(0)
    low = torch.rand(5, 80, 2, generator=generator)
    boxes = torch.cat([low, low + 0.1 + torch.rand(5, 80, 2, generator=generator) / 2], 2)
    boxes[:, 40] = boxes[:, 3]
    classes = torch.randint(0, 3, (5, 80), generator=generator)
    for kept, one, of in zip(not_covered(boxes, classes), boxes, classes, strict=True):
        expected = batched_nms(one, torch.linspace(1, 0, 80), of, 0.5).sort().values
        assert kept.nonzero()[:, 0].tolist() == expected.tolist()
        assert 5 < len(expected) < 75


def test_overlap_knows_boxes_without_area():
    a = torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 3], [3, 3, 2, 2]])
    shared = overlap(a, torch.tensor([[1.0, 0, 3, 2], [1, 1, 1, 3]]))
    torch.testing.assert_close(shared, torch.tensor([[1 / 3, 0], [0, 0], [0, 0]]))


# ---- resamples ----


def test_weights_are_pictures_drawn_again():
    pictures = crowded(12, 3, 4)
    y, series = rows(asked(pictures, 3))
    p = torch.cat([noisy(y, 1, 0.03), noisy(y, 2, 0.06)])
    notes, counts = AP.notes(y, p, series), resample_counts(12, 6, 0)
    drawn = AP.over_series(torch.arange(12), notes, counts)
    assert drawn.shape == (6, 2)
    for r in range(6):
        order = np.repeat(np.arange(12), counts[r].long().numpy())
        at = torch.cat([(series == i).nonzero()[:, 0] for i in order])
        again = AP(y[at], p[:, at], series=torch.arange(12).repeat_interleave(64))
        torch.testing.assert_close(drawn[r], again, rtol=0, atol=1e-12)
    none = torch.zeros(1, 12, dtype=torch.float64)
    none[0, [i for i, one in enumerate(pictures) if not len(one.classes)]] = 1
    assert AP.over_series(torch.arange(12), notes, none).isnan().all()  # no object at all


def test_intervals_and_gaps_are_of_pictures():
    y, series = rows(asked(crowded(12, 2, 5), 2))
    better, near, worse = (
        AP.notes(y, noisy(y, seed, size), series) for seed, size in ((1, 0.02), (3, 0.025), (1, 0.2))
    )
    counts, number = resample_counts(12, 40, 0), torch.arange(12)
    gap = paired_gap(AP.over_series, number, better, worse, counts, weighed=True)
    assert gap.low > 0.1
    assert gap.p_value == pytest.approx(1 / 41)
    assert gap.low < gap.value < gap.high
    same = paired_gap(AP.over_series, number, better, better, counts, weighed=True)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    gaps = [paired_gap(AP.over_series, number, better, near, counts, weighed=way) for way in (False, True)]
    assert gaps[0] == gaps[1]  # swapped themselves, and by weights
    assert 1 / 41 < gaps[0].p_value < 1
    assert len(resampled_scores(AP.over_series, number, better, counts).unique()) > 20


def test_rows_in_any_order_of_series_score_alike():
    """Probes sort rows by folds."""
    y, series = rows(asked(crowded(10, 2, 6), 2))
    p, turned = noisy(y, 1, 0.03), torch.tensor([7, 2, 9, 0, 1, 8, 3, 4, 6, 5])[series]
    order = turned.sort(stable=True).indices
    torch.testing.assert_close(AP(y[order], p[:, order], series=turned[order]), AP(y, p, series=series))
    with pytest.raises(DataError, match="needs to be told the series"):
        AP(y, p)


# ---- probes and studies ----


class Planted(nn.Module):
    """Tokens of a picture from a table, by the number that its first pixel holds, and noise in their place."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.known, self.lost = nn.Parameter(table), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.known(self.table[(x[:, 0, 0, 0] * 255).round().long()])
        noise = torch.Generator().manual_seed(0)
        return self.lost(tokens * 0 + torch.randn(tokens.shape, generator=noise))


class PlantedEncoder(ImageEncoder):
    def __init__(self, table: torch.Tensor, grid: int, size: int) -> None:
        taps = {"known": Tap("known"), "lost": Tap("lost")}
        facts = image_facts(
            objective="none", pretrained_on="nothing", code_licence="", weights_licence="", final_is="noise"
        )
        super().__init__("planted", Planted(table), taps, "lost", facts, Look(size, grid, (0.0,) * 3, (1.0,) * 3))

    def maps(self, batch):
        return picture_tokens(len(batch.lengths), self.look.grid, self.look.grid, self.look.size)


def numbered(n, size, first=0):
    pictures = np.zeros((n, 3, size, size), np.uint8)
    pictures[:, :, 0, 0] = np.arange(first, first + n)[:, None]
    return Panel(tuple(to_panel(pictures)))


def planted():
    """A task of 60 and 30 pictures, and an encoder whose tokens are a random rotation of the targets.

    No two objects of a picture are of one class: suppression would drop one of two that cover each other.
    """
    parts = crowded(60, 2, 7, most=2), crowded(30, 2, 8, most=2)
    objects = [[Objects.of(*(x[: len(set(o.classes))] for x in (o.classes, o.boxes))) for o in part] for part in parts]
    task = detection.ask(
        "told", (numbered(60, 24), numbered(30, 24, 60)), (objects[0], objects[1]), ("a", "b"), size=24, grid=8
    )
    y = torch.nan_to_num(torch.from_numpy(np.concatenate([task.y_train, task.y_test])))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    return task, PlantedEncoder((y @ turn).float(), 8, 24)  # 3 pixels a token: one is its centre


def test_a_study_finds_the_layer_whose_tokens_tell_the_boxes():
    task, encoder = planted()
    study = tp.probe(encoder, task, controls=("chance",), folds=3, resamples=100)
    scores = study.scores.set_index(["encoder", "layer"]).score
    assert scores["planted", "known"] > 0.97
    assert scores["planted", "lost"] < 0.02
    assert scores["baseline/chance", "features"] < 0.02
    verdict = study.verdicts.set_index("encoder").loc["planted"]
    assert (verdict.chosen_layer, verdict.metric, verdict.family, verdict.verdict) == ("known", "ap", "dense", "hidden")
    assert verdict.gap_low > 0.9
    streamed = tp.probe(encoder, task, controls=(), folds=3, resamples=100, features="statistics")
    assert streamed.scores.set_index("layer").score["known"] == pytest.approx(scores["planted", "known"], abs=1e-3)


@pytest.mark.parametrize("probe", ["knn", "attentive"])
def test_other_probes_read_boxes_too(probe):
    task, encoder = planted()
    part, test = task.rows("train"), task.rows("test")
    table = encoder.module.table.detach().reshape(-1, 8)
    steps = [torch.arange(64).repeat(n) for n in (60, 30)]
    series = torch.from_numpy(part.series), torch.from_numpy(test.series)
    at = Steps(series, (steps[0], steps[1]))
    target = Target("detection", torch.from_numpy(part.y), 8, series=series[0], steps=at)
    folds = torch.from_numpy(task.folds(3, 0)[part.series])
    strengths = (5,) if probe == "knn" else (100,)
    read = get_probe(probe)(table[None, :3840], target, table[None, 3840:], folds, AP, strengths=strengths)
    assert float(AP(torch.from_numpy(test.y), read.prediction, series=series[1])[0]) > 0.1  # noise gets 0.005


def test_ap_is_for_detections_alone():
    with pytest.raises(SpecError, match="'ap' is for dense detection, not for dense regression"):
        load_task("vision/depth?n_train=4&n_test=4&metric=ap")
    with pytest.raises(SpecError, match="not for dense detection"):
        load_task("vision/detection?n_train=4&n_test=4&metric=r2")
    with pytest.raises(DataError, match="4 columns where classes"):
        AP(torch.zeros(2, 4), torch.zeros(1, 2, 4), series=torch.zeros(2, dtype=torch.long))


# ---- bad input ----


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0.2, 0.2, 0.2, 0.5]], "picture 1 has the box 0.2, 0.2, 0.2, 0.5, which is empty or not within 0 to 1"),
        ([[0.2, 0.2, 1.2, 0.5]], "not within 0 to 1"),
        ([[0.2, np.nan, 0.4, 0.5]], "not within 0 to 1"),
        ([[0, 0, 1, 1]] * 5, "has 5 objects and 4 places; give a finer grid"),
    ],
)
def test_boxes_that_cannot_be_are_refused(boxes, message):
    fine = Objects.of([0], [[0, 0, 1, 1]])
    with pytest.raises(DataError, match=message):
        asked([fine, Objects.of([0] * len(boxes), boxes)], grid=2)


def test_pictures_without_objects_are_fine_but_not_all_of_them():
    none = Objects.of([], [])
    asked([none, Objects.of([0], [[0, 0, 1, 1]]), none])
    with pytest.raises(DataError, match="no test picture shows an object"):
        asked([none, none])
    with pytest.raises(DataError, match="no training picture shows an object"):
        asked([Objects.of([0], [[0, 0, 1, 1]])], train=[none])
    with pytest.raises(DataError, match="class that is none of 0 to 1"):
        asked([Objects.of([2], [[0, 0, 1, 1]])])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("detection?n_train=4&n_test=4&grid=0", "grid=0; give from 1 to 64"),
        ("detection?n_train=4&n_test=4&of=size", "of='size'; give shape or colour or any"),
        ("detection?frames=4", "no setting 'frames'"),
        ("grounding?n_train=4&n_test=4&bins=1", "bins=1; give 2 to 1000"),
        ("grounding?grid=4", "no setting 'grid'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, message):
    with pytest.raises(SpecError, match=message):
        load_task(f"vision/{name}")


def test_what_is_detected_may_be_colours_or_any_object():
    n = {of: len(load_task(f"vision/detection?n_train=4&n_test=4&of={of}").labels) for of in ("colour", "any")}
    assert n == {"colour": 14, "any": 7}


# ---- COCO ----

OBJECTS = ((0, 1, [0, 0, 10, 16], 0), (0, 3, [10, 8, 10, 8], 1), (2, 3, [5, 4, 5, 4], 0))


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, first in (("train2017", 0), ("val2017", 10)):
        (tmp_path / split).mkdir()
        table = {"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}], "images": [], "annotations": []}
        for i in range(first, first + 3):
            Image.fromarray(np.full((16, 20, 3), i, np.uint8)).save(tmp_path / split / f"{i}.png")
            table["images"].append({"id": i, "file_name": f"{i}.png", "width": 20, "height": 16})
        for image, category, bbox, crowd in OBJECTS:
            table["annotations"].append(
                {"image_id": first + image, "category_id": category, "bbox": bbox, "iscrowd": crowd, "id": 9}
            )
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return tmp_path


def test_coco_detection(coco):
    task = load_task(f"coco/{coco}?ask=detection&size=32&grid=8")
    assert (task.kind, task.metric, task.family) == ("detection", "ap", "dense")
    assert task.labels == ("cat", "dog", "left", "top", "right", "bottom", "column", "row")
    y = task.y_train.reshape(3, 8, 8, 8)
    assert (y[0, :, :4, 0] > 0).all()
    assert (y[0, :, 4:, 0] == 0).all()
    assert np.isnan(y[0, 4:, 4:, 1]).all()  # the crowd of dogs
    assert (y[0, :4, :, 1] == 0).all()
    assert (y[1, ..., :2] == 0).all()
    assert np.argwhere(y[2, ..., 1] == 1).shape == (1, 2)
    own = y[2][y[2, ..., 1] == 1][0]
    np.testing.assert_allclose(np.concatenate([own[-2:] - own[2:4], own[-2:] + own[4:6]]), [0.25, 0.25, 0.5, 0.5])
    values, series = rows(task)
    assert float(AP(values, perfect(values), series=series)[0]) == pytest.approx(1)


def spoil(folder, **change):
    file = folder / "annotations/instances_train2017.json"
    table = json.loads(file.read_text())
    table["annotations"] = [{**row, **change} for row in table["annotations"]] if change else []
    file.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [15, 0, 10, 5]}, "outside a picture of 20 x 16"),
        ({"bbox": [3, 3, 0, 5]}, "or empty"),
        ({"iscrowd": 1}, "no training picture shows an object"),
        ({}, "no training picture shows an object"),
    ],
)
def test_coco_files_that_cannot_be_detected_in_are_refused(coco, change, message):
    spoil(coco, **change)
    with pytest.raises(DataError, match=message):
        load_task(f"coco/{coco}?ask=detection&size=32")


# ---- boxes in words ----


def test_grounding_asks_for_the_box_of_what_the_phrase_names():
    from vision.world import words

    task, found = load_task("vision/grounding?n_train=8&n_test=30&bins=101"), scenes(30, seed=(0, 0, 1), objects=(2, 4))
    phrases, slots = words.phrases(found, 1)
    boxes = found.boxes[np.arange(30), slots] / 64
    assert (task.kind, task.metric, task.family) == ("box", "p_at_50", "language")
    assert [q.question for q in task.questions_test] == [f"where is {phrase}?" for phrase in phrases]
    np.testing.assert_allclose(task.y_test, 100 * boxes)
    said = [q.answer_texts[0] for q in task.questions_test]
    np.testing.assert_allclose([read_box(text) for text in said], (100 * boxes).round())
    assert {q.answer for q in task.asked.test} == {""}  # a probe is not told


def test_boxes_are_said_and_read():
    assert Question("x", (1.4, 2, 1.45, 9.6)).answer_texts == ("1 2 2 10",)  # too narrow for a number of its own
    assert read_box("1 2 2 10") == (1, 2, 2, 10)
    assert read_box("the box 007 2, 10 20.") == (7, 2, 10, 20)
    for text in ("", "1 2 3", "3 1 2 5", "1 5 2 5", "left top right bottom", "1.5 2 3 4"):
        assert read_box(text) == (0, 0, 0, 0)


def test_p_at_50_counts_boxes_that_cover_half_and_no_others():
    metric = get_metric("p_at_50")
    y = torch.tensor([[0.0, 0, 4, 4]] * 5).double()
    p = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 1.9], [0, 0, 0, 0], [4, 4, 8, 8]]).double()
    assert float(metric(y, p[None])[0]) == pytest.approx(2 / 5)
    weights = torch.tensor([[0.0, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    assert metric(y, p[None], weights)[:, 0].tolist() == [0.5, 0]
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 5, (200, 2, 2))
    pairs = np.concatenate([low, low + rng.uniform(1, 6, (200, 2, 2))], 2)
    both = [max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1])) for a, b in pairs]
    area = ((pairs[..., 2] - pairs[..., 0]) * (pairs[..., 3] - pairs[..., 1])).sum(1)
    expected = np.mean(np.array(both) / (area - both) >= 0.5)
    found = metric(torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1])[None])
    assert float(found[0]) == pytest.approx(expected)
    assert 0.02 < expected < 0.5


BOXES = ((0, 0, 4, 4), (4, 0, 9, 5), (1, 6, 5, 9), (6, 6, 9, 9))


def test_a_study_reads_boxes_in_words(monkeypatch):
    """Tokens of an encoder show which of four boxes is meant; what is text alone, and noise, do not."""
    monkeypatch.setattr(language, "STEPS", (60,))
    which = np.random.default_rng(0).permutation(np.arange(120) % 4)
    table = 0.1 * torch.randn(120, 16, 8, generator=torch.Generator().manual_seed(0))
    table[torch.arange(120), 5, torch.from_numpy(which)] += 3
    questions = [Question("where is it?", BOXES[i]) for i in which]
    task = Questions("told", (numbered(80, 16), questions[:80]), (numbered(40, 16, 80), questions[80:]))
    study = tp.probe(
        PlantedEncoder(table, 4, 16), task, poolings=("segments16",), probes=("language",), controls=("chance",),
        resamples=100,
    )  # fmt: skip
    scores = study.scores.set_index(["encoder", "layer"]).score
    assert scores["planted", "known"] > 0.9
    assert scores["planted", "lost"] < 0.6
    assert scores["baseline/chance", "features"] < 0.6
    assert set(study.scores.metric) == {"p_at_50"}
    assert study.verdicts.set_index("encoder").verdict["planted"] == "hidden"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((3, 1, 3, 5), "is not empty"),
        ((-1, 1, 3, 5), "from 0 on"),
        ((0, 1, 3, float("inf")), "is not empty"),
        ((0, 1, 3, "x"), "give four numbers"),
        ((0, 1, 3), "the four sides of a box"),
    ],
)
def test_boxes_that_are_none_are_no_answers(answer, message):
    pair = (np.zeros((2, 3, 16)), [Question("where?", (0, 0, 1, 1)), Question("where?", answer)])
    if len(answer) == 3:
        pair = pair[0], [pair[1][1]] * 2
    with pytest.raises(DataError, match=message):
        Questions("x", pair, pair)


# ---- references by path ----


@pytest.fixture
def refs(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 20, 3), 50 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    for split, numbers in (("train", (0, 1, 0)), ("val", (2, 3))):
        lines = [line(file=f"pictures/{i}.png", phrase=f"thing {j}") for j, i in enumerate(numbers)]
        (tmp_path / f"{split}.jsonl").write_text("\n\n".join(lines))
    return tmp_path


def line(**change):
    return json.dumps({"file": "pictures/0.png", "phrase": "the cat", "box": [5, 4, 10, 8]} | change)


def test_refs(refs):
    task = load_task(f"refs/{refs}?size=16&bins=101")
    assert (task.kind, task.metric, task.train.n, task.test.n) == ("box", "p_at_50", 3, 2)
    np.testing.assert_allclose(task.y_train, [[25, 25, 75, 75]] * 3)
    assert [q.question for q in task.questions_test] == ["where is thing 0?", "where is thing 1?"]
    assert task.groups.tolist() == [0, 1, 0]
    assert load_task(f"refs/{refs}?size=16&n_train=2").train.n == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: JSONDecodeError"),
        ("[]", "line 1: TypeError"),
        (line(box=[1, 2, 3]), "ValueError"),
        (line(box=None), "TypeError"),
        (line(phrase="..."), "has no word"),
        (line(box=[15, 0, 10, 5]), r"line 1: box \[15.0, 0.0, 10.0, 5.0\] is empty or outside a picture of 20 x 16"),
        (line(box=[5, 5, 0, 5]), "is empty or outside"),
        (line(box=[5, float("nan"), 2, 5]), "is empty or outside"),
        (line(file="pictures/9.png"), "no readable image"),
        (" ", "has no line"),
    ],
)
def test_broken_refs_are_refused_in_one_line(refs, text, message):
    (refs / "train.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        load_task(f"refs/{refs}?size=16")


def test_refs_without_lines_or_with_other_settings(refs):
    with pytest.raises(SpecError, match="bins=0"):
        load_task(f"refs/{refs}?bins=0")
    (refs / "val.jsonl").unlink()
    with pytest.raises(DataError, match=r"no test.jsonl or val.jsonl in"):
        load_task(f"refs/{refs}")


def test_levels_are_those_of_coco():
    np.testing.assert_array_equal(OVERLAPS, np.linspace(0.5, 0.95, 10))
