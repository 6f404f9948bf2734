"""A tuned encoder goes to a hub, through the hub's own client and a server on loopback, and comes back the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, hub

import tsprobe as tp
from tsprobe.alignment.publish import WEIGHTS, card, publish
from tsprobe.errors import EncoderError, SpecError

LIFT = """encoder,recipe,control,family,task,metric,final_before,hidden_before,final_after,cut,lift,lift_low,lift_high
zoo/contrastive,dense,,dense,dense/events,r2,0.292,0.526,0.502,0.526,0.9,0.82,0.98
zoo/contrastive,dense,unregularised,dense,dense/<b>|x,r2,0.292,0.526,0.448,0.526,0.7,0.6,0.8
"""
COMMAND = """
import sys
from pathlib import Path
import tsprobe as tp
from tsprobe.alignment.publish import publish
from tsprobe.errors import TsprobeError
try:
    print(publish(Path(sys.argv[1]), "lab/tuned", private=sys.argv[2] == "private"))
    print(tp.load_encoder("aligned:lab/tuned").fingerprint())
except TsprobeError as error:
    print(error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As `tsprobe align` leaves it, with shipped weights."""
    for name in WEIGHTS:
        source = Path(tp.__file__).parent / "zoo" / "contrastive-dense" / name
        (tmp_path / "run" / "encoder").mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "run" / "encoder" / name)
    (tmp_path / "run" / "lift.csv").write_text(LIFT)
    return tmp_path / "run"


def said(folder: Path, address: str, *, private: bool = True, token: str = TOKEN) -> list[str]:
    """What a process says whose hub is at the address: the client reads that when it is imported."""
    with_hub = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HOME": str(folder.parent / "hf")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | with_hub
    command = [sys.executable, "-c", COMMAND, str(folder), "private" if private else "public"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.integration
def test_what_is_uploaded_is_loaded_from_there(folder: Path) -> None:
    with hub() as server:
        url, fingerprint = said(folder, server.address)
    assert url == f"{server.address}/lab/tuned"
    assert fingerprint == tp.load_encoder(f"aligned:{folder / 'encoder'}").fingerprint()
    assert server.private == {"lab/tuned": True}
    assert set(server.files["lab/tuned"]) == {"config.json", "model.safetensors", "README.md", "lift.csv"}
    assert server.files["lab/tuned"]["lift.csv"].decode() == LIFT


@pytest.mark.integration
def test_a_hub_that_refuses_or_is_not_there_is_told_in_a_line(folder: Path) -> None:
    with hub() as server:
        (refused,) = said(folder, server.address, token="hf_of_somebody_else")
        gone = server.address
    assert refused.startswith("the hub refuses lab/tuned: ")
    (absent,) = said(folder, gone)
    assert absent.startswith("the hub cannot be reached")
    assert absent.endswith("is whole")


def test_the_page_of_a_repository_has_its_table_and_no_markup_of_names(folder: Path) -> None:
    text = card(folder, "lab/tuned")
    assert "| dense | dense/events | r2 | 0.292 | 0.526 | 0.502 | 0.900 | 0.820 | 0.980 |" in text
    assert 'tp.load_encoder("aligned:lab/tuned")' in text
    assert "unregularised" not in text
    lift = folder / "lift.csv"
    lift.write_text(LIFT.replace(",unregularised,", ",,"))
    assert "dense/ b  x" in card(folder, "lab/tuned")


def test_what_cannot_be_uploaded_is_refused(folder: Path) -> None:
    for name in ("tuned", "../tuned", "lab/tuned/more", "lab/", ""):
        with pytest.raises(SpecError, match="USER/NAME"):
            publish(folder, name)
    (folder / "encoder" / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"no tuned encoder to upload \(model.safetensors"):
        publish(folder, "lab/tuned")


def test_a_wrong_name_is_told_before_the_tuning(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tsprobe.cli import app

    config = tmp_path / "align.yaml"
    config.write_text(
        json.dumps({"encoder": "zoo/contrastive", "recipe": "dense", "study": {"tasks": ["ucr/GunPoint"]}})
    )
    result = CliRunner().invoke(app, ["align", str(config), "--out", str(tmp_path / "out"), "--push", "nowhere"])
    assert isinstance(result.exception, SpecError)
    assert not (tmp_path / "out").exists()
