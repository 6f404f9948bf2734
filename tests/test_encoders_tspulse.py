"""TSPulse against the package's own embeddings, layer by layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from official import CLOSE, batch_of, channels_of, read, save, series

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

pytest.importorskip("tsfm_public", reason="needs the package granite-tsfm")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the package

CONTEXT, PATCH, WIDTH, REGISTERS, DEPTH = 64, 8, 16, 3, 3
PATCHES = CONTEXT // PATCH
CASES = {
    "full": series(CONTEXT, channels=2),
    "ragged": series(61, 24, 17),
    "shorter than a patch": series(3),
    "missing": series(50, missing=[5, *range(15, 40)]),
}


def official(**changes):
    from tsfm_public.models.tspulse import TSPulseConfig, TSPulseForReconstruction

    given = {
        "context_length": CONTEXT,
        "patch_length": PATCH,
        "patch_stride": PATCH,
        "d_model": WIDTH,
        "decoder_d_model": WIDTH,
        "num_layers": DEPTH,
        "decoder_num_layers": 2,
        "patch_register_tokens": REGISTERS,
        "fuse_fft": True,
        "scaling": "revin",
        "mask_type": "user",
        "prediction_length": 8,
        "dropout": 0.1,
        "head_dropout": 0.1,
        **changes,
    }
    return TSPulseForReconstruction(TSPulseConfig(**given))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tspulse")
    model = save(official(), folder)
    return SimpleNamespace(folder=folder, model=model, encoder=load_encoder(f"tspulse:{folder}"))


def full_window(channel):
    values, observed = torch.zeros(1, CONTEXT, 1), torch.zeros(1, CONTEXT, 1, dtype=torch.bool)
    values[0, CONTEXT - len(channel) :, 0] = channel.nan_to_num()
    observed[0, CONTEXT - len(channel) :, 0] = channel.isfinite()
    return values, observed


@pytest.mark.parametrize("case", CASES)
def test_layers_are_those_of_the_packages_embeddings(zoo, case):
    """`mode="time"`, where frequency and registers are left out, of backbone and decoder; between them a loop."""
    from tsfm_public.models.tspulse.utils.helpers import get_embeddings

    many, model = CASES[case], zoo.model
    inputs, layers = read(zoo.encoder, batch_of(many))
    names = ["embedding", *(f"block.{i}" for i in range(DEPTH)), "decoder.0", "decoder.1"]
    assert list(layers) == names
    assert zoo.encoder.final == "decoder.1"
    for row, channel in enumerate(channels_of(many)):
        values, observed = full_window(channel)
        mask = inputs.tokens.mask[row]
        assert mask.shape == (2 * PATCHES + REGISTERS,)
        assert not bool(mask[PATCHES:].any())
        for component, layer in (("backbone", f"block.{DEPTH - 1}"), ("decoder", "decoder.1")):
            with torch.no_grad():
                expected = get_embeddings(model, values, observed, component=component, mode="time")
            expected = expected.reshape(PATCHES, WIDTH)[mask[:PATCHES]]
            torch.testing.assert_close(layers[layer][row][mask], expected, **CLOSE)
        with torch.no_grad():
            x = layers["embedding"][row][None, None]
            for i, mixer in enumerate(model.backbone.encoder_block.mixers):
                x = mixer(x)
                torch.testing.assert_close(layers[f"block.{i}"][row], x[0, 0], **CLOSE)


def test_masking_of_pretraining_is_off(tmp_path):
    torch.manual_seed(0)
    save(official(mask_type="block", mask_ratio=0.5, fft_mask_ratio=0.5, fft_mask_strategy="random"), tmp_path)
    encoder = load_encoder(f"tspulse:{tmp_path}")
    batch = batch_of(series(CONTEXT))
    _, one = read(encoder, batch)
    _, two = read(encoder, batch)
    torch.testing.assert_close(one[encoder.final], two[encoder.final], rtol=0, atol=0)


def test_without_a_transform_there_are_fewer_tokens(tmp_path):
    torch.manual_seed(0)
    save(official(fuse_fft=False, fft_time_consistent_masking=False), tmp_path)
    inputs, layers = read(load_encoder(f"tspulse:{tmp_path}"), batch_of(series(CONTEXT)))
    assert layers["block.0"].shape[1] == inputs.tokens.mask.shape[1] == PATCHES + REGISTERS
    assert int(inputs.tokens.mask.sum()) == 2 * PATCHES


def test_tspulse_keeps_the_promises(zoo):
    check_encoder(zoo.encoder, channels=2)
    check_encoder(zoo.encoder, length=CONTEXT, untrained=False)
    check_encoder(zoo.encoder, length=PATCH - 3, untrained=False)


def test_what_it_cannot_take_is_refused(zoo, tmp_path):
    with pytest.raises(EncoderError, match="reads at most 64 steps and this window has 65"):
        zoo.encoder.prepare(batch_of(series(CONTEXT + 1)))
    save(official(num_patches_layerwise_scale=[1, 0.5, 0.5]), tmp_path)
    with pytest.raises(EncoderError, match="changes the number or width of its tokens"):
        load_encoder(f"tspulse:{tmp_path}")


def test_wrong_checkpoints_are_refused(zoo, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(zoo.folder / "model.safetensors")
    (tmp_path / "config.json").write_text((zoo.folder / "config.json").read_text())
    first = "backbone.add_tokens.patch_tokens"
    save_file({n: x for n, x in weights.items() if n != first}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"missing backbone\.add_tokens\.patch_tokens"):
        load_encoder(f"tspulse:{tmp_path}")
    save_file({**weights, "head.bias": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"unexpected head\.bias"):
        load_encoder(f"tspulse:{tmp_path}")
