"""Vision transformers of timm: PE against a second writing of its architecture; where models are found; their sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import vision_reference as reference
from official import batch_of, read
from timm.models import save_for_hf
from vision_reference import Shape

from tsprobe.encoders import load_encoder
from tsprobe.errors import DataError, EncoderError, UnknownNameError
from tsprobe.testing import check_encoder
from vision.encoders.declared import objective
from vision.encoders.sources import _timm_name
from vision.images import to_panel

# The rotary table of timm is made in float32: angles of up to 10 rows, whose sines are off by up to 1e-6
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LANG_OR_SPATIAL = {"norm": False, "pool": False, "project": None}
PE = {
    "core": ("vit_pe_core_tiny_patch16_384", Shape()),
    "core of G": ("vit_pe_core_gigantic_patch14_448", Shape(patch=14, cls=False, hidden=8960 * 32 // 1536)),
    "lang": ("vit_pe_lang_large_patch14_448", Shape(patch=14, scale=True, **LANG_OR_SPATIAL)),
    "lang of G": ("vit_pe_lang_gigantic_patch14_448", Shape(patch=14, cls=False, scale=True, **LANG_OR_SPATIAL)),
    "spatial": ("vit_pe_spatial_small_patch16_512", Shape(**LANG_OR_SPATIAL)),
    "spatial of G": ("vit_pe_spatial_gigantic_patch14_448", Shape(cls=False, scale=True, **LANG_OR_SPATIAL)),
}
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
OTHERS = {
    "vit_base_patch16_clip_224.openai": ("contrastive", 1, "projection"),
    "vit_base_patch16_siglip_224.v2_webli": ("contrastive", 0, "pool"),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("self-distillation", 5, "norm"),
    "vit_small_patch16_dinov3.lvd1689m": ("self-distillation", 5, "norm"),
    "aimv2_large_patch14_224.apple_pt": ("autoregressive", 0, "norm"),
    "vit_base_patch16_224.augreg_in21k": ("supervised", 1, "norm"),
    "vit_base_patch16_siglip_gap_224.webli": ("contrastive", 0, "norm"),
}


def images(*sides, seed=0):
    """Random pictures as series, of these sides."""
    random = np.random.default_rng(seed)
    return [to_panel(random.integers(0, 256, (1, 3, n, n)).astype(np.uint8))[0] for n in sides]


def described(folder, architecture, args, **more):
    """A folder in timm's layout that holds a config and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "license": "apache-2.0"}
    config = {"architecture": architecture, "model_args": args, "pretrained_cfg": cfg, **more}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pe(kind, folder):
    """A small PE in Meta's format: the name to load, the weights and the shape."""
    architecture, shape = PE[kind]
    args = {
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": shape.hidden / shape.width,
        "img_size": shape.size,
        "patch_size": shape.patch,
        "ref_feat_shape": [shape.grid, shape.grid],
    }
    described(folder, architecture, args, num_classes=shape.project or 0)
    state = reference.random_weights(shape)
    torch.save({f"visual.{name}": tensor for name, tensor in state.items()}, folder / "weights.pt")
    return f"timm:{folder}@{folder / 'weights.pt'}", state, shape


@pytest.fixture(params=PE)
def tower(request, tmp_path):
    return pe(request.param, tmp_path)


@pytest.mark.parametrize("grid", [4, 7, 2])
def test_every_layer_of_pe_is_that_of_the_published_architecture(tower, grid):
    name, state, shape = tower
    size = grid * shape.patch
    encoder = load_encoder(name, size=size)
    encoder.module.double()
    inputs, found = read(encoder, batch_of(images(size, size)))
    expected = reference.layers(state, inputs.kwargs["x"], shape)
    if not shape.norm:
        assert encoder.final == f"block.{shape.depth - 1}"
    for layer, x in expected.items():
        x = x[:, None] if layer == "projection" and x.ndim == 2 else x
        torch.testing.assert_close(found[layer], x, **CLOSE, msg=lambda m, layer=layer: f"{layer}: {m}")
    assert list(found) == list(expected)
    prefix = int(shape.cls)
    tokens = inputs.tokens_of("block.0")
    assert tokens.mask.tolist() == [[False] * prefix + [True] * grid**2] * 2
    assert tokens.cls == (0 if shape.cls else None)
    assert tokens.grid is not None
    assert (tokens.grid.rows, tokens.grid.columns, tokens.grid.side) == (grid, grid, size)


