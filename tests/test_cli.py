"""The command line as its users run it: exit codes, one clear line for a mistake, and studies killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from planted import planted_encoder, planted_task

from tsprobe.cli import main
from tsprobe.embed import embed

TESTS = Path(__file__).parent


def tsprobe(*arguments: object, expect: int = 0) -> None:
    """Run the command in this process and check its exit code."""
    sys.argv = ["tsprobe", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    assert code == expect


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    encoder = {"source": "python:planted:build", "name": "planted", "blocks": "blocks.*", "prepare": "bs", "tokens": 8}
    settings = {
        "encoders": [encoder], "tasks": ["process/k1?n_train=60&n_test=40&length=64"],
        "controls": ["untrained", "chance"],
        "poolings": ["mean", "max"], "probes": ["ridge", "knn"], "resamples": 200, "tracking": {"enabled": False},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def test_run_prints_verdicts_and_the_report(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    tsprobe("run", config, "--out", out)
    printed = capsys.readouterr().out
    assert "planted@untrained" in printed
    assert "verdict" in printed
    assert str(out / "report.html") in printed
    assert (out / "report.html").stat().st_size > 1e6
    tsprobe("report", out)
    assert str(out / "report.html") in capsys.readouterr().out


def test_default_folder_is_named_for_the_config(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    tsprobe("run", config, "--set", "probes=[ridge]", "--set", "controls=[]")
    assert (config.parent / "runs" / "small" / "verdicts.csv").exists()


def test_fresh_forgets_and_resume_keeps(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tsprobe("run", config, "--out", out)
    cell = next(out.glob("cells/*/*/*.npz"))
    (out / "mine.txt").write_text("not tsprobe's")
    stamp = cell.stat().st_mtime_ns
    tsprobe("run", config, "--out", out)
    assert cell.stat().st_mtime_ns == stamp
    tsprobe("run", config, "--out", out, "--fresh")
    assert cell.stat().st_mtime_ns != stamp
    assert (out / "mine.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "no such config: absent.yaml"),
        (["run", "{config}", "--set", "poolingz=[mean]"], "unknown setting 'poolingz'; did you mean 'poolings'"),
        (["run", "{config}", "--set", "encoders=[fracas]"], "unknown encoder 'fracas'; did you mean 'fracast'"),
        (["run", "{config}", "--set", "tasks=[ucr/GunPiont]"], "GunPoint"),
        (["run", "{config}", "--set", "device=cuda:99"], "device 'cuda:99' cannot be used here"),
        (["run", "{config}", "--set", "encoders=['chronos-bolt:./absent']"], "absent"),
        (["report", "absent"], "absent is no finished study"),
        (["embed", "fracast", "absent.npy", "--out", "x.npy"], "no such file: absent.npy"),
        (["embed", "fracast", "series.npy", "--out", "x.npy"], "--layer best needs labels"),
        (["embed", "fracast", "series.npy", "--layer", "blok.3", "--out", "x.npy"], "did you mean 'block.3'"),
        (["embed", "fracast", "broken.npy", "--layer", "norm", "--out", "x.npy"], "broken.npy cannot be read"),
        (["embed", "fracast", "empty.npy", "--layer", "norm", "--out", "x.npy"], "no series"),
        (["embed", "fracast", "holes.npy", "--layer", "norm", "--nan", "error", "--out", "x.npy"], "missing"),
        (["embed", "fracast", "series.npy", "--layer", "norm", "--pooling", "cls", "--out", "x.npy"], "no class token"),
        (["embed", "fracast", "series.npy", "--layer", "norm", "--out", "no-dir-file/x.npy"], "cannot write"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(config.parent)
    series = np.random.default_rng(0).standard_normal((3, 1, 64)).astype(np.float32)
    np.save("series.npy", series)
    np.save("empty.npy", series[:0])
    Path("broken.npy").write_bytes(b"\x93NUMPY nonsense")
    Path("no-dir-file").write_text("a file where a folder should be")
    series[0, 0, 3] = np.nan
    np.save("holes.npy", series)
    tsprobe(*(a.format(config=config) for a in arguments), expect=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_a_pair_that_cannot_run_exits_with_1_and_keeps_the_rest(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = "tasks=['process/k1?n_train=60&n_test=40&length=64','process/k1?n_train=60&n_test=40&length=65']"
    tsprobe("run", config, "--set", tasks, "--set", "controls=[]", "--out", tmp_path / "out", expect=1)
    assert "left out: planted on process/k1?n_train=60&n_test=40&length=65" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out" / "verdicts.csv")) == 1


def test_embed_writes_what_the_study_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = "process/k1?n_train=40&n_test=20&length=64"
    tsprobe("embed", "fracast", task, "--out", tmp_path / "x.npz")
    assert "layer " in capsys.readouterr().out
    with np.load(tmp_path / "x.npz") as found:
        assert found["train"].shape == (40, 64)
        assert found["test"].shape == (20, 64)
        assert str(found["layer"]).startswith(("embedding", "block.", "norm"))
    tsprobe("embed", "fracast", task, "--layer", "norm", "--out", tmp_path / "x.csv")
    frame = pd.read_csv(tmp_path / "x.csv")
    assert list(frame.split) == ["train"] * 40 + ["test"] * 20
    tsprobe("embed", "fracast", task, "--layer", "norm", "--out", tmp_path / "x.parquet")
    np.testing.assert_allclose(pd.read_parquet(tmp_path / "x.parquet")["norm.0"], frame["norm.0"], rtol=1e-6)


def test_best_is_the_layer_that_inner_folds_prefer() -> None:
    layer, vectors = embed(planted_encoder(2), planted_task())
    assert layer in ("embedding", "block.0", "block.1", "block.2")  # the label is gone after block 2
    assert vectors["train"].shape == (120, 8)


@pytest.mark.parametrize("kind", ["encoders", "tasks", "probes", "poolings", "diagnostics", "recipes"])
def test_list_knows_every_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    tsprobe("list", kind)
    expected = {
        "encoders": "chronos-bolt", "tasks": "ucr/GunPoint", "probes": "ridge", "poolings": "segmentsK",
        "diagnostics": "effective_rank", "recipes": "dense",
    }  # fmt: skip
    assert expected[kind] in capsys.readouterr().out


def test_doctor_tells_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    tsprobe("doctor")
    printed = capsys.readouterr().out
    for word in ("torch", "fracast weights", "85,001", "model hub", "mlflow"):
        assert word in printed


def start(config: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tsprobe.cli", "run", str(config), "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.integration
@pytest.mark.slow
def test_killed_three_times_and_resumed_gives_the_same_scores(config: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(config, whole)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()
    for files in ("features/*/*.zarr", "cells/*/*/mean-knn-0.npz", "cells/planted@untrained/*/*.npz"):
        seen = len(list(broken.glob(files)))
        process = start(config, broken)
        deadline = time.monotonic() + 120
        while len(list(broken.glob(files))) == seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it had not finished
        assert not (broken / "scores.csv").exists()
    process = start(config, broken)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()
    for name in ("scores.csv", "verdicts.csv", "diagnostics.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not list(broken.rglob(".writing-*"))
