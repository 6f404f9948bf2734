"""Mantis, Mantis+, MantisV2 and UTICA against the package's own output, layer by layer."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official import CLOSE, batch_of, channels_of, read, save, series

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder
from tsprobe.types import Batch

pytest.importorskip("mantis", reason="needs the package mantis-tsfm")

PATCHES, WIDTH, DEPTH = 8, 16, 3
SMALL = {
    "hidden_dim": WIDTH,
    "num_patches": PATCHES,
    "hidden_dim_scalar_enc": 4,
    "transf_depth": DEPTH,
    "transf_num_heads": 2,
    "transf_mlp_dim": 32,
    "transf_dim_head": 8,
    "device": "cpu",
}
LENGTH = {"v1": 64, "v2": 512}
CASES = {
    "equal": series(40, 40),
    "ragged": series(61, 24, 17),
    "shorter than a patch": series(3, 2),
    "as trained": series(512, channels=1),
    "longer": series(700, 1500),
}


def official(version, **changes):
    from mantis.architecture import MantisV1, MantisV2

    if version == "v1":
        return MantisV1(**{**SMALL, "seq_len": LENGTH["v1"], **changes})
    return MantisV2(**{**SMALL, "kernel_size": 9, **changes})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    torch.manual_seed(0)
    folders = {version: tmp_path_factory.mktemp(version) for version in LENGTH}
    models = {version: save(official(version), folder) for version, folder in folders.items()}
    loaded = {version: load_encoder(f"mantis:{folder}") for version, folder in folders.items()}
    return SimpleNamespace(folders=folders, models=models, encoders=loaded)


def resized(many, version):
    """As in the package's README, series by series."""
    rows = [F.interpolate(c[None, None], size=LENGTH[version], mode="linear", align_corners=False) for c in many]
    return torch.cat(rows)  # [R, 1, W]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", LENGTH)
def test_layers_are_what_the_package_returns(zoo, version, case):
    """`return_transf_layer=i` with the class token and the mean of the others, which fixes where each of them is."""
    model, encoder = zoo.models[version], zoo.encoders[version]
    inputs, layers = read(encoder, batch_of(CASES[case]))
    tokens = inputs.tokens_of(encoder.final)
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH))]
    assert encoder.final == f"block.{DEPTH - 1}"
    assert tokens.cls == {"v1": 0, "v2": PATCHES}[version]
    assert int(tokens.mask.sum()) == PATCHES * len(tokens.mask)
    model.output_token = "combined"
    rows = resized(channels_of(CASES[case]), version)
    for i in range(DEPTH):
        model.return_transf_layer = i
        with torch.no_grad():
            expected = model(rows)
        x = layers[f"block.{i}"]
        mean = (x * tokens.mask[..., None]).sum(1) / PATCHES
        torch.testing.assert_close(torch.cat([x[:, tokens.cls], mean], 1), expected, **CLOSE)


@pytest.mark.parametrize("version", LENGTH)
def test_tokens_are_those_of_a_loop_over_the_blocks(zoo, version):
    model, encoder, many = zoo.models[version], zoo.encoders[version], CASES["ragged"]
    _, layers = read(encoder, batch_of(many))
    unit = model.transf_unit
    with torch.no_grad():
        x = model.tokgen_unit(resized(channels_of(many), version))
        cls = unit.cls_token.expand(len(x), 1, -1)
        if version == "v1":
            x = unit.pos_encoder(torch.cat([cls, x], 1).transpose(0, 1)).transpose(0, 1)
        else:
            x = torch.cat([x, cls], 1)
        torch.testing.assert_close(layers["embedding"], x, **CLOSE)
        for i, block in enumerate(unit.transformer.layers):
            if version == "v1":
                x = block[0](x) + x
                x = block[1](x) + x
            else:
                x = block(x[:, None])[:, 0]
            torch.testing.assert_close(layers[f"block.{i}"], x, **CLOSE)