def test_pictures_are_shown_as_by_pe(tmp_path):
    from PIL import Image

    name, _, shape = pe("core", tmp_path)
    encoder = load_encoder(name)
    random = np.random.default_rng(3)
    for n in (150, shape.size, 37):
        picture = random.integers(0, 256, (n, n, 3)).astype(np.uint8)
        series = to_panel(picture.transpose(2, 0, 1)[None])
        shown = Image.fromarray(picture).resize((shape.size, shape.size), Image.Resampling.BILINEAR)
        expected = (np.asarray(shown, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
        pixels = encoder.prepare(batch_of([series[0]])).kwargs["x"][0].numpy()
        np.testing.assert_allclose(pixels, expected, atol=1.5 / 127.5)  # Pillow rounds to whole levels, twice


def test_heads_have_one_token_and_come_last(tmp_path):
    encoder = load_encoder(pe("core", tmp_path)[0])
    assert encoder.final == "projection"
    assert [layer.depth for layer in encoder.layers][-3:] == [1.0, None, None]
    inputs, found = read(encoder, batch_of(images(64, 64)))
    for head, width in (("pool", 32), ("projection", 24)):
        assert found[head].shape == (2, 1, width)
        tokens = inputs.tokens_of(head)
        assert (tokens.mask.all(), tokens.cls, tokens.grid) == (True, 0, None)
        assert (tokens.start.tolist(), tokens.stop.tolist()) == ([[0]] * 2, [[4096]] * 2)


def test_rules_of_positions_differ_away_from_the_native_size(tmp_path):
    name, _, shape = pe("core", tmp_path)
    given = batch_of(images(96))
    ours = load_encoder(f"{name}?size=96")
    theirs = load_encoder(f"{name}?size=96&positions=timm")
    _, meta = read(ours, given)
    inputs, stretched = read(theirs, given)
    assert float((meta["norm"] - stretched["norm"]).abs().max()) > 0.1
    assert ours.fingerprint() != theirs.fingerprint()
    assert theirs.name == f"{name}?size=96&positions=timm"
    model = load_encoder(name).module
    model.set_input_size(img_size=96)
    with torch.no_grad():
        torch.testing.assert_close(stretched["norm"], model.forward_features(inputs.kwargs["x"]))
    native = (load_encoder(name, positions=rule) for rule in (None, "meta", "timm"))
    first, *rest = (read(encoder, batch_of(images(shape.size)))[1]["norm"] for encoder in native)
    for other in rest:
        torch.testing.assert_close(other, first)


def test_a_folder_is_read_as_timm_built_it_unless_a_rule_is_given(tmp_path):
    """At its own size, too, timm stretches a rotary grid that is not that of the pretraining."""
    name, state, shape = pe("core", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]["ref_feat_shape"]  # then 24 x 24, of the architecture
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain, meta = load_encoder(name), load_encoder(name, positions="meta")
    inputs, found = read(plain, batch_of(images(shape.size)))
    with torch.no_grad():
        torch.testing.assert_close(found["norm"], plain.module.forward_features(inputs.kwargs["x"]))
    expected = reference.layers(state, inputs.kwargs["x"], shape)["norm"].float()
    assert float((found["norm"] - expected).abs().max()) > 0.1
    torch.testing.assert_close(read(meta, batch_of(images(shape.size)))[1]["norm"], expected, rtol=1e-4, atol=1e-4)
    assert meta.fingerprint() != plain.fingerprint()  # of the same weights


@pytest.mark.parametrize("model", OTHERS)
def test_other_models_are_read_as_timm_reads_them(model, tmp_path):
    aim, prefix, final = OTHERS[model]
    patch = 14 if "patch14" in model else 16
    torch.manual_seed(1)
    args = {**SMALL, "img_size": 3 * patch}
    made = timm.create_model(model, **args).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_for_hf(made, tmp_path, model_args=args, safe_serialization=True)
    encoder = load_encoder(f"timm:{tmp_path}")
    assert encoder.facts.objective == aim
    assert encoder.final == final
    inputs, found = read(encoder, batch_of(images(50, 50)))
    with torch.no_grad():
        x = inputs.kwargs["x"]
        states = made.forward_intermediates(x, output_fmt="NLC", norm=False, intermediates_only=True)
        torch.testing.assert_close(found["norm"], made.forward_features(x))
        if final != "norm":
            torch.testing.assert_close(found[final][:, 0], made(x))
    for i, state in enumerate(states):
        torch.testing.assert_close(found[f"block.{i}"][:, prefix:], state)
    tokens = inputs.tokens_of("block.0")
    assert tokens.mask.tolist() == [[False] * prefix + [True] * 9] * 2
    assert tokens.cls == (0 if prefix else None)
    check_encoder(encoder, length=(3 * patch) ** 2)


def test_promises_are_kept_by_pe(tower):
    name, _, shape = tower
    check_encoder(load_encoder(name), length=shape.size**2, local=True)
    check_encoder(load_encoder(name, size=3 * shape.patch), length=50**2)


def test_untrained_twin_has_the_same_architecture_at_the_same_size(tmp_path):
    name, _, _ = pe("core", tmp_path)
    encoder = load_encoder(f"{name}?size=96")
    twin = encoder.untrained(0)
    assert twin.fingerprint() == load_encoder(f"{name}?size=96@untrained").fingerprint()
    assert torch.equal(twin.module.rope.pos_embed, encoder.module.rope.pos_embed)
    assert not torch.equal(twin.module.pos_embed, encoder.module.pos_embed)
    assert twin.facts.objective == "untrained"


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "weights", "module."])
def test_files_of_meta_are_read_by_their_names(wrap, tmp_path):
    shape = Shape(width=192, depth=12, heads=3, hidden=768, grid=24, project=512)
    state = reference.random_weights(shape)
    full = {f"visual.{n}": t for n, t in state.items()} | {"logit_scale": torch.ones(())}
    full |= {"transformer.resblocks.0.ln_1.weight": torch.ones(512), "token_embedding.weight": torch.ones(8, 512)}
    folder = tmp_path / "PE-Core-T16-384"
    folder.mkdir()
    stored = {f"module.{n}": t for n, t in full.items()} if wrap == "module." else full
    torch.save({wrap: full} if wrap in ("state_dict", "weights") else stored, folder / "PE-Core-T16-384.pt")
    for place in (folder / "PE-Core-T16-384.pt", folder):
        encoder = load_encoder(f"timm:{place}", size=48)
        assert encoder.facts.objective == "contrastive"
        assert encoder.facts.weights_licence == "apache-2.0"
        inputs, found = read(encoder, batch_of(images(48)))
        expected = reference.layers(state, inputs.kwargs["x"], shape)["projection"]
        gap = float((found["projection"] - expected.float()).abs().max() / expected.abs().max())
        assert gap < 1e-4  # twelve blocks in float32


