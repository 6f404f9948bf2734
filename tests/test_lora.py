"""Low-rank tuning: only what was added is trained, and what is saved needs no peft."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from alignable import planted, spec
from torch import nn

from tsprobe.alignment.lora import insert_lora, merge_lora
from tsprobe.alignment.train import Tuning, tune
from tsprobe.capture import Reading, extract
from tsprobe.data.panel import as_panel
from tsprobe.encoders import aligned, load_encoder
from tsprobe.errors import MissingPackageError, SpecError
from tsprobe.study.progress import silent

pytest.importorskip("peft")
PANEL = as_panel(np.random.default_rng(0).standard_normal((3, 1, 96)).astype(np.float32))
TUNED = aligned.Tuned("zoo/jepa", "dense", "nothing")


def test_inserted_products_change_nothing_and_merged_ones_what_they_did() -> None:
    encoder = load_encoder("zoo/jepa")
    student = aligned.retuned(encoder, "student", TUNED)
    names = set(dict(student.module.named_parameters()))
    added = insert_lora(student, 4, ())
    assert len(added) == 2 * 4 * 12  # two for each of four linear layers of twelve blocks
    start = extract(student, PANEL, Reading())
    assert all((start.arrays[x] == extract(encoder, PANEL, Reading()).arrays[x]).all() for x in ("block.0", "norm"))
    with torch.no_grad():
        for parameter in added:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    beside = extract(student, PANEL, Reading())
    assert not np.allclose(beside.arrays["norm"], start.arrays["norm"], atol=1e-2)
    merge_lora(student.module)
    merged = extract(student, PANEL, Reading())
    for layer in merged.layers:  # the same sums in another order
        assert merged.arrays[layer] == pytest.approx(beside.arrays[layer], abs=2e-4)
    assert set(dict(student.module.named_parameters())) == names


def test_the_frozen_weights_are_frozen_and_the_folder_needs_no_peft(tmp_path: Path) -> None:
    encoder = load_encoder("zoo/jepa")
    asked = spec(
        encoder="zoo/jepa", tuning="lora", rank=2, targets=["qkv"], steps=3, rate=1e-2, batch=4, layer_scale=False,
        stochastic_depth=0.0,
    )  # fmt: skip
    tuning = Tuning(asked, encoder, ("block.5",), [])
    assert {p.shape for p in tuning.weights} == {(2, 128), (384, 2)}
    for _ in range(2):
        tuning.advance()
    trained = dict(tuning.student.encoder.module.named_parameters())
    for name, parameter in encoder.module.named_parameters():
        place, _, last = name.rpartition(".")
        same = trained.get(name, trained.get(f"{place}.base_layer.{last}"))
        assert same is not None
        assert torch.equal(same, parameter), name
    whole = tune(Tuning(asked, encoder, ("block.5",), []), tmp_path / "b", stage=silent, name="b")
    tune(Tuning(asked, encoder, ("block.5",), []), tmp_path / "c", stage=silent, name="c", until=2)
    resumed = tune(Tuning(asked, encoder, ("block.5",), []), tmp_path / "c", stage=silent, name="c")
    assert whole is not None
    assert resumed is not None
    assert whole.fingerprint() == resumed.fingerprint()
    loaded = load_encoder(f"aligned:{tmp_path / 'b' / 'encoder'}")
    changed = {n for n, p in loaded.module.named_parameters() if not torch.equal(p, encoder.module.get_parameter(n))}
    assert changed <= {f"backbone.blocks.{i}.qkv.weight" for i in range(12)}
    assert all(type(part).__module__.partition(".")[0] != "peft" for part in loaded.module.modules())


def test_what_torch_reads_without_calling_is_left_alone_and_unknown_names_are_refused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.up = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.up(self.attention(x, x, x)[0])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.blocks = nn.Linear(1, 4), nn.ModuleList(Block() for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x[..., None])
            for block in self.blocks:
                x = block(x)
            return x

    encoder = load_encoder(Net(), blocks="blocks.*", prepare="bs", tokens=1, name="net")
    with pytest.raises(SpecError, match=r"no linear layer of the blocks of net is named 'down' \(up\)"):
        insert_lora(encoder, 2, ("down",))
    assert len(insert_lora(encoder, 2, ())) == 4  # `up` of two blocks; not `enter`, which is no part of a block
    with pytest.raises(SpecError, match="have no linear layers"):
        insert_lora(load_encoder(nn.Sequential(nn.Conv1d(1, 1, 1)), blocks="*", prepare="bcs", tokens=1), 2, ())


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"tuning=lora needs the package .peft.*tsprobe\[align\]"):
        insert_lora(planted(), 2, ())


def gradients(tuning: str, again: bool) -> tuple[float, list[torch.Tensor], int]:
    """The loss of a batch, the gradients, and how many numbers the forward pass has kept for them."""
    asked = spec(encoder="zoo/jepa", tuning=tuning, rank=2, batch=4, steps=2, checkpointing=again, mask=0.25)
    tuned = Tuning(asked, load_encoder("zoo/jepa"), ("block.5",), [])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        total = torch.stack(list(tuned.losses(tuned.lessons.lesson(0, 4), tuning=True, seed=3).values())).sum()
    total.backward()
    return float(total.detach()), [p.grad for p in tuned.weights if p.grad is not None], sum(kept)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_blocks_that_run_again_give_the_same_gradients_and_keep_less(tuning: str) -> None:
    (loss, due, much), (same, found, little) = (gradients(tuning, again) for again in (False, True))
    assert same == loss
    assert len(found) == len(due) > 20
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(found, due, strict=True))
    assert little < 0.5 * much
