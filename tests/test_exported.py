"""Encoders as graphs: what comes out of the file is what the encoder gives, for any number of series."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tsprobe as tp
from tsprobe.errors import EncoderError
from tsprobe.types import Batch


def batch(n: int, channels: int = 1) -> Batch:
    return Batch.whole(torch.randn(n, channels, 64, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", ["zoo/contrastive", "zoo/jepa"])
def test_a_truncated_encoder_leaves_and_comes_back(name: str, tmp_path: Path) -> None:
    encoder = tp.load_encoder(name).truncate("block.3")
    torch.export.save(encoder.export(batch(2)), tmp_path / "encoder.pt2")
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    inputs = encoder.prepare(batch(5))
    tokens = program(inputs.kwargs)
    torch.testing.assert_close(tokens, encoder.run(inputs))
    assert tokens.shape == (5, 8, 128)
    assert len(program.state_dict()) < len(tp.load_encoder(name).module.state_dict()) / 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0].unflatten(1, (-1, 4))
        for block in self.blocks:
            x = x + block(x)
        return x


class Undecided(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if float(y.sum()) > 0 else -y  # a branch on a value is no graph


def test_the_users_own_network_is_exported() -> None:
    encoder = tp.load_encoder(Net(), blocks="blocks.*", tokens=4, name="net")
    program = encoder.export(batch(3)).module()
    inputs = encoder.prepare(batch(7))
    torch.testing.assert_close(program(inputs.kwargs), encoder.run(inputs))


def test_what_cannot_be_exported_says_so() -> None:
    encoder = tp.load_encoder(Undecided(), blocks="blocks.*", tokens=4, name="undecided")
    with pytest.raises(EncoderError, match="undecided cannot be exported: "):
        encoder.export(batch(2))
    with pytest.raises(EncoderError, match=r"does not run to block\.2 and end there"):
        tp.load_encoder("fracast").truncate("block.2").export()