@pytest.mark.parametrize("version", LENGTH)
def test_final_is_what_the_trainer_transforms_to(zoo, version):
    from mantis.trainer import MantisTrainer

    model, encoder = zoo.models[version], zoo.encoders[version]
    model.output_token, model.return_transf_layer = "cls_token", -1
    (one,) = series(64, channels=3)
    x = resized(channels_of([one]), version).transpose(0, 1)  # [1, 3, W]
    expected = MantisTrainer(device="cpu", network=model).transform(x.numpy())
    inputs, layers = read(encoder, batch_of([one]))
    found = layers[encoder.final][:, inputs.tokens.cls].flatten()
    torch.testing.assert_close(found, torch.from_numpy(expected)[0], **CLOSE)


@pytest.mark.parametrize(
    ("steps", "spans"),
    [
        (64, [(8 * t, 8 * t + 8) for t in range(8)]),
        (12, [(0, 2), (1, 3), (3, 5), (4, 6), (6, 8), (7, 9), (9, 11), (10, 12)]),
        (3, [(0, 1), (0, 1), (0, 2), (1, 2), (1, 2), (1, 3), (2, 3), (2, 3)]),
        (1000, [(125 * t, 125 * t + 125) for t in range(8)]),
    ],
)
def test_token_map_is_in_steps_of_the_series(zoo, steps, spans):
    """Beside a longer series, and after the resizing."""
    inputs, _ = read(zoo.encoders["v1"], batch_of(series(steps, 1001, channels=1)))
    tokens = inputs.tokens
    real = tokens.mask[0]
    assert list(zip(tokens.start[0][real].tolist(), tokens.stop[0][real].tolist(), strict=True)) == spans


@pytest.mark.parametrize("version", LENGTH)
@pytest.mark.parametrize("steps", [5, 20, 64, 100, 400])
def test_tokens_read_the_steps_that_the_map_says(zoo, version, steps):
    """Patch means of what goes in, for a bump at each step: they move in the tokens that cover it, there most. Of more
    than two steps a point some are skipped, and then none moves."""
    encoder = zoo.encoders[version]
    values = torch.eye(steps)[:, None]  # one bump a series
    batch = Batch(values, torch.ones_like(values, dtype=torch.bool), torch.full((steps,), steps))
    inputs = encoder.prepare(batch)
    moved = inputs.kwargs["x"].reshape(steps, PATCHES, -1).mean(-1)
    moved = F.pad(moved, (1, 0) if version == "v1" else (0, 1))
    tokens, step = inputs.tokens, torch.arange(steps)[:, None]
    covering = tokens.mask & (tokens.start <= step) & (step < tokens.stop)
    read_at_all = moved.sum(1) > 0
    assert bool(read_at_all.all()) == (steps <= 2 * LENGTH[version])
    assert bool(covering.any(1).all())
    assert bool(covering[read_at_all, moved[read_at_all].argmax(1)].all())
    if steps <= LENGTH[version]:
        assert bool((moved[covering] > 0).all())


@pytest.mark.parametrize("version", LENGTH)
def test_mantis_keeps_the_promises(zoo, version):
    check_encoder(zoo.encoders[version], channels=2)
    check_encoder(zoo.encoders[version], length=3, untrained=False)
    check_encoder(zoo.encoders[version], length=LENGTH[version], untrained=False)


@pytest.mark.parametrize("version", LENGTH)
def test_padding_and_company_change_nothing(zoo, version):
    encoder, many = zoo.encoders[version], series(90, 33, 600)
    _, together = read(encoder, batch_of(many, width=700))
    for i, one in enumerate(many):
        _, alone = read(encoder, batch_of([one]))
        for layer, x in alone.items():
            torch.testing.assert_close(together[layer][2 * i : 2 * i + 2], x, **CLOSE)


def test_missing_values_are_refused_here_and_interpolated_by_the_facts(zoo):
    encoder = zoo.encoders["v1"]
    assert not encoder.facts.masks_missing
    assert encoder.facts.context is None
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        encoder.prepare(batch_of(series(40, missing=[5])))


