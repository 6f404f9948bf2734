"""Alignment of encoders of pictures: what belongs together, by the scenes' truth and by SAM 2.1, and a tuning by it."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from alignable import spec

import tsprobe.alignment.series as room
from tsprobe.alignment.recipes import Layers
from tsprobe.alignment.series import HELD_OUT, grid_maps, lessons_of
from tsprobe.alignment.train import Tuning, tune
from tsprobe.errors import EncoderError, SpecError
from tsprobe.study.progress import silent
from tsprobe.tasks import load_task
from vision.encoders.grids import picture_tokens
from vision.encoders.zoo import VisionZoo
from vision.images import to_images
from vision.models import Tower, TowerShape
from vision.sam import MAP, POINTS, Masks

SHAPE = TowerShape(size=64, patch=8, width=32, depth=3, heads=2, ratio=2, embed=16)
DENSE = {"recipe": "dense", "mask": 0.5, "batch": 4, "steps": 3, "rate": 1e-3, "encoder": "planted"}


@pytest.fixture(autouse=True)
def points(monkeypatch):
    """The entry point, whether or not this copy of the package has been installed since it was written."""
    monkeypatch.setattr(
        room, "entry_points", lambda group: [EntryPoint("vision", "vision.alignment:lessons", group)]
    )  # fmt: skip


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = {"tower": vars(SHAPE), "objective": "contrastive"}
    return VisionZoo("vision:planted", Tower(SHAPE), config)


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """The official architecture, small, with random weights, as its own `save_pretrained` writes it."""
    from transformers import Sam2Config, Sam2Model
    from transformers.models.sam2.configuration_sam2 import (
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    torch.manual_seed(0)
    hiera = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    decoder = Sam2MaskDecoderConfig(hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16)
    prompt = Sam2PromptEncoderConfig(hidden_size=16, image_size=128, patch_size=16, mask_input_channels=4)
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    folder = tmp_path_factory.mktemp("sam2")
    model.save_pretrained(folder)
    return folder


def test_maps_are_read_over_the_patch_of_each_token():
    maps = torch.zeros(2, 3, 64, 64)
    maps[:, 0, :32], maps[0, 1, 32:, :8], maps[1, 2, 60:, 60:] = 1, 1, 1
    tokens = picture_tokens(2, 8, 8, 64, prefix=1, cls=0)
    read = grid_maps(maps, tokens)
    assert read.shape == (2, 65, 3)
    assert (read[:, 0] == 0).all()  # the class token is no place
    grid = read[:, 1:].view(2, 8, 8, 3)
    assert (grid[:, :4, :, 0] == 1).all()
    assert (grid[:, 4:, :, 0] == 0).all()
    assert (grid[0, 4:, 0, 1] == 1).all()
    assert grid[1, 7, 7, 2] == 0.25  # a quarter of the patch
    assert grid_maps(maps[..., ::16, ::16], tokens).shape == (2, 65, 3)  # coarser than the tokens: read between


def test_lessons_are_scenes_with_their_masks(encoder):
    pictures = lessons_of(encoder, [], spec(**DENSE), segments=True)
    one, again, other = (pictures.lesson(n, 4) for n in (3, 3, 4))
    assert torch.equal(one.batch.values, again.batch.values)
    assert not torch.equal(one.batch.values, other.batch.values)
    assert (one.maps.sum(1) == 1).all()  # every pixel is of one object, or of the background
    assert one.maps.shape == (4, 5, 64, 64)
    inside = one.maps[:, 1:].sum(1).flatten(1).bool()
    bright = one.batch.values.std(1)
    assert bright[inside].mean() > bright[~inside].mean()  # objects are colourful
    assert lessons_of(encoder, [], spec(**DENSE), segments=False).lesson(3, 4).maps is None


def test_pictures_of_tasks_are_learnt_on_and_some_held_out(encoder):
    task = load_task("vision/shape?n_train=20&n_test=4&size=64")
    own = lessons_of(encoder, [task.train], spec(**DENSE, locality=0), segments=False)
    learnt, looked = own.lesson(0, 16).batch.values, own.lesson(HELD_OUT, 16).batch.values
    assert (len(learnt), len(looked)) == (16, 4)
    assert not (learnt[:, None] == looked[None]).flatten(2).all(2).any()
    with pytest.raises(SpecError, match="have no masks"):
        lessons_of(encoder, [task.train], spec(**DENSE), segments=True)


def test_the_loss_falls_where_tokens_are_the_masks(encoder):
    lesson = lessons_of(encoder, [], spec(**DENSE), segments=True).lesson(0, 4)
    criterion = Layers(encoder, ("block.0",), [lesson], locality=1.0)
    inputs = encoder.prepare(lesson.batch)
    belongs = grid_maps(lesson.maps, inputs.tokens_of("norm"))
    ideal = torch.nn.functional.pad(belongs, (0, 27)) * criterion.own.deviation + criterion.own.mean
    noise = torch.randn(ideal.shape, generator=torch.Generator().manual_seed(0))
    assert criterion(ideal, inputs, lesson)["locality"] < 0.5 * criterion(noise, inputs, lesson)["locality"]


def test_an_encoder_of_pictures_is_tuned(encoder, tmp_path):
    run = Tuning(spec(**DENSE), encoder, ("block.0",), [])
    found = tune(run, tmp_path, stage=silent, name="dense")
    assert "core block.0" in run.rows[1]
    assert "locality" in run.rows[1]
    changed = [n for n, v in encoder.module.state_dict().items() if not torch.equal(found.module.state_dict()[n], v)]
    assert any(name.startswith("blocks.0") for name in changed)


def test_maps_of_sam_are_made_once_and_are_its_own(sam, tmp_path, monkeypatch):
    from transformers import Sam2Model

    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks = Masks.load(str(sam), torch.device("cpu"))
    masks.folder = tmp_path / "kept"
    maps = masks.of(picture)
    assert maps.shape == (1, POINTS**2, MAP, MAP)
    model = Sam2Model.from_pretrained(sam).eval()
    x = torch.nn.functional.interpolate(picture, (128, 128), mode="bilinear", antialias=True)
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    k = 5 * POINTS + 9  # the point in row 5 and column 9
    at = torch.tensor([[[[(9 + 0.5) * 128 / POINTS, (5 + 0.5) * 128 / POINTS]]]])
    with torch.no_grad():
        alone = model(x, input_points=at, input_labels=torch.ones(1, 1, 1, dtype=torch.long), multimask_output=False)
    expected = torch.nn.functional.interpolate(alone.pred_masks[0], (MAP, MAP), mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(maps[0, k], expected, rtol=1e-2, atol=2e-3)  # kept in half precision
    monkeypatch.setattr(masks, "_logits", lambda picture: pytest.fail("made again"))
    assert torch.equal(masks.of(picture), maps)
    monkeypatch.undo()
    (file,) = masks.folder.iterdir()
    file.write_bytes(b"damaged")
    assert torch.equal(masks.of(picture), maps)


def test_sam_teaches_a_tuning(encoder, sam, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pictures = lessons_of(encoder, [], spec(**DENSE, locality_from=f"sam2:{sam}"), segments=True)
    lesson = pictures.lesson(0, 2)
    assert lesson.maps.shape == (2, POINTS**2, MAP, MAP)
    assert to_images(lesson.batch.values.numpy()).shape == (2, 3, 64, 64)
    assert np.isfinite(lesson.maps.numpy()).all()


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("ruptures", SpecError, "for pictures give sam2"),
        ("sam2:", SpecError, "needs a folder"),
        ("sam2:/nowhere/at/all", EncoderError, "there is no folder"),
    ],
)
def test_other_teachers_are_refused(encoder, source, error, message):
    with pytest.raises(error, match=message):
        lessons_of(encoder, [], spec(**DENSE, locality_from=source), segments=True)
