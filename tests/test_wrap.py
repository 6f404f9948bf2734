"""Modules of one's own as encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import Causal

from tsprobe.capture import read_layers
from tsprobe.encoders import Tap, load_encoder
from tsprobe.errors import EncoderError, UnknownNameError
from tsprobe.testing import check_encoder
from tsprobe.types import Batch, TokenMap

WIDTH = 8


class Patched(nn.Module):
    """A small ViT for series `[B, S]`: patches of `patch` steps, class token if asked for, transformer, norm, pool."""

    def __init__(self, patch=4, depth=3, cls=False, batch_first=True, channels=None):
        super().__init__()
        self.patch, self.batch_first, self.channels = patch, batch_first, channels
        self.embed = nn.Linear(patch * (channels or 1), WIDTH)
        self.cls = nn.Embedding(1, WIDTH) if cls else None
        shape = {"nhead": 2, "dim_feedforward": 16, "batch_first": batch_first, "norm_first": True}
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, **shape) for _ in range(depth))
        self.encoder.norm = nn.LayerNorm(WIDTH)

    def forward(self, series):
        if self.channels is None:
            assert series.ndim == 2, "series are [B, S]"
            x = self.embed(series.unfold(-1, self.patch, self.patch))  # [B, T, D]
        else:
            assert series.shape[1] == self.channels, "series are [B, C, S]"
            x = self.embed(series.unfold(-1, self.patch, self.patch).transpose(1, 2).flatten(2))
        if self.cls is not None:
            x = torch.cat([self.cls.weight.expand(len(x), 1, -1), x], 1)
        x = x if self.batch_first else x.transpose(0, 1)
        for layer in self.encoder.layers:
            x = layer(x)
        x = self.encoder.norm(x)
        return (x if self.batch_first else x.transpose(0, 1)).mean(1)


class Convolutions(nn.Module):
    """Takes `[B, C, S]` or, turned, `[B, S, C]`; a token is a step or, with a stride, every so many."""

    def __init__(self, channels=2, stride=1, turned=False):
        super().__init__()
        self.first, self.turned = nn.Conv1d(channels, WIDTH, 3, stride=stride, padding=1), turned
        self.blocks = nn.Sequential(*(Causal(WIDTH) for _ in range(12)))

    def forward(self, series):
        return self.blocks(self.first(series.transpose(1, 2) if self.turned else series).transpose(1, 2))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch_of(b=5, c=2, s=24):
    values = torch.randn(b, c, s)
    return Batch(values, torch.ones(b, c, s, dtype=torch.bool), torch.full((b,), s))


def read(encoder, batch):
    layers = {}
    with torch.inference_mode():
        inputs = encoder.prepare(batch)
        read_layers(encoder, inputs, encoder.taps, lambda name, x: layers.__setitem__(name, x.clone()))
    return inputs, layers


def spans(tokens, row=0):
    real = tokens.mask[row]
    return list(zip(tokens.start[row][real].tolist(), tokens.stop[row][real].tolist(), strict=True))


def test_a_transformer_is_read_at_its_blocks_and_norm():
    """Against a plain loop; the fused kernel of `nn.TransformerEncoderLayer` must not make the difference."""
    module = Patched().eval()
    encoder = load_encoder(module, blocks="encoder.layers.*", final="encoder.norm", objective="jepa", name="vit")
    batch = batch_of()
    inputs, layers = read(encoder, batch)
    assert list(layers) == ["embedding", "block.0", "block.1", "block.2", "norm"]
    assert (encoder.final, encoder.name, encoder.facts.objective, inputs.rows) == ("norm", "vit", "jepa", 2)
    x = module.embed(batch.values.flatten(0, 1).unfold(-1, 4, 4))
    states = [x]
    for layer in module.encoder.layers:
        x = x + layer.self_attn(*[layer.norm1(x)] * 3, need_weights=False)[0]
        x = x + layer.linear2(layer.linear1(layer.norm2(x)).relu())
        states.append(x)
    states.append(module.encoder.norm(x))
    for name, expected in zip(layers, states, strict=True):
        torch.testing.assert_close(layers[name], expected, rtol=1e-5, atol=1e-5)  # float32, one fused, one not
    with torch.inference_mode():  # no hooks: the fused kernel may run
        torch.testing.assert_close(encoder.run(inputs), layers["norm"].mean(1), rtol=1e-5, atol=1e-5)
    assert spans(inputs.tokens_of("block.1")) == [(4 * i, 4 * i + 4) for i in range(6)]


def test_the_callers_module_keeps_its_mode_and_gradients():
    module = Patched().train()
    encoder = load_encoder(module, blocks="encoder.layers.*")
    read(encoder, batch_of())
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert not any(p.requires_grad for p in encoder.module.parameters())


@pytest.mark.parametrize(
    ("module", "layout", "rows", "joint"),
    [
        (lambda: Patched(), "bs", 2, False),
        (lambda: Patched(channels=2), "bcs", 1, True),
        (lambda: Convolutions(), "bcs", 1, True),
        (lambda: Convolutions(turned=True), "bsc", 1, True),
    ],
)
def test_the_way_in_is_found_or_given(module, layout, rows, joint):
    module = module()
    blocks = "encoder.layers" if isinstance(module, Patched) else "blocks"
    found, given = load_encoder(module, blocks=blocks), load_encoder(module, blocks=blocks, prepare=layout)
    batch = batch_of()
    (one, here), (two, there) = read(found, batch), read(given, batch)
    assert one.rows == two.rows == rows
    assert found.facts.joint_channels == given.facts.joint_channels == joint
    for name, x in here.items():
        torch.testing.assert_close(x, there[name], rtol=0, atol=0)


def test_members_come_in_natural_order():
    encoder = load_encoder(Convolutions(), blocks="blocks.*")
    assert [tap.path for tap in encoder.taps.values()] == ["blocks.0", *(f"blocks.{i}" for i in range(12))]
    assert encoder.final == "block.11"
    assert [tap.path for tap in load_encoder(Convolutions(), blocks=["blocks.3", "blocks.1"]).taps.values()] == [
        "blocks.3", "blocks.3", "blocks.1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("final", "layer", "shape"),
    [(None, "block.2", (10, 6)), ("block.1", "block.1", (10, 6)), ("encoder.layers.0", "block.0", (10, 6)),
     ("encoder.norm", "norm", (10, 6)), ("output", "output", (10, 1))],
)  # fmt: skip
def test_final_is_a_layer_a_path_or_the_output(final, layer, shape):
    encoder = load_encoder(Patched(), blocks="encoder.layers.*", final=final)
    inputs, layers = read(encoder, batch_of())
    assert encoder.final == layer
    assert layers[layer].shape == (*shape, WIDTH)
    assert spans(inputs.tokens_of(layer)) == ([(0, 24)] if shape[1] == 1 else [(4 * i, 4 * i + 4) for i in range(6)])


def test_a_class_token_is_named_with_tokens():
    module = Patched(cls=True)
    with pytest.raises(EncoderError, match=r"'embedding' has 7 tokens for 24 steps; say with tokens="):
        read(load_encoder(module, blocks="encoder.layers.*"), batch_of())
    encoder = load_encoder(module, blocks="encoder.layers.*", tokens={"prefix": 1, "patch": 4})
    inputs, _ = read(encoder, batch_of())
    tokens = inputs.tokens_of("block.0")
    assert tokens.cls == 0
    assert encoder.facts.patch == 4
    assert not bool(tokens.mask[:, 0].any())
    assert spans(tokens) == [(4 * i, 4 * i + 4) for i in range(6)]
    last = load_encoder(module, blocks="encoder.layers.*", tokens={"suffix": 1, "cls": -1, "patch": 4})
    tokens = read(last, batch_of())[0].tokens_of("block.0")
    assert (tokens.cls, tokens.mask[0].tolist()) == (6, [True] * 6 + [False])
    check_encoder(encoder, length=24)


def test_a_stride_overlaps_and_a_wrong_one_is_refused():
    encoder = load_encoder(Convolutions(stride=2), blocks="blocks", tokens={"patch": 3, "stride": 2})
    inputs, _ = read(encoder, batch_of(s=9))
    assert spans(inputs.tokens_of("embedding")) == [(0, 3), (2, 5), (4, 7), (6, 9), (8, 9)]
    wrong = load_encoder(Convolutions(stride=2), blocks="blocks", tokens={"patch": 4})
    with pytest.raises(EncoderError, match=r"5 tokens for 9 steps, which tokens=.* does not explain"):
        read(wrong, batch_of(s=9))
    with pytest.raises(EncoderError, match="steps a token, a dict of patch, stride"):
        load_encoder(Convolutions(), blocks="blocks", tokens={"size": 4})


def test_tokens_and_arguments_may_be_functions():
    def prepare(batch):
        return {"series": batch.values.double()}

    def tokens(batch):
        start = torch.arange(24).expand(len(batch.lengths), -1)
        return TokenMap(start > 0, start, start + (start > 0))  # the first is special

    encoder = load_encoder(Convolutions(), blocks="blocks", prepare=prepare, tokens=tokens)
    inputs, layers = read(encoder, batch_of())
    assert layers["block.0"].dtype == torch.float32  # brought to the dtype of the weights
    assert spans(inputs.tokens_of("block.0")) == [(i, i + 1) for i in range(1, 24)]
    as_tuple = load_encoder(Convolutions(), blocks="blocks", prepare=lambda batch: (batch.values,))
    check_encoder(as_tuple, length=24, channels=2)


class Folded(nn.Module):
    """Takes `[B, C, S]`; its blocks see every channel as a row, in four axes or folded into the first."""

    def __init__(self, axes):
        super().__init__()
        self.axes, self.blocks = axes, nn.ModuleList(nn.Linear(1, 1) for _ in range(2))

    def forward(self, x):
        x = x[..., None] if self.axes == 4 else x.flatten(0, 1)[..., None]
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("axes", [3, 4])
def test_channels_that_become_rows_inside_are_seen(axes):
    encoder = load_encoder(Folded(axes), blocks="blocks.*", prepare="bcs")
    inputs, layers = read(encoder, batch_of())
    assert (inputs.rows, layers["block.1"].shape) == (2, (10, 24, 1))
    assert inputs.tokens_of("block.1").mask.shape == (10, 24)


def test_sequence_first_blocks_are_refused_with_the_way_out():
    module = Patched(batch_first=False)
    with pytest.raises(EncoderError, match=r"batch_first=False.*select=lambda"):
        read(load_encoder(module, blocks="encoder.layers.*", prepare="bs"), batch_of())
    blocks = [Tap(f"encoder.layers.{i}", select=lambda x: x.transpose(0, 1)) for i in range(3)]
    turned = load_encoder(module, blocks=blocks, prepare="bs")
    straight = Patched()
    straight.load_state_dict(module.state_dict())
    batch = batch_of()
    _, layers = read(turned, batch)
    _, expected = read(load_encoder(straight, blocks="encoder.layers.*"), batch)
    for name, x in layers.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-5, atol=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block, self.idle = nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(1, 1)

    def forward(self, x):  # [R, S]
        x = self.embed(x[..., None])
        for _ in range(3):
            x = x + self.block(x).tanh()
        return x


def test_blocks_that_run_often_or_never_are_errors():
    with pytest.raises(EncoderError, match=r"'block' \(block.0\) runs 3 times in a forward pass; name the calls"):
        read(load_encoder(Tied(), blocks="block", prepare="bs"), batch_of())
    with pytest.raises(EncoderError, match=r"'idle' \(embedding\) runs 0 times"):
        read(load_encoder(Tied(), blocks="idle", prepare="bs"), batch_of())
    module = Tied()
    encoder = load_encoder(module, blocks=[Tap("block", call=i) for i in range(3)], prepare="bs")
    batch = batch_of()
    _, layers = read(encoder, batch)
    x = module.embed(batch.values.flatten(0, 1)[..., None])
    torch.testing.assert_close(layers["embedding"], x)
    for i in range(3):
        torch.testing.assert_close(layers[f"block.{i}"], module.block(x))
        x = x + module.block(x).tanh()


def test_what_cannot_be_found_out_is_told():
    with pytest.raises(EncoderError, match=r"in none of the usual ways.*bcs \[3, 1, 24\].*series are \[B, C, S\].*bs "):
        read(load_encoder(Patched(channels=3), blocks="encoder.layers.*"), batch_of(c=1))
    with pytest.raises(EncoderError, match="as bcs and as bsc, with unlike results: say which"):
        read(load_encoder(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), blocks="*"), batch_of(c=4, s=4))
    with pytest.raises(UnknownNameError, match=r"'encoder.layer.\*'; did you mean 'encoder.layers.\*'"):
        load_encoder(Patched(), blocks="encoder.layer.*")
    with pytest.raises(UnknownNameError, match=r"did you mean 'encoder\.norm'"):
        load_encoder(Patched(), blocks="encoder.layers.*", final="encoder.nrm")
    with pytest.raises(UnknownNameError, match="'objektive'; did you mean 'objective'"):
        load_encoder(Patched(), blocks="encoder.layers.*", objektive="jepa")
    with pytest.raises(UnknownNameError, match="'bst'"):
        load_encoder(Patched(), blocks="encoder.layers.*", prepare="bst")


def test_padding_and_missing_values_are_refused_unless_declared():
    batch = batch_of()
    short = Batch(batch.values, batch.observed, torch.tensor([24, 24, 24, 24, 9]))
    observed = batch.observed.clone()
    observed[0, 0, 8:12] = False
    holed = Batch(batch.values * observed, observed, batch.lengths)
    encoder = load_encoder(Patched(), blocks="encoder.layers.*")
    with pytest.raises(EncoderError, match="cannot mask padding"):
        encoder.prepare(short)
    with pytest.raises(EncoderError, match="cannot mask missing values"):
        encoder.prepare(holed)
    able = load_encoder(Patched(), blocks="encoder.layers.*", prepare="bs", pads=True, masks_missing=True)
    assert spans(able.prepare(short).tokens_of("block.0"), row=9) == [(0, 4), (4, 8), (8, 9)]
    assert [a for a, _ in spans(able.prepare(holed).tokens_of("block.0"))] == [0, 4, 12, 16, 20]


def test_untrained_twin_of_a_plain_transformer_and_where_it_needs_help():
    module = Patched()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    twin = load_encoder(module, blocks="encoder.layers.*").untrained(seed=0)
    state = twin.module.state_dict()
    assert bool(state["encoder.layers.1.self_attn.in_proj_weight"].any())
    assert bool((state["encoder.norm.weight"] == 1).all())
    assert not bool(state["encoder.layers.1.self_attn.out_proj.bias"].any())  # as MultiheadAttention leaves it
    module.position = nn.Parameter(torch.zeros(3))
    with pytest.raises(EncoderError, match=r"cannot redraw the weights of Patched.*fresh="):
        load_encoder(module, blocks="encoder.layers.*").untrained()
    fresh = load_encoder(module, blocks="encoder.layers.*", fresh=Patched).untrained(seed=3)
    torch.manual_seed(3)
    expected = Patched().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in fresh.module.state_dict().items())


def test_untrained_leaves_the_callers_generator_alone():
    encoder = load_encoder(Patched(), blocks="encoder.layers.*")
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    encoder.untrained(seed=0)
    assert torch.equal(torch.rand(2), expected)
