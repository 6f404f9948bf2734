"""Toto 1.0 against the package's own backbone, layer by layer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from official import CLOSE, batch_of, read, series

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

pytest.importorskip("toto.model", reason="needs the package toto-ts", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::ImportWarning")  # of the package: xformers is not installed

PATCH, WIDTH, DEPTH = 8, 16, 4
CONFIG = {
    "patch_size": PATCH,
    "stride": PATCH,
    "embed_dim": WIDTH,
    "num_layers": DEPTH,
    "num_heads": 2,
    "mlp_hidden_dim": 32,
    "dropout": 0.1,
    "spacewise_every_n_layers": 2,
    "spacewise_first": False,
    "scaler_cls": "<class 'model.scaler.CausalPatchStdMeanScaler'>",
    "output_distribution_classes": ["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
    "output_distribution_kwargs": {"k_components": 3},
    "stabilize_with_global": True,
    "scale_factor_exponent": 10.0,
}
CASES = {
    "whole patches": series(40, 40),
    "a first patch in part": series(37),
    "ragged": series(61, 24, 17),
    "shorter than a patch": series(3, 2),
}


def save(model, folder, drop=(), add=None):
    """As published: safetensors and a config (the package has no saving of its own)."""
    from safetensors.torch import save_file

    state = {name: x.clone() for name, x in model.state_dict().items() if name not in drop} | (add or {})
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    from toto.model.toto import Toto

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("toto")
    model = Toto(**CONFIG, use_memory_efficient_attention=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save(model, folder)
    return SimpleNamespace(folder=folder, model=model, encoder=load_encoder(f"toto:{folder}"))


def padded(one):
    """As the forecaster pads: on the left, to whole patches, masked."""
    from toto.data.util.dataset import pad_array

    values = pad_array(torch.from_numpy(one)[None], PATCH)
    return values, pad_array(torch.ones(1, *one.shape, dtype=torch.bool), PATCH)


@pytest.mark.parametrize("case", CASES)
def test_layers_are_those_of_the_backbone(zoo, case):
    """Series by series: the scaler, the embedding, a loop over the blocks, and what `backbone()` gives at the end."""
    many, model = CASES[case], zoo.model.model
    inputs, layers = read(zoo.encoder, batch_of(many))
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH)), "output"]
    assert zoo.encoder.final == "output"
    for i, one in enumerate(many):
        values, mask = padded(one)
        ids = torch.zeros_like(values, dtype=torch.int)
        with torch.no_grad():
            scaled, _, _ = model.scaler(values, weights=torch.ones_like(values), padding_mask=mask)
            x, reduced = model.patch_embed(scaled, ids)
            states = {"embedding": x}
            space = model.transformer._get_mask(2, x.dtype, reduced)
            for n, block in enumerate(model.transformer.layers):
                x = block(n, x, space if block.attention_axis.name == "SPACE" else None, None)
                states[f"block.{n}"] = x
            states["output"] = model.backbone(values, mask, ids)[0]
        for layer, expected in states.items():
            tokens = inputs.tokens_of(layer)
            for channel in range(2):
                row = 2 * i + channel
                torch.testing.assert_close(layers[layer][row][tokens.mask[row]], expected[0, channel], **CLOSE)


def test_token_map_counts_patches_from_the_end(zoo):
    inputs, _ = read(zoo.encoder, batch_of(series(37, 16)))
    blocks, output = inputs.tokens_of("block.0"), inputs.tokens_of("output")
    assert blocks.start[0][blocks.mask[0]].tolist() == [0, 5, 13, 21, 29]
    assert blocks.stop[0][blocks.mask[0]].tolist() == [5, 13, 21, 29, 37]
    assert blocks.start[2][blocks.mask[2]].tolist() == [0, 8]
    assert output.start[2][output.mask[2]].tolist() == [0] * PATCH + [8] * PATCH  # of the patch, not of the step
    assert inputs.tokens_of("embedding").cls is None


def test_scaling_is_causal_and_patch_by_patch(zoo):
    """The embedding of a patch changes with an earlier one, through the scaler, and never with a later one."""
    (one,) = series(40, channels=1)
    late, early = one.copy(), one.copy()
    late[0, 30] += 50
    early[0, 10] += 50
    _, plain = read(zoo.encoder, batch_of([one]))
    _, after_late = read(zoo.encoder, batch_of([late]))
    _, after_early = read(zoo.encoder, batch_of([early]))
    for layer in ("embedding", f"block.{DEPTH - 1}"):
        torch.testing.assert_close(after_late[layer][:, :3], plain[layer][:, :3], **CLOSE)
        assert not torch.allclose(after_late[layer][:, 3], plain[layer][:, 3], rtol=1e-2)
    assert not torch.allclose(after_early["embedding"][:, 4], plain["embedding"][:, 4], rtol=1e-2)


def test_channels_of_a_series_see_each_other(zoo):
    first, second = series(40, 40)
    mixed = first.copy()
    mixed[1] = second[1]
    _, plain = read(zoo.encoder, batch_of([first]))
    _, changed = read(zoo.encoder, batch_of([mixed]))
    torch.testing.assert_close(changed["block.0"][0], plain["block.0"][0], **CLOSE)  # the first is over time
    assert not torch.allclose(changed["block.1"][0], plain["block.1"][0], rtol=1e-2)
    assert zoo.encoder.facts.joint_channels


def test_toto_keeps_the_promises(zoo):
    check_encoder(zoo.encoder, channels=2, causal=True)
    check_encoder(zoo.encoder, length=PATCH - 3, untrained=False)
    check_encoder(zoo.encoder, length=10 * PATCH, channels=3, causal=True, untrained=False)


def test_longer_windows_and_missing_values_are_refused(zoo):
    with pytest.raises(EncoderError, match="reads at most 4096 steps and this window has 4097"):
        zoo.encoder.prepare(batch_of(series(4097)))
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        zoo.encoder.prepare(batch_of(series(40, missing=[5])))


def test_untrained_twin_is_the_packages_own_initialisation(zoo):
    from toto.model.toto import Toto

    twin = load_encoder(f"toto:{zoo.folder}@untrained")
    torch.manual_seed(0)
    expected = Toto(**CONFIG, use_memory_efficient_attention=False).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in twin.module.state_dict().items())


def test_wrong_checkpoints_are_refused(zoo, tmp_path):
    save(zoo.model, tmp_path, drop=["model.patch_embed.projection.bias"])
    with pytest.raises(EncoderError, match=r"missing model\.patch_embed\.projection\.bias"):
        load_encoder(f"toto:{tmp_path}")
    save(zoo.model, tmp_path, add={"model.target_variate_label": torch.zeros(WIDTH)})
    with pytest.raises(EncoderError, match=r"unexpected model\.target_variate_label"):
        load_encoder(f"toto:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_heads": 3}))
    with pytest.raises(EncoderError, match=r"config\.json does not describe such a model"):
        load_encoder(f"toto:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "stride": PATCH // 2}))
    save(zoo.model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "stride": PATCH // 2}))
    with pytest.raises(EncoderError, match="only patches side by side"):
        load_encoder(f"toto:{tmp_path}")
