"""An encoder cut at a layer gives what the layer gave, with less behind it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from official import batch_of, read, save_all, series
from torch import nn

import tsprobe as tp
from tsprobe.encoders import load_encoder
from tsprobe.encoders.truncated import Passed
from tsprobe.errors import EncoderError, UnknownNameError

SHIPPED = ["zoo/contrastive", "zoo/forecasting", "zoo/jepa", "zoo/reconstruction", "zoo/next-latent", "fracast"]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp)


def weights(encoder):
    return sum(p.numel() for p in encoder.module.parameters())


def same_layers(encoder, layer):
    steps = min(encoder.facts.context or 256, 256)
    cut, batch = encoder.truncate(layer), batch_of(series(steps, steps, channels=1))
    _, whole = read(encoder, batch)
    _, part = read(cut, batch)
    assert list(part) == list(whole)[: list(whole).index(layer) + 1]
    for name in part:
        # weights that are copied lie elsewhere in memory, and sums may be taken in another order
        torch.testing.assert_close(part[name], whole[name], rtol=1e-5, atol=1e-5)
    return cut


@pytest.mark.parametrize("name", SHIPPED)
def test_every_layer_up_to_the_cut_is_what_it_was(name):
    encoder = load_encoder(name)
    middle = [layer.name for layer in encoder.layers if layer.depth is not None][3]
    before = encoder.fingerprint()
    cut = same_layers(encoder, middle)
    assert (cut.final, cut.final_of_steps, cut.layers[-1].depth) == (middle, middle, 1.0)
    assert encoder.fingerprint() == before  # the whole one is left as it is
    assert weights(cut) < weights(encoder)
    if name == "fracast":  # one block with tied weights runs before and after: it is read, not run
        assert not cut.cut.runs_alone
    else:
        assert weights(cut) < 0.6 * weights(encoder)
        assert cut.cut.runs_alone


def test_official_architectures_are_cut_too(official):
    for family, folder in official.folders.items():
        name = f"{family}:{folder}"
        encoder = load_encoder(name)
        blocks = [layer for layer in encoder.taps if layer.startswith("block.")]
        cut = same_layers(encoder, blocks[0])
        assert weights(cut) < weights(encoder), name


def test_the_network_itself_ends_there():
    cut = load_encoder("zoo/contrastive").truncate("block.2")
    inputs, layers = read(cut, batch_of(series(256, channels=1)))
    assert torch.equal(cut.run(inputs), layers["block.2"])
    assert sum(isinstance(part, Passed) for part in cut.module.modules()) == 12 - 3 + 2


def test_its_untrained_twin_is_cut_at_the_same_place():
    cut = load_encoder("zoo/contrastive").truncate("block.2")
    assert weights(cut.untrained()) == weights(cut)
    assert copy.deepcopy(cut).truncate("block.0").final == "block.0"


def test_a_study_of_the_cut_encoder_scores_what_the_layer_did():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = np.sin(np.arange(128) * (0.2 + 0.2 * y[:, None]) + rng.uniform(0, 6, (40, 1)))[:, None]
    task = tp.Classification("waves", train=(x[:20], y[:20]), test=(x[20:], y[20:]))
    encoder = load_encoder("zoo/contrastive")
    found = []
    for one in (encoder, encoder.truncate("block.3")):
        scores = tp.probe([one], [task], controls=["chance"]).scores
        found.append(scores[(scores.encoder == one.name) & (scores.layer == "block.3")].score.item())
    assert found[0] == found[1] > 0.5


def test_what_gives_tuples_is_passed_as_a_tuple():
    x = torch.ones(2)
    assert Passed(0)(x) is x
    assert Passed(3)(x) == (x, None, None)
    assert Passed(2)(hidden=x)[0] is x


def test_what_cannot_be_cut_is_one_clear_error():
    encoder = load_encoder("zoo/contrastive")
    with pytest.raises(UnknownNameError, match=r"block\.3"):
        encoder.truncate("block3")
    with pytest.raises(EncoderError, match="past the trunk"):
        encoder.truncate("projector")


class Backwards(nn.Module):
    """A network whose first block is scaled by the last one: without that, it is another."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        tokens = self.blocks[0](x.transpose(1, 2).unflatten(1, (-1, 4))[..., 0] * self.blocks[1].weight.sum())
        return self.blocks[1](tokens)


def test_a_network_that_needs_what_comes_after_is_refused():
    encoder = tp.load_encoder(Backwards(), blocks="blocks.*", tokens=4)
    with pytest.raises((EncoderError, AttributeError)):
        encoder.truncate("block.0")
