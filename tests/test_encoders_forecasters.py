"""Adapters of the families that transformers and sktime build, against the models' own calls and hidden states.

Each series of a batch is compared with what the model makes of that series alone, prepared as its package prepares it.
"""

from __future__ import annotations

import json
import shutil
import warnings
from types import SimpleNamespace

import forecasters
import numpy as np
import pytest
import torch
from forecasters import CONTEXT, FAMILIES, build, save
from official import CLOSE, DEPTH, PATCH, batch_of, channels_of, read, series
from safetensors.torch import load_file, save_file

from tsprobe.encoders import load_encoder
from tsprobe.encoders.moirai2 import causal_means
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

MASKS = {"patchtsmixer", "ttm", "moirai-2", "time-moe"}
CAUSAL = {"timesfm-2.0": True, "timesfm-2.5": True, "patchtsmixer": False, "moment": False, "ttm": False}
WHOLE = {"moment", "timer"}  # no token for part of a patch
NORMED = ("moment", "moirai-2", "sundial", "time-moe", "timer")
LAYERS = ["embedding", *(f"block.{i}" for i in range(DEPTH))]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model = save(build(request.param), folder)
    encoder = load_encoder(f"{request.param}:{folder}")
    return SimpleNamespace(family=request.param, model=model, folder=folder, encoder=encoder)


def states_of(family, model, x):
    """Tokens `[T, D]` at each layer of our order for one channel, from the model's own calls."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return [s[0] for s in globals()["_" + family.replace("-", "_").replace(".", "")](model, x)]


def _timesfm_20(model, x):
    values, padding, freq = model._preprocess([x], freq=[0])
    out = model.decoder(values, padding[:, :CONTEXT], freq, output_hidden_states=True)
    assert len(out.hidden_states) == DEPTH + 1
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden_state)
    return out.hidden_states


def _timesfm_25(model, x):
    """As in a forecast, which scales by the whole padded window first."""
    out = model(past_values=[x], output_hidden_states=True)
    assert len(out.hidden_states) == DEPTH + 1
    return out.hidden_states


def whole(x):
    """A window of the context with the series at its end, at the mean where it is padded, and what is observed."""
    seen = torch.zeros(CONTEXT, dtype=torch.bool)
    seen[CONTEXT - len(x) :] = x.isfinite()
    values = torch.full((CONTEXT,), float(x.nanmean()))
    values[CONTEXT - len(x) :] = torch.where(x.isfinite(), x, values[0])
    return values[None, :, None].expand(-1, -1, 3), seen[None, :, None].expand(-1, -1, 3)  # as three channels


def _patchtsmixer(model, x):
    """`hidden_states` are the outputs of the mixers; what enters the first is not among them."""
    model.model.masking = None
    out = model.model(*whole(x), output_hidden_states=True)
    assert len(out.hidden_states) == DEPTH
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden_state)
    return [s[:, 0] for s in (model.model.encoder.patcher(out.patch_input), *out.hidden_states)]


def _ttm(model, x):
    """`hidden_states` hold, for each level, its input, that at a finer shape, two inner layers and its output; then the
    decoder's."""
    values, seen = whole(x)
    out = model(past_values=values, past_observed_mask=seen, output_hidden_states=True)
    states = list(out.hidden_states)
    assert len(states) > 5 * DEPTH
    assert len({s.shape[2:] for s in states[: 5 * DEPTH]}) == DEPTH
    torch.testing.assert_close(states[5 * DEPTH - 1], out.backbone_hidden_state)
    return [s[:, 0] for s in (states[0], *states[4 : 5 * DEPTH : 5])]


def _moment(model, x):
    """What enters T5 is taken from `embed`, which averages the tokens of whole patches at the final norm."""
    values, mask = torch.zeros(1, 1, CONTEXT), torch.zeros(1, CONTEXT)
    values[..., CONTEXT - len(x) :], mask[..., CONTEXT - len(x) :] = x, 1
    kept = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args, kwargs: kept.append(kwargs), with_kwargs=True)
    embedded = model.embed(x_enc=values, input_mask=mask, reduction="mean").embeddings
    handle.remove()
    states = _with_last(model.encoder, kept[0])
    real = kept[0]["attention_mask"][0].bool()
    torch.testing.assert_close(states[-1][:, real].mean(1), embedded)
    return states


