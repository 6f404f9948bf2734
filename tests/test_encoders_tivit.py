"""TiViT on small timm transformers with random weights: the picture, the layers, and which steps a patch covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from official import CLOSE, batch_of, read, series
from timm.models import save_for_hf

from tsprobe.encoders import load_encoder, tivit
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

SIZE, PATCH = 64, 16
ARGS = {"depth": 3, "img_size": SIZE}


@pytest.fixture(scope="module", params=["test_vit", "test_vit4"])
def model(request, tmp_path_factory):
    """With a class token, and with register tokens in place of it."""
    torch.manual_seed(7)
    made = timm.create_model(request.param, num_classes=3, **ARGS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    folder = tmp_path_factory.mktemp(request.param)
    save_for_hf(made, folder, model_args=ARGS, safe_serialization=True)
    return made, folder


@pytest.fixture
def encoder(model):
    return load_encoder(f"tivit:{model[1]}")


def their_picture(x):
    """The authors' `ts2image_transformation` of one series at patch_size floor(sqrt(T)), stride 0.1."""
    from torchvision.transforms import Resize

    size = int(math.sqrt(len(x)))
    step = max(1, int(size * 0.1))
    q75, q25 = torch.quantile(x, torch.tensor([0.75, 0.25]))
    x = (x - x.median()) / (q75 - q25 + 1e-5)
    remainder = (len(x) - size) % step
    padded = F.pad(x[None, None], (step - remainder if remainder else 0, 0), mode="replicate")
    picture = padded.unfold(2, size, step)
    picture = ((picture - picture.min()) / (picture.max() - picture.min() + 1e-5)) ** 0.8
    return Resize((SIZE, SIZE), interpolation=0, antialias=False)(picture)[0, 0]


def pictures(many):
    return torch.stack([their_picture(torch.from_numpy(channel)) for s in many for channel in s])


@pytest.mark.parametrize("length", [4, 9, 30, 150, 500, 1021, 6000])
def test_picture_is_that_of_the_authors(length):
    x = torch.from_numpy(series(length, channels=1)[0][0])
    picture = tivit.draw(x, tivit._steps(length, SIZE))
    torch.testing.assert_close(picture, their_picture(x), rtol=0, atol=1e-6)  # float32 in [0, 1]; steps differ by more


def test_constant_series_gives_a_blank_picture():
    assert torch.equal(tivit.draw(torch.full((50,), 3.0), tivit._steps(50, SIZE)), torch.zeros(SIZE, SIZE))


def test_layers_are_the_states_of_timm_in_the_order_of_time(model, encoder):
    many = series(9, 500)
    mean, std = (torch.tensor(model[0].pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    pixels = (pictures(many)[:, None] - mean) / std
    with torch.no_grad():
        _, states = model[0].forward_intermediates(pixels, return_prefix_tokens=True, output_fmt="NLC", norm=False)
        final = model[0].forward_features(pixels)
    inputs, layers = read(encoder, batch_of(many))
    order, prefix = inputs.kwargs["order"], model[0].num_prefix_tokens
    assert list(layers) == ["embedding", "block.0", "block.1", "block.2", "norm"]
    for i, (patches, special) in enumerate(states):
        expected = torch.cat([special, patches], 1)
        for row in range(4):
            torch.testing.assert_close(layers[f"block.{i}"][row], expected[row, order[row]], **CLOSE)
    for row in range(4):
        torch.testing.assert_close(layers["norm"][row], final[row, order[row]], **CLOSE)
    assert order[:, :prefix].tolist() == [list(range(prefix))] * 4
    assert not torch.equal(order[0], order[2])  # 9 steps have short lines, whose beginnings overlap
    tokens = inputs.tokens_of("norm")
    assert tokens.cls == (None if model[0].cls_token is None else 0)
    assert tokens.mask.sum(1).tolist() == [(SIZE // PATCH) ** 2] * 4
    assert not tokens.mask[:, :prefix].any()


@pytest.mark.parametrize("length", [4, 37, 100, 500])
def test_patches_cover_the_steps_that_change_them(model, encoder, length):
    """A step is moved within the range of the others, so that the scale stays: only patches that show it change."""
    random = np.random.default_rng(0)
    base = random.permutation(np.linspace(-1, 1, length)).astype(np.float32)
    keep = {int(base.argmin()), int(base.argmax()), *np.argsort(np.abs(base))[:3].tolist()}
    inputs, layers = read(encoder, batch_of([base[None]]))
    tokens = inputs.tokens_of("embedding")
    for step in (0, length // 3, length // 2, length - 1):
        if step in keep:
            continue
        moved = base.copy()
        moved[step] = np.nextafter(base[step], np.float32(2)) + np.float32(0.003) * np.sign(base[step])
        moved = np.clip(moved, -1, 1)
        _, changed = read(encoder, batch_of([moved[None]]))
        size = (changed["embedding"] - layers["embedding"])[0].abs().amax(-1)
        loud = size > 1e-2 * size.max()  # the quartiles may move by a little
        covers = (tokens.start[0] <= step) & (step < tokens.stop[0]) & tokens.mask[0]
        assert bool(loud.any()) == bool((tivit._steps(length, SIZE) == step).any()) == bool(covers.any())
        assert bool(covers[loud].all())


@pytest.mark.parametrize(("length", "skipped"), [(4, 0), (50, 0), (100, 1), (197, 2), (3000, 45)])
def test_spans_are_within_the_series_and_leave_out_its_last_steps_where_lines_are_skipped(encoder, length, skipped):
    inputs, _ = read(encoder, batch_of(series(length, channels=1)))
    tokens = inputs.tokens_of("norm")
    covered = torch.zeros(length, dtype=torch.bool)
    for start, stop in zip(tokens.start[tokens.mask], tokens.stop[tokens.mask], strict=True):
        assert 0 <= start < stop <= length
        covered[start:stop] = True
    assert bool(covered[: length - skipped].all())
    assert not covered[length - skipped :].any()


def test_final_is_where_the_authors_look(encoder):
    assert encoder.final == "block.0"  # 14 of 32 blocks are one of three


def test_promises_are_kept(encoder):
    check_encoder(encoder, length=200, channels=2)
    check_encoder(encoder, length=60)


def test_missing_values_are_refused(encoder):
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        encoder.prepare(batch_of(series(50, missing=[3])))


def test_what_is_no_such_transformer_is_refused(model, tmp_path):
    with pytest.raises(EncoderError, match="there is no folder"):
        load_encoder("tivit:./nowhere")
    (tmp_path / "config.json").write_text('{"architecture": "vit_of_nobody"}')
    with pytest.raises(EncoderError, match="timm has no architecture 'vit_of_nobody'"):
        load_encoder(f"tivit:{tmp_path}")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}')
    with pytest.raises(EncoderError, match="no plain vision transformer"):
        load_encoder(f"tivit:{tmp_path}")
    (tmp_path / "config.json").write_text('{"architecture": "test_vit", "num_classes": 3}')
    (tmp_path / "model.safetensors").write_bytes((model[1] / "model.safetensors").read_bytes())
    with pytest.raises(EncoderError, match="does not hold the weights of this model: missing"):
        load_encoder(f"tivit:{tmp_path}")
