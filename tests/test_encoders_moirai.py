"""Moirai 1.x against the module's own encoder, series by series, layer by layer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official import CLOSE, batch_of, channels_of, read, series

from tsprobe.encoders import load_encoder
from tsprobe.encoders.moirai import output
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

PATCH, LARGEST, WIDTH, DEPTH, TOKENS = 8, 16, 64, 3, 16
HEAD = {
    "_target_": "uni2ts.distribution.mixture.MixtureOutput",
    "components": [
        {"_target_": "uni2ts.distribution.student_t.StudentTOutput"},
        {"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput", "scale": 0.001},
        {"_target_": "uni2ts.distribution.negative_binomial.NegativeBinomialOutput"},
        {"_target_": "uni2ts.distribution.log_normal.LogNormalOutput"},
    ],
}
CONFIG = {
    "distr_output": HEAD,
    "d_model": WIDTH,
    "num_layers": DEPTH,
    "patch_sizes": [PATCH, LARGEST],
    "max_seq_len": TOKENS,
    "attn_dropout_p": 0.0,
    "dropout_p": 0.0,
    "scaling": True,
}
CASES = {
    "whole patches": series(40, 40),
    "a first patch in part": series(37),
    "ragged": series(61, 24, 17),
    "shorter than a patch": series(3, 2),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    head = output(HEAD)  # before sktime's package is imported here, which would say what the adapter silences
    from sktime.libs.uni2ts.moirai_module import MoiraiModule

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("moirai")
    model = MoiraiModule(**{**CONFIG, "distr_output": head}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))  # with the names of uni2ts, as published
    loaded = {patch: load_encoder(f"moirai-1:{folder}", patch_size=patch) for patch in (PATCH, LARGEST)}
    return SimpleNamespace(folder=folder, model=model, encoders=loaded)


def official(channel, patch):
    """As `MoiraiForecast._convert` packs one variate: past tokens, zeros and not observed before them, and one token to
    predict."""
    lead = -len(channel) % patch
    past = F.pad(channel, (lead, 0)).reshape(-1, patch)
    seen = F.pad(torch.ones_like(channel, dtype=torch.bool), (lead, 0)).reshape(-1, patch)
    wide = (0, LARGEST - patch, 0, 1)
    ids = torch.arange(len(past) + 1)
    return {
        "target": F.pad(past, wide)[None],
        "observed_mask": F.pad(seen, wide)[None],
        "sample_id": torch.ones_like(ids)[None],
        "time_id": ids[None],
        "variate_id": torch.zeros_like(ids)[None],
        "prediction_mask": (ids == len(past))[None],
        "patch_size": torch.full_like(ids, patch)[None],
    }


def loop(model, target, observed_mask, sample_id, time_id, variate_id, prediction_mask, patch_size):
    loc, scale = model.scaler(target, observed_mask * ~prediction_mask[..., None], sample_id, variate_id)
    x = model.in_proj((target - loc) / scale, patch_size)
    x = torch.where(prediction_mask[..., None], model.mask_encoding.weight[0], x)
    states = [x]
    for layer in model.encoder.layers:
        x = layer(x, sample_id[..., None] == sample_id[..., None, :], var_id=variate_id, time_id=time_id)
        states.append(x)
    return [*states, model.encoder.norm(x)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("patch", [PATCH, LARGEST])
def test_layers_are_those_of_the_module(zoo, case, patch):
    many, encoder = CASES[case], zoo.encoders[patch]
    inputs, layers = read(encoder, batch_of(many))
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH)), "norm"]
    assert encoder.final == "norm"
    for row, channel in enumerate(channels_of(many)):
        with torch.no_grad():
            states = loop(zoo.model, **official(channel, patch))
        mask = inputs.tokens.mask[row]
        assert int(mask.sum()) == states[0].shape[1] - 1
        assert not bool(mask[-1])
        for name, expected in zip(layers, states, strict=True):
            torch.testing.assert_close(layers[name][row][mask], expected[0, :-1], **CLOSE)


def test_norm_is_what_the_head_reads(zoo):
    (one,) = series(40, channels=1)
    _, layers = read(zoo.encoders[PATCH], batch_of([one]))
    read_by_head = []
    handle = zoo.model.param_proj.register_forward_pre_hook(lambda _, args: read_by_head.append(args[0]))
    with torch.no_grad():
        zoo.model(**official(torch.from_numpy(one[0]), PATCH))
    handle.remove()
    torch.testing.assert_close(layers["norm"], read_by_head[0], **CLOSE)


def test_token_map_counts_patches_from_the_end(zoo):
    inputs, _ = read(zoo.encoders[PATCH], batch_of(series(20, 16, channels=1)))
    tokens = inputs.tokens
    assert tokens.start[0][tokens.mask[0]].tolist() == [0, 4, 12]
    assert tokens.stop[1][tokens.mask[1]].tolist() == [8, 16]


def test_level_and_scale_are_standardised_away_and_channels_do_not_mix(zoo):
    first, second = series(40, 40)
    _, plain = read(zoo.encoders[PATCH], batch_of([first]))
    _, moved = read(zoo.encoders[PATCH], batch_of([np.stack([3 * first[0] + 7, second[1]])]))
    torch.testing.assert_close(plain["norm"][0], moved["norm"][0], rtol=1e-3, atol=1e-3)  # 1e-5 beside the variance


@pytest.mark.parametrize("patch", [PATCH, LARGEST])
def test_moirai_keeps_the_promises(zoo, patch):
    check_encoder(zoo.encoders[patch], channels=2)
    check_encoder(zoo.encoders[patch], length=PATCH - 3, untrained=False)


def test_what_it_cannot_take_is_refused(zoo, tmp_path):
    encoder = zoo.encoders[PATCH]
    with pytest.raises(EncoderError, match="reads at most 120 steps and this window has 121"):
        encoder.prepare(batch_of(series(121)))
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        encoder.prepare(batch_of(series(40, missing=[5])))
    with pytest.raises(EncoderError, match=r"no patches of 32 steps, only \[8, 16\]"):
        load_encoder(f"moirai-1:{zoo.folder}")


def test_wrong_checkpoints_are_refused(zoo, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(zoo.folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: x for name, x in weights.items() if name != "encoder.norm.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"missing encoder\.norm\.weight"):
        load_encoder(f"moirai-1:{tmp_path}", patch_size=PATCH)
    save_file({**weights, "out_proj.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"unexpected out_proj\.weight"):
        load_encoder(f"moirai-1:{tmp_path}", patch_size=PATCH)


def test_a_config_cannot_call_what_it_likes(zoo, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "distr_output": {"_target_": "os.system", "a": 1}}))
    with pytest.raises(EncoderError, match="unknown distr_output 'system'"):
        load_encoder(f"moirai-1:{tmp_path}", patch_size=PATCH)


def test_untrained_twin_is_the_modules_own_initialisation(zoo):
    from sktime.libs.uni2ts.moirai_module import MoiraiModule

    twin = zoo.encoders[PATCH].untrained(seed=3)
    torch.manual_seed(3)
    expected = MoiraiModule(**{**CONFIG, "distr_output": output(HEAD)}).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in twin.module.state_dict().items())
