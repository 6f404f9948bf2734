"""Fracast with its real weights, which its wheel brings, against its core written out and its own forecast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from official import (
    CLOSE,
    batch_of,
    read,
    series,
)

from tsprobe.encoders import load_encoder
from tsprobe.testing import check_encoder


@pytest.fixture(scope="module")
def fracast():
    return load_encoder("fracast")


@pytest.fixture(scope="module")
def forecaster():
    from fracast import FracastModel

    return FracastModel.from_pretrained(weights="fp32")


@pytest.fixture(scope="module", params=["long", "gaps", "constant"])
def fracast_case(request):
    season = 20 * np.sin(np.arange(2048) / 24 * 2 * np.pi).astype(np.float32)
    return {
        "long": [s + season for s in series(2048, channels=1)],
        "gaps": [s + season[:300] for s in series(300, missing=range(100, 130))],
        "constant": [np.stack([np.full(60, 3.0, np.float32), season[:60] * np.float32(1e-7)])],  # spans below 1e-5
    }[request.param]


def test_fracast_layers_are_those_of_a_core_written_out(fracast, forecaster, fracast_case):
    """The forward pass of the core again, from its weights: dilated depthwise convolution, SwiGLU, FiLM, RMS norms."""
    core = forecaster.core
    inputs, layers = read(fracast, batch_of(fracast_case))
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(10)), "norm"]
    with torch.no_grad():
        x = core.in_proj(fracast_features(fracast_case)) + core.periodic(
            inputs.kwargs["values"][:, 0], inputs.kwargs["mask"][:, 0], [2048]
        )
        states = [x]
        for i in range(10):
            x = fracast_block(core, x, 2**i)
            states.append(x)
        states.append(rms(core.norm, x))
    for name, expected in zip(layers, states, strict=True):
        torch.testing.assert_close(layers[name], expected, **CLOSE)


def fracast_features(many):
    """Value scaled to [0, 1] by the observed range, coverage, five recency channels: `[R, 2048, 7]`, in float64."""
    rows = []
    for s in (channel for one in many for channel in one.astype(np.float64)):
        scaled = np.zeros((2, 2048))
        span = max(np.nanmax(s) - np.nanmin(s), 1e-5)
        scaled[0, -len(s) :] = np.nan_to_num((s - np.nanmin(s)) / span)
        scaled[1, -len(s) :] = np.isfinite(s)
        rows.append(scaled)
    delta = np.arange(-2047, 1) / 2048
    age = np.abs(delta)
    recency = [delta, np.sign(delta) * np.log1p(age) / np.log(2), np.exp(-age / 2), np.exp(-2 * age), np.exp(-8 * age)]
    both = np.concatenate([np.stack(rows), np.broadcast_to(np.stack(recency), (len(rows), 5, 2048))], 1)
    return torch.from_numpy(both.transpose(0, 2, 1)).float()


def rms(norm, x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * norm.weight


def fracast_block(core, x, dilation):
    tau = np.log2(dilation)
    angles = torch.tensor([tau / 2**k * np.pi for k in range(core.scale.n_freq)], dtype=torch.float32)
    gamma, beta = core.scale.to_gb(torch.cat([angles.sin(), angles.cos()])).chunk(2)
    x = x * (1 + gamma) + beta
    block, kernel = core.block, core.block.dw_weight[:, 0].T  # [3, D]
    before = torch.nn.functional.pad(x, (0, 0, 2 * dilation, 0))
    filtered = sum(before[:, j * dilation : j * dilation + 2048] * kernel[j] for j in range(3)) + block.dw_bias
    x = rms(block.norm1, x + block.pw(filtered))
    gate, value = block.ffn.up(x).chunk(2, -1)
    return rms(block.norm2, x + block.ffn.down(gate * gate.sigmoid() * value))


def test_fracast_head_on_our_norm_layer_gives_the_package_forecast(fracast, forecaster, fracast_case):
    inputs, layers = read(fracast, batch_of(fracast_case))
    values, seen = inputs.kwargs["values"][:, 0], inputs.kwargs["mask"][:, 0]
    with torch.inference_mode():
        ours = forecaster.head.forward_horizon(layers["norm"], last_obs=values[:, -1:], ctx=values, ctx_mask=seen)
    rows = np.concatenate(fracast_case)
    low = np.nanmin(rows, 1)[:, None, None]
    span = np.maximum(np.nanmax(rows, 1)[:, None, None] - low, 1e-5)
    theirs = forecaster.forecast(rows)
    np.testing.assert_allclose(ours.numpy() * span + low, theirs, rtol=1e-5, atol=1e-5 * float(span.max()))
    assert fracast.final == "norm"


def test_fracast_tokens_are_steps(fracast):
    inputs, _ = read(fracast, batch_of(series(20, 12, missing=[3])))
    tokens = inputs.tokens_of("norm")
    assert tokens.mask.shape == (4, 2048)
    assert tokens.start[0][tokens.mask[0]].tolist() == [i for i in range(20) if i != 3]
    assert tokens.start[3][tokens.mask[3]].tolist() == list(range(12))
    assert bool(tokens.mask[3, -12:].all())


def test_fracast_keeps_the_promises(fracast):
    check_encoder(fracast, channels=2)


def test_facts_of_fracast(fracast):
    assert (fracast.facts.context, fracast.facts.min_length, fracast.facts.weights_licence) == (2048, 8, "Apache-2.0")