def _with_last(encoder, kwargs):
    """T5's hidden states, of which the last is after the final norm; before it, what the last block gives."""
    last = []
    handle = encoder.block[-1].register_forward_hook(lambda _, args, out: last.append(out[0]))
    out = encoder(**kwargs, output_hidden_states=True)
    handle.remove()
    assert len(out.hidden_states) == DEPTH + 1
    return [*out.hidden_states[:-1], last[0], out.hidden_states[-1]]


def _moirai_2(model, x):
    """The inputs of `Moirai2Forecast`, horizon included, and the module's own parts one by one."""
    from sktime.libs.uni2ts.moirai2_forecast import Moirai2Forecast
    from sktime.libs.uni2ts.moirai2_module import packed_causal_attention_mask

    tokens = -(-len(x) // PATCH)
    sizes = SimpleNamespace(prediction_length=PATCH)
    me = SimpleNamespace(hparams=sizes, _patched_seq_pad=Moirai2Forecast._patched_seq_pad)
    me.context_token_length, me.prediction_token_length = lambda _: tokens, lambda _: 1
    me._generate_time_id = lambda *args: Moirai2Forecast._generate_time_id(me, *args)
    filled = imputed(x.numpy())[None, :, None]
    pad = torch.zeros(1, len(x), dtype=torch.long)
    target, seen, sample, time, variate, ahead = Moirai2Forecast._convert(
        me, PATCH, filled, x.isfinite()[None, :, None], pad
    )
    loc, scale = model.scaler(target, seen * ~ahead.unsqueeze(-1), sample, variate)
    state = model.in_proj(torch.cat([(target - loc) / scale, seen.float()], -1))
    states, mask = [state], packed_causal_attention_mask(sample, time)
    for layer in model.encoder.layers:
        state = layer(state, mask, var_id=variate, time_id=time)
        states.append(state)
    return [s[:, :tokens] for s in (*states, model.encoder.norm(state))]


def imputed(x):
    """What gluonts makes of missing values before Moirai sees them."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")
        from gluonts.transform import CausalMeanValueImputation

        return torch.from_numpy(CausalMeanValueImputation()(x.copy()))


def _sundial(model, x):
    scaled = (x - x.mean()) / (x.std(unbiased=False) + 1e-5)  # as in generate()
    return _decoder(model.model, scaled[None])


def _time_moe(model, x):
    scaled = (x - x.mean()) / x.std()  # as in its model card
    return _decoder(model.model, scaled[None, :, None])


def _timer(model, x):
    x = x[len(x) % PATCH :]  # as in generate()
    return _decoder(model.model, ((x - x.mean()) / x.std())[None])


def _decoder(decoder, values):
    """The last of its hidden states is after the norm; the last layer's own output comes from a hook."""
    last = []
    handle = decoder.layers[-1].register_forward_hook(lambda _, args, out: last.append(out[0]))
    embedded = decoder.embed_layer(values)
    out = decoder(inputs_embeds=embedded, use_cache=False, output_hidden_states=True, return_dict=True)
    handle.remove()
    assert len(out.hidden_states) == DEPTH + 1
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden_state)
    return [*out.hidden_states[:-1], last[0], out.hidden_states[-1]]