def test_names_of_meta_are_models_of_timm(tmp_path):
    names = [f"PE-Core-{n}" for n in ("T16-384", "S16-384", "B16-224", "L14-336", "G14-448")]
    names += [f"PE-Lang-{n}" for n in ("L14-448", "G14-448", "L14-448-Tiling", "G14-448-Tiling")]
    names += [f"PE-Spatial-{n}" for n in ("T16-512", "S16-512", "B16-512", "L14-448", "G14-448")]
    for name in names:
        known = timm.get_pretrained_cfg(_timm_name(name, tmp_path), allow_unregistered=False)
        assert f"-{known.input_size[-1]}" in name
        assert ("Tiling" in name) == (known.tag == "fb_tiling")
    with pytest.raises(EncoderError, match=r"write timm:MODEL@.*mine\.pt"):
        _timm_name("mine", tmp_path / "mine.pt")


def test_objectives_of_families():
    assert objective("vit_pe_lang_large_patch14_448.fb") == "language alignment"
    assert objective("vit_pe_spatial_tiny_patch16_512.fb") == "spatial alignment"
    assert objective("vit_base_patch16_clip_224.laion2b_ft_in1k") == "supervised"
    assert objective("vit_base_patch16_224.mae") == "reconstruction"
    assert objective("vit_base_patch16_224.dino") == "self-distillation"
    assert objective("vit_of_mine") == "unknown"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:./nowhere", "there is no folder"),
        ("timm:FOLDER@FOLDER/nothing.pt", "there is no file"),
        ("timm:FOLDER?colour=red", "no setting 'colour'; there are size, positions"),
        ("timm:FOLDER?size=big", "size='big' is no number of pixels"),
        ("timm:FOLDER?size=65@untrained", "whole patches of 16 pixels"),
        ("timm:FOLDER?positions=mine@untrained", "there are meta and timm"),
        ("timm:vit_base_patch16_clip_224?positions=meta@untrained", "goes by timm's"),
        ("timm:resnet18@untrained", "no plain vision transformer"),
    ],
)
def test_what_cannot_be_is_one_clear_error(source, message, tmp_path):
    pe("core", tmp_path)
    with pytest.raises(EncoderError, match=message):
        load_encoder(source.replace("FOLDER", str(tmp_path)))


