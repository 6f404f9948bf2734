"""TiRex against the package's own embedding, block by block."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from official import CLOSE, batch_of, channels_of, read, series

from tsprobe.encoders import load_encoder
from tsprobe.errors import EncoderError
from tsprobe.testing import check_encoder

pytest.importorskip("tirex.models", reason="needs the package tirex-ts")

CONTEXT, PATCH, WIDTH, DEPTH = 64, 8, 16, 3
SETTINGS = {
    "model_config": {
        "input_patch_size": PATCH,
        "output_patch_size": PATCH,
        "quantiles": [0.1, 0.5, 0.9],
        "block_kwargs": {"num_blocks": DEPTH, "embedding_dim": WIDTH, "num_heads": 2},
        "input_ff_dim": 32,
    },
    "train_ctx_len": CONTEXT,
}
CASES = {
    "whole patches": series(40, 40),
    "ragged": series(61, 24, 17),
    "shorter than a patch": series(3, 2),
    "missing inside": series(40, 35, missing=[5, *range(15, 26)]),
    "full context": series(CONTEXT, channels=1),
}


def save(model, folder, drop=(), **changes):
    """As published: the checkpoint of a training run, which its own loader reads."""
    state = {name: x for name, x in model.state_dict().items() if name not in drop}
    torch.save({"hyper_parameters": SETTINGS, "state_dict": state, **changes}, folder / "model.ckpt")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    from tirex.models.tirex import TiRexZero

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tirex")
    model = TiRexZero("torch", **SETTINGS).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # its cells come with whatever was in memory
            parameter.normal_(std=0.3)
    save(model, folder)
    return SimpleNamespace(folder=folder, model=model, encoder=load_encoder(f"tirex:{folder}"))


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_those_of_the_packages_embedding(zoo, case):
    """`_embed_context` channel by channel, from which the padded tokens are cut."""
    many = CASES[case]
    inputs, layers = read(zoo.encoder, batch_of(many))
    assert list(layers) == ["embedding", *(f"block.{i}" for i in range(DEPTH)), "norm"]
    assert zoo.encoder.final == f"block.{DEPTH - 1}"
    for row, channel in enumerate(channels_of(many)):
        expected = zoo.model._embed_context(channel[None])[0]  # [T, L, D]
        real = inputs.tokens.mask[row]
        seen = real[-len(expected) :]
        assert int(real.sum()) == int(seen.sum())
        for i in range(DEPTH):
            torch.testing.assert_close(layers[f"block.{i}"][row][real], expected[seen][:, i], **CLOSE)


def test_embedding_and_norm_are_the_input_and_output_of_the_stack(zoo):
    (one,) = series(40, channels=1)
    _, layers = read(zoo.encoder, batch_of([one]))
    with torch.no_grad():
        entering, _ = zoo.model._prepare_context_for_embedding(torch.from_numpy(one), None)
        expected = zoo.model.input_patch_embedding(entering)
        torch.testing.assert_close(layers["embedding"], expected, **CLOSE)
        torch.testing.assert_close(layers["norm"], zoo.model.out_norm(layers[f"block.{DEPTH - 1}"]), **CLOSE)


def test_token_map_counts_patches_from_the_end(zoo):
    inputs, _ = read(zoo.encoder, batch_of(series(20, 16, channels=1)))
    tokens = inputs.tokens
    assert tokens.mask.sum(1).tolist() == [3, 2]
    assert tokens.start[0][tokens.mask[0]].tolist() == [0, 4, 12]
    assert tokens.stop[1][tokens.mask[1]].tolist() == [8, 16]
    assert bool(tokens.mask[:, -1].all())


def test_tirex_keeps_the_promises(zoo):
    check_encoder(zoo.encoder, channels=2, causal="scaled")
    check_encoder(zoo.encoder, length=PATCH - 3, untrained=False)


def test_longer_windows_are_refused_not_cut(zoo):
    with pytest.raises(EncoderError, match="reads at most 64 steps and this window has 65"):
        zoo.encoder.prepare(batch_of(series(CONTEXT + 1)))


def test_untrained_twin_has_no_memory_of_the_heap(zoo):
    """The package's own constructor leaves the cells uninitialised; two twins of one seed are the same and sane."""
    twin = load_encoder(f"tirex:{zoo.folder}@untrained")
    cell = twin.module.blocks[0].slstm_layer.slstm_cell
    bias = cell._bias_.view(2, 4, WIDTH // 2)
    assert bias[0, 1, [0, -1]].tolist() == [5, -7]
    assert not bool(bias[:, [0, 2, 3]].any())
    assert not bool(cell._recurrent_kernel_.any())
    assert float(twin.module.blocks[2].slstm_layer.fgate.weight.std()) == pytest.approx((2 / 40) ** 0.5, rel=0.3)
    assert twin.fingerprint() == load_encoder(f"tirex:{zoo.folder}@untrained").fingerprint()


def test_checkpoints_are_read_whole_or_not_at_all(zoo, tmp_path):
    with pytest.raises(EncoderError, match=r"has no model\.ckpt"):
        load_encoder(f"tirex:{tmp_path}")
    save(zoo.model, tmp_path, drop=["out_norm.weight"])
    with pytest.raises(EncoderError, match=r"missing out_norm\.weight"):
        load_encoder(f"tirex:{tmp_path}")
    save(zoo.model, tmp_path, state_dict={**zoo.model.state_dict(), "head.bias": torch.zeros(1)})
    with pytest.raises(EncoderError, match=r"unexpected head\.bias"):
        load_encoder(f"tirex:{tmp_path}")
    save(zoo.model, tmp_path, hyper_parameters={**SETTINGS, "depth": 3})
    with pytest.raises(EncoderError, match=r"model\.ckpt does not describe such a model"):
        load_encoder(f"tirex:{tmp_path}")
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    with pytest.raises(EncoderError, match="has no hyper_parameters"):
        load_encoder(f"tirex:{tmp_path}")


def test_names_of_older_checkpoints_are_read(zoo, tmp_path):
    older = {name.replace("blocks.", "block_stack.blocks."): x for name, x in zoo.model.state_dict().items()}
    save(zoo.model, tmp_path, state_dict=older)
    assert load_encoder(f"tirex:{tmp_path}").fingerprint() == zoo.encoder.fingerprint()