@pytest.mark.parametrize("lengths", [(40, 40), (61, 24, 17), (CONTEXT,)], ids=["equal", "ragged", "full context"])
def test_layers_are_those_of_the_model_for_each_series_alone(made, lengths):
    many = series(*lengths)
    inputs, layers = read(made.encoder, batch_of(many))
    assert list(layers) == LAYERS + ["norm"] * (made.family in NORMED)
    assert made.encoder.final == list(layers)[-1]
    tokens, size = inputs.tokens_of(made.encoder.final), made.encoder.facts.patch
    for row, x in enumerate(channels_of(many)):
        real = tokens.mask[row]
        spans = list(zip(tokens.start[row][real].tolist(), tokens.stop[row][real].tolist(), strict=True))
        first = len(x) % size if len(x) % size and made.family in WHOLE else 0
        ends = list(range(len(x), first, -size))[::-1]
        assert spans == [(max(end - size, 0), end) for end in ends]
        for (name, ours), theirs in zip(layers.items(), states_of(made.family, made.model, x), strict=True):
            torch.testing.assert_close(
                ours[row][real], theirs[-len(ends) :], **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_families_keep_the_promises(made):
    causal = CAUSAL.get(made.family, "scaled")
    check_encoder(made.encoder, channels=2, causal=causal, local=True)
    check_encoder(made.encoder, length=PATCH - 3 if made.family not in WHOLE else PATCH, untrained=False)
    check_encoder(made.encoder, length=CONTEXT, causal=causal, local=True, untrained=False)


@pytest.mark.parametrize("lengths", [(40, 30), (33, 9)])
def test_missing_values_are_masked_or_refused(made, lengths):
    many = series(*lengths, missing=[5, *range(15, 26)])
    assert made.encoder.facts.masks_missing == (made.family in MASKS)
    if made.family not in MASKS:
        with pytest.raises(EncoderError, match="cannot mask missing values"):
            read(made.encoder, batch_of(many))
        return
    inputs, layers = read(made.encoder, batch_of(many))
    tokens = inputs.tokens_of(made.encoder.final)
    if made.family != "time-moe":  # which as such knows no missing values
        for row, x in enumerate(channels_of(many)):
            real = tokens.mask[row]
            for ours, theirs in zip(layers.values(), states_of(made.family, made.model, x), strict=True):
                torch.testing.assert_close(ours[row][real], theirs[-len(real) :][real[-len(theirs) :]], **CLOSE)
    else:
        (one,) = series(40, channels=1)
        gone = np.delete(one, 20, axis=1)
        one[0, 20] = np.nan
        inputs, layers = read(made.encoder, batch_of([one]))
        tokens = inputs.tokens_of("norm")
        assert tokens.mask[0].tolist() == [step != 20 for step in range(40)]
        _, without = read(made.encoder, batch_of([gone]))  # the same values and scale, but for the distance in time
        torch.testing.assert_close(layers["embedding"][0][tokens.mask[0]], without["embedding"][0], **CLOSE)
        torch.testing.assert_close(layers["block.0"][0, :20], without["block.0"][0, :20], **CLOSE)


def test_longer_windows_and_no_tokens_are_refused(made):
    context = made.encoder.facts.context
    with pytest.raises(EncoderError, match=f"reads at most {context} steps and this window has {context + 1}"):
        made.encoder.prepare(batch_of(series(context + 1)))
    assert made.encoder.facts.min_length == (PATCH if made.family in WHOLE else 1)
    if made.family in WHOLE:
        with pytest.raises(EncoderError, match=f"needs at least {PATCH} steps and a series has 7"):
            made.encoder.prepare(batch_of(series(40, 7)))


def test_moment_itself_gives_nan_where_no_patch_is_whole(tmp_path):
    torch.manual_seed(0)
    model = save(build("moment"), tmp_path)
    mask = torch.zeros(1, CONTEXT)
    mask[:, -5:] = 1
    assert bool(model.embed(x_enc=torch.randn(1, 1, CONTEXT), input_mask=mask).embeddings.isnan().all())


@pytest.mark.parametrize("scaled", ["timesfm-2.0", "timesfm-2.5", "moment", "ttm", "time-moe", "timer", "sundial"])
def test_level_and_scale_are_taken_out(scaled, tmp_path):
    torch.manual_seed(0)
    save(build(scaled), tmp_path)
    encoder = load_encoder(f"{scaled}:{tmp_path}")
    (x,) = series(40, channels=1)
    inputs, one = read(encoder, batch_of([x]))
    _, other = read(encoder, batch_of([3 * x + 7]))
    real = inputs.tokens_of(encoder.final).mask
    torch.testing.assert_close(one[encoder.final][real], other[encoder.final][real], rtol=1e-3, atol=1e-3)


def test_a_series_without_spread_gives_numbers(made):
    flat = np.full((1, 40), 5.0, np.float32)
    inputs, layers = read(made.encoder, batch_of([flat]))
    assert all(bool(x[inputs.tokens_of(name).mask].isfinite().all()) for name, x in layers.items())


def test_wrong_weights_are_refused_by_name(made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made.folder, folder)
    state = load_file(folder / "model.safetensors")
    gone = next(name for name in state if "norm" in name)
    del state[gone]
    save_file({**state, "spare.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"missing .*norm.*; unexpected spare\.weight"):
        load_encoder(f"{made.family}:{folder}")
    other = "timesfm-2.0" if made.family != "timesfm-2.0" else "timer"
    with pytest.raises(EncoderError, match=r"describes a model of type|does not hold the weights"):
        load_encoder(f"{other}:{made.folder}")


def test_mixers_that_mix_channels_take_their_channels_only(tmp_path):
    for family, name in (("patchtsmixer", "mixer"), ("ttm", "ttm")):
        torch.manual_seed(0)
        model = save(build(family, mode="mix_channel"), tmp_path / name)
        encoder = load_encoder(f"{family}:{tmp_path / name}")
        assert (encoder.facts.joint_channels, encoder.facts.channels) == (True, 3)
        check_encoder(encoder, untrained=False)
        (x,) = series(CONTEXT, channels=3)
        _, layers = read(encoder, batch_of([x]))
        values = torch.from_numpy(x).T[None]
        with torch.no_grad():
            if family == "ttm":
                theirs = model(past_values=values).backbone_hidden_state
            else:
                model.model.masking = None
                theirs = model.model(values).last_hidden_state
        torch.testing.assert_close(layers[encoder.final], theirs[0], **CLOSE)


def test_ttm_tokens_for_rate_and_registers_are_masked(tmp_path):
    torch.manual_seed(0)
    model = save(build("ttm", resolution_prefix_tuning=True, register_tokens=2), tmp_path)
    encoder = load_encoder(f"ttm:{tmp_path}")
    check_encoder(encoder, channels=2, local=True)
    many = series(CONTEXT, channels=3)
    inputs, layers = read(encoder, batch_of(many))
    assert inputs.tokens_of("block.0").mask[0].tolist() == [False] * 3 + [True] * 8
    with torch.no_grad():
        values = torch.from_numpy(many[0]).T[None]
        out = model(past_values=values, freq_token=torch.zeros(1))
    torch.testing.assert_close(layers[encoder.final], out.backbone_hidden_state[0], **CLOSE)


@pytest.mark.parametrize("change", [{"multi_scale": True}, {"fft_length": 4}])
def test_ttm_of_another_kind_is_refused(tmp_path, change):
    save(build("ttm"), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(EncoderError, match=f"with {next(iter(change))}, which is not supported"):
        load_encoder(f"ttm:{tmp_path}")


def test_moment_without_the_sizes_of_t5_is_refused(tmp_path):
    save(build("moment"), tmp_path)
    config = forecasters.moment_config()
    del config["t5_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="has no t5_config"):
        load_encoder(f"moment:{tmp_path}")


def test_causal_means_are_those_of_gluonts():
    for missing in ([3, 4, 9], [0, 1, 5], [0], [39], []):
        (x,) = series(40, channels=1, missing=missing)
        values = torch.from_numpy(np.nan_to_num(np.pad(x, [(0, 0), (3, 0)])))
        seen = torch.from_numpy(np.pad(np.isfinite(x), [(0, 0), (3, 0)]))
        inside = (torch.arange(43) >= 3)[None]
        torch.testing.assert_close(causal_means(values, seen, inside)[0, 3:], imputed(x[0]), **CLOSE)