def test_an_unknown_model_suggests_near_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'vit_pe_core_base_patch16_224'"):
        load_encoder("timm:vit_pe_core_bas_patch16_224")


@pytest.mark.parametrize(
    "other", ["spatial", "wider", "deeper", "shallower", "ResNet", "truncated", "code", "empty", "no matrix"]
)
def test_checkpoints_of_another_class_are_one_clear_error(other, tmp_path):
    name, state, shape = pe("core", tmp_path)
    file = tmp_path / "weights.pt"
    changed = {
        "spatial": lambda: reference.random_weights(replace(shape, **LANG_OR_SPATIAL)),
        "wider": lambda: reference.random_weights(replace(shape, width=48)),
        "deeper": lambda: reference.random_weights(replace(shape, depth=4)),
        "shallower": lambda: reference.random_weights(replace(shape, depth=2)),
        "ResNet": lambda: timm.create_model("test_resnet").state_dict(),
        "code": lambda: {"conv1.weight": print},
        "empty": dict,
        "no matrix": lambda: {**state, "proj": torch.zeros(3)},  # timm's filter turns it over
    }
    if other == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        torch.save(changed[other](), file)
    with pytest.raises(EncoderError) as caught:
        load_encoder(name)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_folder_of_timm_with_positions_for_another_size_is_refused(tmp_path):
    """Not resampled in silence, as timm's own loader would."""
    args = {**SMALL, "img_size": 64}
    save_for_hf(
        timm.create_model("vit_base_patch16_clip_224", num_classes=512, **args), tmp_path, safe_serialization=True
    )
    described(tmp_path, "vit_base_patch16_clip_224", {**args, "img_size": 32}, num_classes=512)
    with pytest.raises(EncoderError, match="pos_embed of shape"):
        load_encoder(f"timm:{tmp_path}")


def test_series_that_are_no_pictures_are_refused(tmp_path):
    encoder = load_encoder(pe("core", tmp_path)[0])
    with pytest.raises(DataError, match="a series of 60 steps is no square image"):
        encoder.prepare(batch_of([np.zeros((3, 60), np.float32)]))
    with pytest.raises(EncoderError, match="RGB images, series of 3 channels; these have 1"):
        encoder.prepare(batch_of([np.zeros((1, 64), np.float32)]))
    with pytest.raises(EncoderError, match="one size in a batch"):
        encoder.prepare(batch_of(images(4, 6)))
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        encoder.prepare(batch_of([np.full((3, 64), np.nan, np.float32)]))


def test_resizing_is_antialiased(tmp_path):
    """A fine chequerboard becomes grey, and not the pattern of whichever pixels were hit."""
    board = np.indices((256, 256)).sum(0) % 2
    given = to_panel(np.broadcast_to(board, (1, 3, 256, 256)).astype(np.float32))
    pixels = load_encoder(pe("core", tmp_path)[0]).prepare(batch_of([given[0]])).kwargs["x"]
    assert float(pixels.abs().max()) < 0.05
    plain = F.interpolate(torch.from_numpy(board)[None, None].float(), (100, 100), mode="bilinear")
    assert float((plain - 0.5).abs().max()) > 0.2
