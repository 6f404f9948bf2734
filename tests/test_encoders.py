"""Adapters against the packages themselves, layer by layer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from official import (
    CLOSE,
    CONTEXT,
    DEPTH,
    FAMILIES,
    PATCH,
    WIDTH,
    batch_of,
    channels_of,
    patchtst,
    read,
    save,
    series,
)

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

CASES = {
    "equal": series(40, 40),
    "ragged": series(61, 24, 17),
    "shorter than a patch": series(3, 2),
    "missing inside": series(40, 35, missing=[5, *range(15, 26)]),
    "full context": series(CONTEXT, channels=1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["chronos-t5", "chronos-bolt", "chronos-2"])
def test_final_layer_is_what_the_pipeline_embeds(zoo, encoders, family, case):
    """Real tokens of `final`, in order, are those of `.embed()`, padding and special tokens aside."""
    from chronos.chronos import ChronosConfig, ChronosModel, ChronosPipeline
    from chronos.chronos2 import Chronos2Pipeline
    from chronos.chronos_bolt import ChronosBoltPipeline

    many, model = CASES[case], zoo.models[family]
    special = {"chronos-t5": 1, "chronos-bolt": 1, "chronos-2": 2}[family]
    patch = 1 if family == "chronos-t5" else PATCH
    if family == "chronos-t5":
        config = ChronosConfig(**model.config.chronos_config)
        embedded = list(
            ChronosPipeline(config.create_tokenizer(), ChronosModel(config, model)).embed(channels_of(many))[0]
        )
    elif family == "chronos-bolt":
        with torch.no_grad():
            embedded = list(ChronosBoltPipeline(model).embed(channels_of(many))[0])
    else:
        with torch.no_grad():
            embedded = [row for s in Chronos2Pipeline(model).embed([torch.from_numpy(s) for s in many])[0] for row in s]
    encoder = encoders[family]
    assert encoder.final == "norm"
    inputs, layers = read(encoder, batch_of(many))
    tokens = inputs.tokens_of("norm")
    assert inputs.rows == len(many[0])
    for row, (channel, expected) in enumerate(zip(channels_of(many), embedded, strict=True)):
        pieces = list(reversed(torch.arange(len(channel)).flip(0).split(patch)))  # patches end with the series
        real = [piece.flip(0) for piece in pieces]
        seen = torch.tensor([bool(channel[steps].isfinite().any()) for steps in real])
        assert tokens.start[row][tokens.mask[row]].tolist() == [
            int(s[0]) for s, ok in zip(real, seen, strict=True) if ok
        ]
        assert tokens.stop[row][tokens.mask[row]].tolist() == [
            int(s[-1]) + 1 for s, ok in zip(real, seen, strict=True) if ok
        ]
        wanted = expected[-special - len(real) : -special][seen]
        torch.testing.assert_close(layers["norm"][row][tokens.mask[row]], wanted, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_chronos_t5_layers_are_its_hidden_states(zoo, encoders, case):
    """T5 gives DEPTH + 1 states: the input of each block, and at the end the last block's *after* the final norm."""
    model, encoder = zoo.models["chronos-t5"], encoders["chronos-t5"]
    inputs, layers = read(encoder, batch_of(CASES[case]))
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH)), "norm"]
    with torch.no_grad():
        states = model.encoder(**inputs.kwargs, output_hidden_states=True).hidden_states
        for name, expected in zip(list(layers)[:DEPTH], states, strict=False):
            torch.testing.assert_close(layers[name], expected, rtol=0, atol=0)
        normed = model.encoder.final_layer_norm(layers[f"block.{DEPTH - 1}"])
    torch.testing.assert_close(normed, states[-1], **CLOSE)
    torch.testing.assert_close(layers["norm"], states[-1], rtol=0, atol=0)
    assert not torch.allclose(layers[f"block.{DEPTH - 1}"], layers["norm"], rtol=0.1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["chronos-bolt", "chronos-2"])
def test_chronos_layers_are_those_of_a_loop_over_its_blocks(zoo, encoders, family, case):
    model, encoder = zoo.models[family], encoders[family]
    inputs, layers = read(encoder, batch_of(CASES[case]))
    with torch.no_grad():
        states = bolt_loop(model, **inputs.kwargs) if family == "chronos-bolt" else loop_2(model, **inputs.kwargs)
    assert len(states) == DEPTH + 2
    for name, expected in zip(layers, states, strict=True):
        torch.testing.assert_close(layers[name], expected, **CLOSE)


