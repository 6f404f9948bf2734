"""TimesFM 3 against its own `decode`."""

from __future__ import annotations

import pytest
import torch
from forecasters import build, save
from official import CLOSE, DEPTH, PATCH, batch_of, read, series

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

pytest.importorskip("timesfm3", reason="pip install 'timesfm[torch]>=3'")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timesfm3")
    return save(build("timesfm-3"), folder), folder, load_encoder(f"timesfm-3:{folder}")


@pytest.mark.parametrize("length", [64, 61, 5])
@pytest.mark.parametrize("trend", [0, 3])
def test_layers_are_those_of_a_forecast(made, length, trend):
    """With a strong trend the package takes it out first."""
    model, _, encoder = made
    many = [x + trend * torch.arange(length).numpy() for x in series(length, length)]
    inputs, layers = read(encoder, batch_of(many))
    patches = -(-length // PATCH)
    target = torch.stack([torch.from_numpy(x).float() for x in many])
    states = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: states.append(out[0]))
        for layer in model.transformer_stack.layers
    ]
    _, aux = model.decode(target, horizon=PATCH, return_aux_outputs=True)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(states[-1], aux["__call__:transformer_output"])
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH))]
    assert encoder.final == f"block.{DEPTH - 1}"
    for ours, theirs in zip(layers.values(), (aux["__call__:transformer_input"], *states), strict=True):
        torch.testing.assert_close(ours[:, :patches], theirs.flatten(0, 1)[:, :patches], **CLOSE)
    tokens = inputs.tokens_of(encoder.final)
    assert tokens.mask[0].tolist() == [True] * patches + [False] * 2  # the horizon
    assert tokens.stop[0][:patches].tolist() == list(range(length, 0, -PATCH))[::-1]


def test_it_keeps_the_promises(made):
    check_encoder(made[2], channels=2, causal="scaled", local=True)
    check_encoder(made[2], length=PATCH - 3, untrained=False)


def test_channels_see_each_other(made):
    first, second = series(40, 40)
    _, one = read(made[2], batch_of([first]))
    first[1] = second[0]
    _, other = read(made[2], batch_of([first]))
    torch.testing.assert_close(one["embedding"][0], other["embedding"][0], **CLOSE)
    assert not torch.allclose(one["block.0"][0], other["block.0"][0], rtol=1e-2)


def test_padding_would_change_tokens_and_is_refused(made):
    model, _, encoder = made
    assert encoder.facts.pads is False
    with pytest.raises(EncoderError, match="cannot mask padding"):
        encoder.prepare(batch_of(series(40, 24)))
    with pytest.raises(EncoderError, match="reads at most 15360 steps"):
        encoder.prepare(batch_of(series(15361)))
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        encoder.prepare(batch_of(series(40, missing=[7])))
    x = torch.from_numpy(series(40)[0])[None]
    padded = torch.nn.functional.pad(x, (PATCH, 0))
    mask = (torch.arange(48) < PATCH)[None]
    alone = model.decode(x, horizon=1)
    assert not torch.allclose(alone, model.decode(padded, horizon=1, mask=mask), rtol=1e-3, atol=1e-3)


def test_wrong_weights_are_refused_by_name(made, tmp_path):
    save(build("timesfm-3", output_patch_len=3 * PATCH), tmp_path)
    (tmp_path / "config.json").write_text((made[1] / "config.json").read_text())
    with pytest.raises(EncoderError, match=r"of shape \[.*\] where \[.*\] is expected"):
        load_encoder(f"timesfm-3:{tmp_path}")
