"""What the README says can be typed works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import nn

from tsprobe.alignment import read_align_spec
from tsprobe.atlas import read_atlas_spec
from tsprobe.cli import app
from tsprobe.study import read_spec
from tsprobe.sweep import read_sweep_spec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", README, re.S)
        for line in block.splitlines()
    ]
    inline = re.findall(r"`(tsprobe [a-z]+[^`]*)`", README)
    return [line for line in (*lines, *inline) if line.startswith("tsprobe ")]


def test_the_table_names_every_command() -> None:
    named = {line.split()[1] for line in commands()}
    assert named == set(typer.main.get_command(app).list_commands(None))  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize("line", commands())
def test_commands_and_options_exist(line: str) -> None:
    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line)
    command = group.get_command(None, name)  # type: ignore[attr-defined, arg-type]
    assert command is not None
    with command.make_context(name, arguments) as context:  # parses, and refuses an unknown option
        assert context.info_name == name


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.M)
    assert targets[:2] == ["quickstart", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_linked_files_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid(config: Path) -> None:
    if config.stem.startswith("align_"):
        assert read_align_spec(config).study.tasks
    elif config.stem.startswith("atlas"):
        assert read_atlas_spec(config).parts
    elif config.stem.startswith("sweep"):
        assert read_sweep_spec(config).trials
    else:
        assert read_spec(config).tasks


def test_own_network_and_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block under "Your own network, your own data", with a small transformer and noise."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "my_module" in b]

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(1, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, S, 1]
            return self.encoder(self.embed(x))

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 1, 16)), np.arange(40) % 2
    names = {"my_module": Mine(), "X_train": x[:20], "y_train": y[:20], "X_test": x[20:], "y_test": y[20:]}
    monkeypatch.chdir(tmp_path)
    import tsprobe as tp

    exec(
        block.replace("tp.probe(encoder, task)", "tp.probe(encoder, task, controls=('untrained',))"),
        {"tp": tp, **names},
    )
    assert (tmp_path / "mine.html").stat().st_size > 1e6