def bolt_loop(model, context):
    """States of Chronos-Bolt from its parts, with attention written out: softmax(q k' + bias) v, no scale (T5)."""
    scaled, _ = model.instance_norm(context)
    patches, seen = model.patch(scaled), torch.nan_to_num(model.patch((~context.isnan()).float()), nan=0.0)
    x = model.input_patch_embedding(torch.cat([torch.where(seen > 0, patches, 0.0), seen], -1))
    x = torch.cat([x, model.shared(torch.ones(len(x), 1, dtype=torch.long))], 1)
    attend = torch.cat([seen.sum(-1) > 0, torch.ones(len(x), 1, dtype=torch.bool)], 1)
    bias = model.encoder.block[0].layer[0].SelfAttention.compute_bias(x.shape[1], x.shape[1])
    states = [x]
    for block in model.encoder.block:
        attention, ff = block.layer
        normed = attention.layer_norm(x)
        a = attention.SelfAttention
        q, k, v = (part(normed).unflatten(-1, (a.n_heads, -1)).transpose(1, 2) for part in (a.q, a.k, a.v))
        scores = (q @ k.mT + bias).masked_fill(~attend[:, None, None], torch.finfo(torch.float32).min)
        x = x + a.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + ff.DenseReluDense.wo(ff.DenseReluDense.wi(ff.layer_norm(x)).relu())
        states.append(x)
    return [*states, model.encoder.final_layer_norm(x)]


def loop_2(model, context, group_ids):
    """States of Chronos-2: its own parts, block by block."""
    patches, attend, _ = model._prepare_patched_context(context)
    future, _ = model._prepare_patched_future(None, None, (None, None), 1, len(context))
    reg = model.shared(torch.ones(len(context), 1, dtype=torch.long))
    x = torch.cat([model.input_patch_embedding(patches), reg, model.input_patch_embedding(future)], 1)
    attend = torch.cat([attend.float(), torch.ones(len(context), 2)], 1)
    time = model.encoder._expand_and_invert_time_attention_mask(attend, torch.float32)
    group = model.encoder._construct_and_invert_group_time_mask(group_ids, attend, torch.float32)
    positions = torch.arange(x.shape[1])[None]
    states = [x]
    for block in model.encoder.block:
        x = block.layer[0](x, position_ids=positions, attention_mask=time)[0]
        x = block.layer[1](x, attention_mask=group)[0]
        x = block.layer[2](x)
        states.append(x)
    return [*states, model.encoder.final_layer_norm(x)]


def test_chronos_2_series_see_their_own_channels_only(encoders):
    encoder = encoders["chronos-2"]
    first, second, third = series(40, 40, 40)
    _, pair = read(encoder, batch_of([first, second]))
    _, other = read(encoder, batch_of([first, third]))
    torch.testing.assert_close(pair["norm"][:2], other["norm"][:2], **CLOSE)
    changed = np.stack([first[0], third[1]])
    _, mixed = read(encoder, batch_of([changed, second]))
    assert not torch.allclose(pair["norm"][0], mixed["norm"][0], rtol=1e-2)  # its other channel is another