def test_a_saved_head_on_an_inner_layer_does_not_cut_the_encoder(tmp_path):
    """A network saved as `return_transf_layer=1, output_token='combined'` has a wider projector and all its blocks."""
    model = save(official("v1", return_transf_layer=1, output_token="combined"), tmp_path)
    encoder = load_encoder(f"mantis:{tmp_path}")
    model.return_transf_layer, model.output_token = -1, "cls_token"
    (one,) = series(64, channels=1)
    _, layers = read(encoder, batch_of([one]))
    with torch.no_grad():
        expected = model(torch.from_numpy(one)[None])
    torch.testing.assert_close(layers[f"block.{DEPTH - 1}"][:, 0], expected, **CLOSE)


def test_first_release_names_are_read(tmp_path):
    """`Mantis8M` of the package keeps `vit_unit`, as the weights on the hub do."""
    from mantis.architecture import Mantis8M

    model = save(Mantis8M(**SMALL, seq_len=64), tmp_path)
    encoder = load_encoder(f"mantis:{tmp_path}")
    (one,) = series(64, channels=1)
    _, layers = read(encoder, batch_of([one]))
    with torch.no_grad():
        expected = model(torch.from_numpy(one)[None])
    torch.testing.assert_close(layers[encoder.final][:, 0], expected, **CLOSE)
    assert encoder.facts.objective == "contrastive"


def utica(folder, drop=(), add=()):
    """As published: a state dict with what its objective needs and without the projector, and no config."""
    from mantis.architecture import MantisV1

    model = MantisV1(device="cpu").eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("prj.")}
    extra = ["transf_unit.mask_token", "transf_unit.norm.weight", "transf_unit.norm.bias", *add]
    state |= {name: torch.zeros(256) for name in extra}
    torch.save({name: tensor for name, tensor in state.items() if name not in drop}, folder / "pytorch_model.bin")
    return model


def test_utica_is_read_without_its_projector(tmp_path):
    torch.manual_seed(1)
    model = utica(tmp_path)
    encoder = load_encoder(f"mantis:{tmp_path}")
    assert encoder.facts.objective == "self-distillation"
    (one,) = series(512, channels=1)
    _, layers = read(encoder, batch_of([one]))
    with torch.no_grad():
        expected = model(torch.from_numpy(one)[None])
    torch.testing.assert_close(layers["block.5"][:, 0], expected, **CLOSE)


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (["transf_unit.cls_token"], [], "missing transf_unit.cls_token"),
        ([], ["transf_unit.other"], "unexpected transf_unit.other"),
    ],
)
def test_utica_in_part_is_refused(tmp_path, drop, add, message):
    utica(tmp_path, drop, add)
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"mantis:{tmp_path}")


def test_a_pickle_with_more_than_tensors_is_not_run(tmp_path):
    torch.save({"state": SimpleNamespace()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="holds more than tensors"):
        load_encoder(f"mantis:{tmp_path}")


def test_wrong_checkpoints_are_refused(zoo, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(zoo.folders["v1"] / "model.safetensors")
    (tmp_path / "config.json").write_text((zoo.folders["v1"] / "config.json").read_text())
    first = "prj.0.bias"
    save_file({name: x for name, x in weights.items() if name != first}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=re.escape(f"missing {first}")):
        load_encoder(f"mantis:{tmp_path}")
    save_file({**weights, "decoder.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"unexpected decoder\.weight"):
        load_encoder(f"mantis:{tmp_path}")
    save_file({**weights, first: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"of shape \[3\] where \[16\] is expected"):
        load_encoder(f"mantis:{tmp_path}")


def test_level_can_be_read_and_the_untrained_twin_is_the_packages_own(zoo):
    """Unlike forecasters that standardise the window: the tokens hold mean and spread of their patches."""
    (one,) = series(64, channels=1)
    _, plain = read(zoo.encoders["v1"], batch_of([one]))
    _, moved = read(zoo.encoders["v1"], batch_of([3 * one + 7]))
    assert not np.allclose(plain["block.2"], moved["block.2"], rtol=1e-2)
    twin = load_encoder(f"mantis:{zoo.folders['v2']}@untrained")
    torch.manual_seed(0)
    expected = official("v2").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in twin.module.state_dict().items())
