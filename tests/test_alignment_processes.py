"""Several processes tune one encoder: what they end with is what one process gets from the mean of their gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tsprobe.alignment.processes import Processes
from tsprobe.alignment.spec import AlignSpec
from tsprobe.alignment.train import Tuning
from tsprobe.encoders import load_encoder
from tsprobe.pretraining.train import rate

SETTINGS = {
    "encoder": "zoo/contrastive",
    "recipe": "dense",
    "teacher": "block.5",
    "study": {"tasks": ["process/k1?n_train=24&n_test=24"]},
    "steps": 3,
    "batch": 4,
    "length": 64,
    "controls": [],
    "free": [],
    "force": True,
    "tracking": {"enabled": False},
}


def test_two_processes_take_the_mean_of_their_gradients(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    done = subprocess.run(
        [*launch, "-m", "tsprobe.cli", "align", str(config), "--out", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("encoder: aligned:") == 1  # the first alone speaks
    found = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)

    spec = AlignSpec.model_validate(SETTINGS)
    one = Tuning(spec, load_encoder("zoo/contrastive"), ("block.5",), [])
    for step in range(spec.steps):
        one.optimiser.zero_grad(set_to_none=True)
        for number in (2 * step, 2 * step + 1):
            parts = one.losses(one.lessons.lesson(number, spec.batch), tuning=True, seed=number)
            (torch.stack(list(parts.values())).sum() / 2).backward()
        for group in one.optimiser.param_groups:
            group["lr"] = rate(step, spec) * group["share"]
        nn.utils.clip_grad_norm_(one.weights, spec.clip)
        one.optimiser.step()
    expected = one.student.encoder.module.state_dict()
    assert set(found["module"]) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found["module"][name], value, rtol=1e-4, atol=1e-6)


def test_a_weight_without_a_gradient_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda grad: grad.add_(1.0))  # what the other process had
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    used.grad = torch.tensor([3.0, 5.0])
    Processes(0, 2).average([used, unused])
    torch.testing.assert_close(used.grad, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(unused.grad, torch.tensor([0.5, 0.5]))


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's norm, of the halved input and the whole weight
def test_passes_in_bfloat16_keep_weights_in_float32() -> None:
    spec = AlignSpec.model_validate(SETTINGS | {"precision": "bfloat16"})
    tuning = Tuning(spec, load_encoder("zoo/contrastive"), ("block.5",), [])
    seen: list[torch.dtype] = []
    linear = next(m for m in tuning.student.encoder.module.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    tuning.advance()
    assert seen[-1] == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in tuning.student.encoder.module.parameters())