@pytest.mark.parametrize("family", ["chronos-t5", "chronos-bolt"])
def test_channel_by_channel_families_do_not_mix_channels(encoders, family):
    first, second = series(40, 40)
    _, one = read(encoders[family], batch_of([first]))
    _, other = read(encoders[family], batch_of([np.stack([first[0], second[1]])]))
    torch.testing.assert_close(one["norm"][0], other["norm"][0], **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_patchtst_layers_are_its_hidden_states(zoo, encoders, case):
    """PatchTST's `hidden_states` are the inputs of each layer; the last output is `last_hidden_state`. Padded and
    missing steps stand at the mean of the row, which the std scaler takes to 0."""
    model, encoder, many = zoo.models["patchtst"].model, encoders["patchtst"], CASES[case]
    rows = torch.full((len(many) * len(many[0]), CONTEXT), torch.nan)
    for row, channel in zip(rows, channels_of(many), strict=True):
        row[CONTEXT - len(channel) :] = channel
    values = torch.where(rows.isnan(), rows.nanmean(-1, keepdim=True), rows)
    inputs, layers = read(encoder, batch_of(many))
    model.do_mask_input, model.masking = False, torch.nn.Identity()
    states = []
    for value, row in zip(values, rows, strict=True):  # as seven channels, since the model was built for seven
        with torch.no_grad():
            out = model(
                past_values=value[None, :, None].expand(-1, -1, 7),
                past_observed_mask=~row.isnan()[None, :, None].expand(-1, -1, 7),
                output_hidden_states=True,
            )
        states.append([x[0, 0] for x in (*out.hidden_states, out.last_hidden_state)])
    assert encoder.final == f"block.{DEPTH - 1}"
    for i, name in enumerate(layers):
        torch.testing.assert_close(layers[name], torch.stack([row[i] for row in states]), **CLOSE)
    tokens = inputs.tokens_of(encoder.final)
    for row, channel in zip(range(len(rows)), channels_of(many), strict=True):
        covered = {step for a, b in zip(tokens.start[row], tokens.stop[row], strict=True) for step in range(a, b)}
        assert {int(s) for s in channel.isfinite().nonzero()} <= covered <= set(range(len(channel)))


def test_patchtst_does_not_mask_patches_at_random(zoo, encoders):
    """Its pretraining config says `do_mask_input`, which holds in evaluation too: two passes would differ."""
    assert json.loads((zoo.folders["patchtst"] / "config.json").read_text())["do_mask_input"] is True
    batch = batch_of(series(40, 40))
    _, one = read(encoders["patchtst"], batch)
    _, two = read(encoders["patchtst"], batch)
    torch.testing.assert_close(one[encoders["patchtst"].final], two[encoders["patchtst"].final], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "tokens", "starts"),
    [
        ({"use_cls_token": True}, 9, [0, 8, 16]),
        ({"patch_length": 16, "patch_stride": 12}, 5, [0, 12, 24]),  # the first 0 steps of 64 are dropped
        ({"patch_length": 10, "patch_stride": 10}, 6, [0, 10, 20]),  # the first 4 steps are dropped
        ({"channel_attention": True, "num_input_channels": 2}, 8, [0, 8, 16]),
    ],
)
def test_patchtst_variants(tmp_path, changes, tokens, starts):
    torch.manual_seed(0)
    model = save(patchtst(**changes), tmp_path).model
    encoder = load_encoder(f"patchtst:{tmp_path}")
    (one,) = series(CONTEXT)
    inputs, layers = read(encoder, batch_of([one]))
    found = inputs.tokens_of(encoder.final)
    assert layers[encoder.final].shape == (2, tokens, WIDTH)
    dropped = 4 if changes.get("patch_length") == 10 else 0
    assert found.start[0][found.mask[0]].tolist()[:3] == [s + dropped for s in starts]
    assert found.cls == (0 if "use_cls_token" in changes else None)
    assert int(found.mask.sum()) == 2 * (tokens - ("use_cls_token" in changes))
    model.do_mask_input, model.masking = False, torch.nn.Identity()
    with torch.no_grad():
        count = model.config.num_input_channels
        values = torch.from_numpy(one).T[None]
        out = model(past_values=values.repeat(1, 1, 4)[..., :count]).last_hidden_state
    torch.testing.assert_close(layers[encoder.final], out[0, :2], **CLOSE)
    assert encoder.facts.joint_channels == ("channel_attention" in changes)
    assert encoder.facts.channels == changes.get("num_input_channels")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_keep_the_promises(encoders, family):
    check_encoder(encoders[family], channels=2)
    check_encoder(encoders[family], length=PATCH - 3, untrained=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_longer_windows_are_refused_not_cut(encoders, family):
    with pytest.raises(EncoderError, match="reads at most 64 steps and this window has 65"):
        encoders[family].prepare(batch_of(series(CONTEXT + 1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_twin_is_the_models_own_initialisation(zoo, family):
    twin = load_encoder(f"{family}:{zoo.folders[family]}@untrained")
    assert twin.facts.objective == "untrained"
    assert twin.name.endswith("@untrained")
    module = twin.module
    torch.manual_seed(0)
    expected = type(module)(module.config).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_makes_the_untrained_network(zoo, family, tmp_path):
    shutil.copy(zoo.folders[family] / "config.json", tmp_path)
    twin = load_encoder(f"{family}:{tmp_path}@untrained")
    expected = load_encoder(f"{family}:{zoo.folders[family]}@untrained").module.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in twin.module.state_dict().items())
    with pytest.raises(EncoderError, match=r"weights|safetensors"):
        load_encoder(f"{family}:{tmp_path}")


def test_facts_of_the_families(encoders):
    assert {f: e.facts.patch for f, e in encoders.items()} == {
        "chronos-t5": 1, "chronos-bolt": PATCH, "chronos-2": PATCH, "patchtst": PATCH
    }  # fmt: skip
    assert [f for f, e in encoders.items() if e.facts.joint_channels] == ["chronos-2"]
    assert encoders["patchtst"].facts.objective == "reconstruction"
    assert all(e.facts.context == CONTEXT and e.facts.min_length == 1 for e in encoders.values())
    assert all(e.facts.weights_licence == "not declared" for e in encoders.values())  # a folder says nothing of it
    assert [layer.depth for layer in encoders["chronos-bolt"].layers] == [0, 0.25, 0.5, 0.75, 1]
