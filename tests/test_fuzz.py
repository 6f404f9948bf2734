"""Readers of files refuse what they cannot read in one line: what once broke one, and mutations of valid files."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fuzz import harness
from fuzz.harness import Finding, Target, attempt
from fuzz.mutate import folder_mutated, mutated
from fuzz.targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tsprobe.errors

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
BROKE = sorted(str(file.relative_to(CORPUS)) for file in CORPUS.rglob("*.*"))
SLOW = {"resume": 0, "study": 2, "report": 1, "served": 3, "chronos-bolt": 3}  # tries here; the driver makes more
TRIES = 8


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Valid files of each target, made when they are first asked for."""

    class Made(dict[str, list[bytes]]):
        def __missing__(self, name: str) -> list[bytes]:
            self[name] = TARGETS[name].valid(tmp_path_factory.mktemp("valid"))
            return self[name]

    return Made()


@pytest.mark.parametrize("broke", BROKE)
def test_what_once_broke_a_reader_is_refused(broke: str, tmp_path: Path) -> None:
    target = TARGETS[Path(broke).parent.name]
    assert attempt(target, (CORPUS / broke).read_bytes(), tmp_path / "x") is None


@pytest.mark.parametrize("name", [name for name in TARGETS if SLOW.get(name, 1)])
def test_mutations_of_valid_files_are_read_or_refused(name: str, seeds: dict[str, list[bytes]]) -> None:
    target, valid = TARGETS[name], seeds[name]
    change = folder_mutated if target.ending == ".folder" else lambda content, rng: mutated(target.ending, content, rng)

    @settings(
        max_examples=SLOW.get(name, TRIES), derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(range(len(valid))), st.integers(0, 2**32), st.booleans())
    def reads(seed: int, number: int, plain: bool) -> None:
        rng = random.Random(number)
        content = rng.randbytes(rng.randrange(64)) if plain and rng.random() < 0.2 else change(valid[seed], rng)
        with tempfile.TemporaryDirectory() as folder:
            assert attempt(target, content, Path(folder) / "x") is None

    reads()


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("resume", "ge2e", "names")])
def test_valid_files_are_read(name: str, seeds: dict[str, list[bytes]], tmp_path: Path) -> None:
    """Or else a target would find nothing: everything would be refused at the door."""
    TARGETS[name].read(tmp_path, seeds[name][0])


@pytest.mark.parametrize("head", [b"7", b"[]", b'"x"', b"{}"])
def test_what_has_been_changed_can_be_changed_again(head: bytes) -> None:
    content = len(head).to_bytes(8, "little") + head
    for number in range(50):
        mutated(".safetensors", content, random.Random(number))


def test_a_finding_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind: an exception, a file outside, a process, a pickle, a long message, memory, and time."""
    import pickle

    import numpy as np

    def found(read: object) -> str:
        target = Target("toy", ".txt", lambda _: [], lambda folder, content: read())  # type: ignore[operator]
        finding = attempt(target, b"", tmp_path / "x")
        assert isinstance(finding, Finding)
        return str(finding)

    def refuse() -> None:
        raise tsprobe.errors.DataError("x" * 1990 + "y" * 3000)

    def spin() -> None:
        while True:
            pass

    assert "ZeroDivisionError" in found(lambda: 1 // 0)
    assert "Escaped: open" in found(lambda: (tmp_path / "outside").write_text("x"))
    assert "Escaped: os.mkdir" in found(lambda: (tmp_path / "folder").mkdir())
    assert "Escaped: subprocess.Popen" in found(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
    assert "pickle.find_class" in found(lambda: pickle.loads(pickle.dumps(Path("x"))))
    assert "MemoryError" in found(lambda: np.ones(1 << 32))
    monkeypatch.setattr(harness, "SECONDS", 0.2)
    assert "Slow" in found(spin)
    assert attempt(Target("toy", ".txt", lambda _: [], lambda *_: refuse()), b"", tmp_path / "x") is None  # shortened
    assert not (tmp_path / "x").exists()
