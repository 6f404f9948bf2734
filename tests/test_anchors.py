"""Published results beside measured ones: the protocols on planted answers, the comparison, and the command."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tsprobe.anchors as room
from tsprobe.anchors import Anchor, Compared, compare
from tsprobe.cli import app
from tsprobe.errors import DataError, SpecError, UnknownNameError
from vision.anchors import ANCHORS, PROTOCOLS
from vision.anchors.protocols import ade20k, confusion, davis, mean_iou
from vision.encoders.zoo import VisionZoo
from vision.models import Tower, TowerShape
from vision.world.export import export

SHAPE = TowerShape(size=32, patch=8, width=16, depth=2, heads=2, ratio=1, embed=None, cls=True, pool="cls")


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """The entry point, whether or not this copy of the package has been installed since it was written."""
    monkeypatch.setattr(room, "entry_points", lambda group: [EntryPoint("vision", "vision.anchors", group)])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    module = Tower(SHAPE)
    config = {"tower": vars(SHAPE), "objective": "self-distillation", "model_type": "tsprobe-vision"}
    return VisionZoo("vision:planted", module, config)


def blind(encoder, block):
    """Make the tokens of a block, and of all behind it, one vector."""
    encoder.module.blocks[block].register_forward_hook(lambda _, __, out: torch.ones_like(out))
    return encoder


def stripes(folder, n=4, side=32):
    """Scenes whose class at a pixel is told by its brightness: dark left, bright right, the border differs."""
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for i in range(n):
            border = 8 * int(rng.integers(1, 4))
            truth = np.where(np.arange(side) < border, 1, 2)[None].repeat(side, 0).astype(np.uint8)
            truth[:8] = 0
            picture = np.repeat(np.where(truth == 2, 220, 30)[..., None], 3, 2).astype(np.uint8)
            for kind, array, suffix in (("images", picture, "png"), ("annotations", truth, "png")):
                path = folder / kind / split / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return folder


def test_every_anchor_has_a_protocol_and_fits_its_own_names_alone():
    names = {
        "PE spatial T/16": "timm:vit_pe_spatial_tiny_patch16_512.fb",
        "PE spatial S/16": "timm:/data/PE-Spatial-S16-512.pt",
        "PE spatial B/16": "timm:facebook/PE-Spatial-B16-512",
        "PE spatial L/14": "timm:vit_pe_spatial_large_patch14_448",
        "PE spatial G/14": "timm:vit_pe_spatial_gigantic_patch14_448",
        "PE core G/14": "timm:PE-Core-G14-448.pt",
        "DINOv2 L/14": "timm:vit_large_patch14_dinov2.lvd142m",
        "DINOv2 g/14": "timm:vit_giant_patch14_reg4_dinov2.lvd142m",
        "OpenAI CLIP L/14": "timm:vit_large_patch14_clip_224.openai",
        "AIMv2 3B": "timm:aimv2_3b_patch14_224.apple_pt",
        "SigLIP so400m": "timm:vit_so400m_patch14_siglip_384.webli",
        "SigLIP 2 so400m": "timm:vit_so400m_patch16_siglip_384.v2_webli",
        "SigLIP 2 g": "timm:vit_giantopt_patch16_siglip_384.v2_webli",
    }
    assert {a.encoder for a in ANCHORS} == set(names)
    for anchor in ANCHORS:
        assert anchor.data in PROTOCOLS
        assert anchor.last <= anchor.best < 100
        assert 1 <= anchor.layer <= anchor.layers
        assert [title for title, name in names.items() if anchor.fits(name)] == [anchor.encoder]
    assert not any(a.fits("timm:vit_pe_lang_large_patch14_448") for a in ANCHORS)


def test_a_linear_layer_finds_classes_where_tokens_tell_them(encoder, tmp_path):
    scores = ade20k(blind(encoder, 1), stripes(tmp_path), steps=60)
    assert list(scores) == ["block.0", "block.1"]
    assert scores["block.0"] > 85
    assert scores["block.1"] < 60  # one answer everywhere


def test_mean_iou_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(-1, 4, (3, 5, 5)), rng.integers(0, 5, (3, 5, 5))
    known = truth >= 0
    each = [
        (known & (truth == c) & (found == c)).sum() / (known & ((truth == c) | (found == c))).sum() for c in range(5)
    ]
    table = confusion(torch.from_numpy(truth), torch.from_numpy(found), 5)
    assert mean_iou(table) == pytest.approx(np.mean(each))
    alone = confusion(torch.tensor([[[0, 0]]]), torch.tensor([[[0, 0]]]), 5)
    assert mean_iou(alone) == 1  # classes that nobody sees or says do not count


def test_davis_reads_blocks_of_pictures(encoder, tmp_path):
    export(tmp_path, train=2, val=8, size=32)
    seen = davis(encoder, tmp_path / "davis")
    assert list(seen) == ["block.0", "block.1"]
    assert seen["block.0"] == davis(blind(encoder, 1), tmp_path / "davis")["block.0"]
    assert seen["block.1"] != davis(encoder, tmp_path / "davis")["block.1"]
    assert all(0 < score < 100 for score in seen.values())


def test_within_the_tolerance_and_beyond_it():
    anchor = Anchor("x", "x", "davis", "J&F", 50.0, 45.0, 3, 4, 1.0, "nowhere")
    assert Compared(anchor, 50.9, 44.1, 2).agrees
    assert not Compared(anchor, 51.1, 45.0, 3).agrees
    assert not Compared(anchor, 50.0, 43.9, 3).agrees
    assert Compared(anchor, 50.9, 44.1, 2).row()["measured_best"] == 50.9


def test_what_cannot_be_compared_is_one_clear_error(encoder, tmp_path):
    with pytest.raises(UnknownNameError, match="davis"):
        compare(encoder, "daviss", tmp_path)
    with pytest.raises(DataError, match="has no folder"):
        compare(encoder, "davis", tmp_path)
    from tsprobe.encoders import load_encoder

    with pytest.raises(SpecError, match="no encoder of images"):
        compare(load_encoder("fracast"), "davis", tmp_path)
    with pytest.raises(SpecError, match="no blocks"):
        compare(load_encoder("vision/pixels"), "davis", tmp_path)


def test_the_command_lists_measures_and_says_what_differs(encoder, tmp_path, monkeypatch):
    run = CliRunner().invoke
    listed = run(app, ["anchors"])
    assert listed.exit_code == 0
    assert "58.7" in listed.output
    monkeypatch.setattr("tsprobe.encoders.load_encoder", lambda name: encoder)
    export(tmp_path, train=2, val=8, size=32)
    given = f"--data=davis={tmp_path / 'davis'}"
    unknown = run(app, ["anchors", "planted", given])
    assert unknown.exit_code == 0
    assert "no published result" in unknown.output
    encoder.name = "timm:vit_pe_spatial_base_patch16_512"
    table = tmp_path / "anchors.csv"
    off = run(app, ["anchors", "planted", given, "--out", str(table)])
    assert off.exit_code == 1
    assert "58.9" in table.read_text()
