"""Faults that are injected into a study, what it says, and what is lost. The table of docs/RELIABILITY.md is made of
what happened here: `TSPROBE_WRITE=1 pytest tests/test_reliability.py` writes it, and without that it is compared."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from planted import planted_encoder, planted_task

from tsprobe.capture import Reading, extract
from tsprobe.errors import EncoderError
from tsprobe.files import alone

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "RELIABILITY.md"
ENDS = ("scores.csv", "verdicts.csv", "diagnostics.csv")
HEAD = """# What happens when something breaks

Every row is a fault that `tests/test_reliability.py` injects into a running study. *Lost* counts results that were
finished before the fault and had to be computed again, and tables that came out different from those of a study that
nothing happened to. The table is written by the test (`TSPROBE_WRITE=1`), and compared by it on every run. How
soon a study ends that is told to is [measured](../benchmarks/results/stopping-cpu.md): within seconds.

| fault | what the command says | exit | how it goes on | lost |
|---|---|---|---|---|
"""


@dataclass
class Case:
    """A small study, whole and undisturbed in `whole`, and a folder in which it is broken."""

    config: Path
    whole: Path
    out: Path

    def start(self, limit: int | None = None) -> subprocess.Popen[str]:
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell turns off for what it starts in the background
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        command = [sys.executable, "-m", "tsprobe.cli", "run", str(self.config), "--out", str(self.out)]
        return subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
        )  # fmt: skip

    def run(self, limit: int | None = None) -> tuple[int, str]:
        process = self.start(limit)
        _, said = process.communicate(timeout=300)
        return process.returncode, self.plain(said)

    def plain(self, said: str) -> str:
        return " ".join(said.replace(str(self.out), "DIR").split())

    def wait_for(self, files: str, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while not list(self.out.glob(files)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, "it was over before it could be broken"

    def finished(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.out.glob("cells/*/*/*.npz")}

    def lost(self, before: dict[Path, int]) -> str:
        """Run to the end, and count."""
        code, said = self.run()
        assert code == 0, said
        again = sum(path.stat().st_mtime_ns != stamp for path, stamp in before.items())
        other = sum((self.out / name).read_bytes() != (self.whole / name).read_bytes() for name in ENDS)
        assert not list(self.out.rglob(".writing-*"))
        assert not (self.out / ".owner").exists()
        return "nothing" if not again and not other else f"{again} results, {other} tables"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("reliability")
    encoder = {"source": "python:planted:build", "name": "planted", "blocks": "blocks.*", "prepare": "bs", "tokens": 8}
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({
        "encoders": [encoder], "tasks": ["process/k1?n_train=60&n_test=40&length=64"],
        "controls": ["untrained", "chance"], "poolings": ["mean", "max"], "probes": ["ridge", "knn"],
        "resamples": 200, "tracking": {"enabled": False},
    }))  # fmt: skip
    code, said = Case(config, folder / "whole", folder / "whole").run()
    assert code == 0, said
    return config, folder / "whole"


@pytest.fixture
def case(settings: tuple[Path, Path], tmp_path: Path) -> Case:
    return Case(*settings, tmp_path / "out")


def stopped_by(number: signal.Signals) -> Callable[[Case], list[str]]:
    def inject(case: Case) -> list[str]:
        process = case.start()
        case.wait_for("cells/*/*/*.npz", process)
        began = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        if number != signal.SIGKILL:
            assert time.monotonic() - began < 20  # five seconds on a machine that has nothing else to do
            assert not (case.out / ".owner").exists()
        before = case.finished()
        assert before
        line = case.plain(said) or "(nothing: it was killed)"
        code = str(process.returncode) if process.returncode >= 0 else f"killed by {-process.returncode}"
        return [line, code, "the same command goes on", case.lost(before)]

    return inject


def two_at_once(case: Case) -> list[str]:
    with alone(case.out):
        code, said = case.run()
    owner = f"process {os.getpid()} on {os.uname().nodename}, for 0 min"
    assert owner in said
    row = [said.replace(owner, "process 123 on HOST, for 0 min"), str(code), "the first one is not disturbed"]
    return [*row, case.lost(case.finished())]


def disk_full(case: Case) -> list[str]:
    code, said = case.run(limit=8_000)
    assert said.count("tsprobe:") == 1
    path = said.partition("cannot write ")[2].partition(": ")[0]
    assert path.startswith("DIR")
    return [said.replace(path, "DIR/…"), str(code), "the same command goes on, once there is room",
            case.lost(case.finished())]  # fmt: skip


def damaged(files: str) -> Callable[[Case], list[str]]:
    def inject(case: Case) -> list[str]:
        code, said = case.run()
        assert code == 0, said
        victim = max(case.out.glob(files), key=lambda path: path.stat().st_size)
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 255
        victim.write_bytes(content)
        for name in ENDS:
            (case.out / name).unlink()
        before = {path: stamp for path, stamp in case.finished().items() if path != victim}
        if "features" in files:  # what was computed from them is gone too, so that they are read
            for path in before:
                path.unlink()
            before = {}
        code, said = case.run()
        assert code == 0, said
        assert said.count("is damaged and is made again") == 1, said
        name = said.partition("tsprobe: ")[2].partition(" is damaged")[0]
        assert name in f"DIR/{victim.relative_to(case.out)}"
        return ["DIR/… is damaged and is made again (why)", "0", "it is made again at once", case.lost(before)]

    return inject


FAULTS: dict[str, Callable[[Case], list[str]]] = {
    "SIGKILL in mid-study": stopped_by(signal.SIGKILL),
    "SIGTERM, as schedulers send it": stopped_by(signal.SIGTERM),
    "SIGINT, Ctrl-C": stopped_by(signal.SIGINT),
    "a second process on the same folder": two_at_once,
    "the disk is full": disk_full,
    "a bit of a finished result flips": damaged("cells/*/*/*.npz"),
    "a bit of kept features flips": damaged("features/**/c/**/*"),
}


@pytest.mark.integration
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_finished_is_lost(fault: str, case: Case) -> None:
    row = f"| {fault} | {' | '.join(FAULTS[fault](case))} |"
    assert row.endswith("| nothing |"), row
    if os.environ.get("TSPROBE_WRITE"):
        rows = {} if not TABLE.exists() else {line.split(" | ")[0]: line for line in TABLE.read_text().splitlines()}
        rows[f"| {fault}"] = row
        TABLE.write_text(HEAD + "".join(f"{rows[f'| {name}']}\n" for name in FAULTS if f"| {name}" in rows))
    assert row in TABLE.read_text()


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """An encoder whose passes fail beyond `most` rows, as CUDA's allocator does; and the sizes of all passes."""
    from tsprobe.capture import reading

    whole, sizes = reading._pool_batch, []

    def pass_of(encoder, data, *rest):
        sizes.append(len(data.batch.lengths))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(encoder, data, *rest)

    monkeypatch.setattr(reading, "_pool_batch", pass_of)
    return sizes


def test_where_memory_runs_out_batches_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, panel = planted_encoder(2), planted_task().train
    asked = Reading(("mean",), rows=16)
    whole = extract(encoder, panel, asked)
    sizes = short_of_memory(monkeypatch, 5)
    halved = extract(encoder, panel, asked)
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[2:]) <= 5  # asked too much twice, and never again
    for layer in whole.layers:
        np.testing.assert_allclose(halved.matrix(layer, "mean"), whole.matrix(layer, "mean"), rtol=1e-5, atol=1e-6)


def test_a_series_that_does_not_fit_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(EncoderError, match=r"planted: cpu has no memory for a pass over one series of \d+ steps"):
        extract(planted_encoder(2), planted_task().train)


def test_a_folder_is_free_again_after_its_process(tmp_path: Path) -> None:
    with alone(tmp_path):
        assert json.loads((tmp_path / ".owner").read_text())["process"] == os.getpid()
    with alone(tmp_path):
        pass
    assert not (tmp_path / ".owner").exists()
