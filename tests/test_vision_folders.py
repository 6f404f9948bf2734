"""Perception Encoder on pictures in the formats of real data, from Meta's file of weights to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import vision_reference as reference
import yaml
from PIL import Image
from typer.testing import CliRunner
from vision_reference import Shape

from tsprobe.cli import app
from tsprobe.errors import DataError
from tsprobe.tasks import load_task
from vision.world.export import export
from vision.world.scenes import scenes
from vision.world.shapes import SHAPES

CONFIG = Path(__file__).parents[1] / "configs" / "pe_core_b16.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    export(folder, train=20, val=12, size=48)
    return folder


def test_exported_scenes_are_read_back_with_their_truth(data):
    truth = scenes(20, size=48, seed=(4, 0, 0))
    task = load_task(f"ade20k/{data}/ade20k?size=48&grid=48")
    found = np.array([*task.labels, "none"])[task.y_train.reshape(20, 48, 48)]
    for shape in task.labels:
        same = (found == shape) == (truth.classes == int(shape.split()[1]) - 1)
        assert same.all(), shape
    presence = load_task(f"coco/{data}/coco?size=48")
    assert presence.labels == SHAPES
    seen = np.stack([((truth.plan.shape == k) & (truth.area > 0)).any(1) for k in range(len(SHAPES))], 1)
    np.testing.assert_array_equal(presence.y_train, seen)
    depth = load_task(f"nyu/{data}/nyu?size=48&grid=48")
    np.testing.assert_allclose(depth.y_train.reshape(20, 48, 48), truth.depth, atol=6e-4)
    asked = load_task(f"vqa/{data}/vqa?size=48")
    assert asked.asked is not None
    assert len(asked.asked.train) == 20
    tracked = load_task(f"davis/{data}/davis?size=48&grid=12")
    assert tracked.train.n == tracked.test.n
    assert load_task(f"imagefolder/{data}/imagefolder?size=48").train.n == 20


def test_outlines_of_coco_cover_what_is_seen(data):
    truth = scenes(20, size=48, seed=(4, 0, 0))
    maps = load_task(f"coco/{data}/coco?ask=segmentation&size=48&grid=48").y_train.reshape(20, 48, 48)
    alone = truth.there.sum(1) == 1  # others hide parts of an outline, and a smaller object lies before a larger one
    a, b = maps[alone] > 0, truth.instance[alone] > 0
    assert (a & b).sum() / (a | b).sum() > 0.85


def test_names_of_classes_come_from_the_table_beside_the_masks(data, tmp_path):
    folder = tmp_path / "ade"
    export(tmp_path, train=6, val=4, size=32)
    (tmp_path / "ade20k").rename(folder)
    lines = ["Idx\tRatio\tTrain\tVal\tName"] + [f"{i + 1}\t0\t0\t0\t{s}, a {s}" for i, s in enumerate(SHAPES)]
    (folder / "objectInfo150.txt").write_text("\n".join(lines))
    assert set(load_task(f"ade20k/{folder}?size=32").labels) <= set(SHAPES)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: next((d / "annotations/training").iterdir()).unlink(), "has no mask"),
        (lambda d: [p.unlink() for p in (d / "images/validation").iterdir()], "no validation picture"),
        (lambda d: [_blank(p) for p in (d / "annotations/training").iterdir()], "no pixel of the training"),
        (lambda d: _wide(next((d / "annotations/training").iterdir())), "other numbers than classes"),
    ],
)  # fmt: skip
def test_broken_folders_are_refused(spoil, message, tmp_path):
    export(tmp_path, train=4, val=4, size=32)
    spoil(tmp_path / "ade20k")
    with pytest.raises(DataError, match=message):
        load_task(f"ade20k/{tmp_path}/ade20k?size=32")


def _blank(path):
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)


def _wide(path):
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(path)


@pytest.mark.slow
@pytest.mark.integration
def test_the_config_for_real_folders_runs_to_the_end(data, tmp_path):
    """The architecture of PE-Core-B16-224 at its full width and depth, in Meta's file, shown small pictures."""
    shape = Shape(width=768, depth=12, heads=12, hidden=3072, grid=14, project=1024)
    state = {f"visual.{name}": tensor.float() for name, tensor in reference.random_weights(shape).items()}
    torch.save(state, tmp_path / "PE-Core-B16-224.pt")
    tasks = [name.replace("/data/", f"/{data}/") for name in yaml.safe_load(CONFIG.read_text())["tasks"]]
    tasks = [name + ("&" if "?" in name else "?") + "size=48" for name in tasks]
    asked = [
        "run", str(CONFIG), "--out", str(tmp_path / "out"), "--set", "tracking.enabled=false",
        "--set", f'encoders=["timm:{tmp_path}/PE-Core-B16-224.pt?size=48"]',
        "--set", f"tasks={json.dumps(tasks)}", "--set", "resamples=100", "--set", "layers=[block.3, block.11, norm]",
    ]  # fmt: skip
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    verdicts = pd.read_csv(tmp_path / "out" / "verdicts.csv")
    sources = sorted(name.partition("/")[0] for name in tasks)
    assert sorted(name.partition("/")[0] for name in verdicts.task[verdicts.encoder.str.endswith("size=48")]) == sources
    assert set(verdicts.family) == {"classification", "dense", "language"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
