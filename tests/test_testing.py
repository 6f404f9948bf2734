"""`check_encoder` passes a right adapter and catches each way to get one wrong."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from toys import Causal

from tsprobe.encoders import Facts, Tap
from tsprobe.encoders.base import Encoder
from tsprobe.errors import EncoderError, UnknownNameError
from tsprobe.testing import check_encoder
from tsprobe.types import Batch, Inputs, TokenMap

WIDTH = 8


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Model(nn.Module):
    """A token a step: [CLS] then values, causal convolutions; masks padding by construction."""

    def __init__(self):
        super().__init__()
        self.embed, self.cls, self.block = nn.Linear(2, WIDTH), nn.Embedding(1, WIDTH), Causal(WIDTH)

    def forward(self, values, observed):
        x = self.embed(torch.stack([values, observed], -1))
        return self.block(torch.cat([self.cls.weight.expand(len(x), 1, -1), x], 1))


class Good(Encoder):
    """A right adapter; `fault` names a way to get it wrong."""

    def __init__(self, fault=""):
        self.fault = fault
        super().__init__("toy", Model(), {"embedding": Tap("block", "input"), "block.0": Tap("block")}, "block.0",
                         Facts(masks_missing=True))  # fmt: skip

    def prepare(self, batch: Batch) -> Inputs:
        values, observed = batch.values.flatten(0, 1), batch.observed.flatten(0, 1)
        step = torch.arange(values.shape[1] + 1).expand(len(values), -1) - 1
        mask = nn.functional.pad(observed, (1, 0))
        if self.fault == "cls is real":
            mask = nn.functional.pad(observed, (1, 0), value=True)
        start, stop = step * mask, (step + 1) * mask
        if self.fault == "cls is real":
            start, stop = step.clamp(min=0) * mask, (step.clamp(min=0) + 1) * mask
        match self.fault:
            case "batch is changed":
                batch.values.mul_(2)
            case "scaled by the batch":
                values = values / values.std()
            case "padding is read":
                values = values - values.mean(-1, keepdim=True)
            case "later steps are read":
                values = values - values.sum(-1, keepdim=True) * 0.01
            case "later steps are read in order" | "everything moves, and shifted":
                ramp = torch.arange(values.shape[1]).float()
                values = (values - (values * ramp).sum(-1, keepdim=True) * 0.001) * observed
                if "shifted" in self.fault:
                    start, stop = (start - 3).clamp(min=0) * mask, (stop - 3).clamp(min=1) * mask
            case "centred":
                values = _centred(values, observed)
            case "scaled and shifted":  # a bump then moves all tokens
                values = _centred(values, observed)
                start, stop = (start - 3).clamp(min=0) * mask, (stop - 3).clamp(min=1) * mask
            case "missing is NaN":
                values = torch.where(observed, values, torch.nan)
            case "missing is not masked":
                mask = nn.functional.pad(torch.ones_like(observed), (1, 0))
                mask[:, 1:] &= batch.inside.repeat_interleave(batch.values.shape[1], 0)
                start, stop = step * mask, (step + 1) * mask
            case "shifted":
                start, stop = start.clamp(min=1) - 1, stop.clamp(min=1) - 1
                start, stop = torch.where(step == 0, 0, start), torch.where(step == 0, 1, stop) * mask
            case "map is short":
                mask, start, stop = mask[:, 1:], start[:, 1:], stop[:, 1:]
            case "masked tokens cover":
                stop = stop + ~mask
            case "time runs back":
                start, stop = start.flip(1), stop.flip(1)
                mask = mask.flip(1)
        tokens = TokenMap(mask, start, stop, cls=None if self.fault in ("cls is real", "time runs back") else 0)
        if self.fault == "cls is named but real":
            tokens = TokenMap(mask, start, stop, cls=1)
        return Inputs({"values": values, "observed": observed.float()}, tokens, batch.values.shape[1])

    def run(self, inputs):
        if self.fault == "hooks stay":
            self.module.block.register_forward_hook(lambda *_: None)
        out = super().run(inputs)
        if self.fault == "embeds noise":
            return out * torch.rand(())
        return out

    def fresh_module(self):
        match self.fault:
            case "untrained is trained":
                return self.module
            case "untrained is always the same":
                torch.manual_seed(1)
        return super().fresh_module()


def _centred(values, observed):
    return (values - (values * observed).sum(-1, keepdim=True) / observed.sum(-1, keepdim=True)) * observed


def test_a_right_adapter_passes():
    check_encoder(Good(), channels=2, causal=True)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cls is real", "token 0 at 'embedding' is the same for all series"),
        ("cls is named but real", "the class token must be masked"),
        ("batch is changed", "changes the batch that it is given"),
        ("scaled by the batch", "a series alone and in a batch differ"),
        ("padding is read", "a series alone and padded differ"),
        ("later steps are read", "tokens before a bump"),
        ("later steps are read in order", "tokens before the two where"),
        ("scaled and shifted", "a token does not move where a peak"),
        ("everything moves, and shifted", "the token that moves most"),
        ("missing is NaN", "values that are not finite"),
        ("missing is not masked", "are all missing is not masked"),
        ("shifted", "a bump at step 12 leaves its token unchanged"),
        ("map is short", "its token map"),
        ("masked tokens cover", "masked tokens must cover no steps"),
        ("time runs back", "must follow the order of time"),
        ("hooks stay", "hooks are left"),
        ("untrained is trained", "has the weights of the encoder"),
        ("untrained is always the same", "the same for two seeds"),
    ],
)
def test_a_wrong_adapter_is_caught(fault, message):
    with pytest.raises(EncoderError, match=f"^toy: .*({message})"):
        check_encoder(Good(fault), channels=2, causal="scaled" if "order" in fault or "shifted" in fault else True)


def test_a_scaling_by_the_whole_window_is_no_look_ahead():
    check_encoder(Good("centred"), channels=2, causal="scaled", local=True)
    with pytest.raises(EncoderError, match="tokens before a bump"):
        check_encoder(Good("centred"), channels=2, causal=True)


def test_a_layer_that_never_runs_is_caught():
    encoder = Good()
    encoder.module.idle = nn.Linear(1, 1)
    encoder.taps["idle"] = Tap("idle")
    with pytest.raises(EncoderError, match=re.escape("never reaches idle")):
        check_encoder(encoder)


def test_taps_must_name_modules():
    class Nothing(Good):
        def __init__(self):
            Encoder.__init__(self, "toy", Model(), {"a": Tap("blok")}, "a", Facts())

    with pytest.raises(UnknownNameError, match="'blok'; did you mean 'block'"):
        Nothing()
