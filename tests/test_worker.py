"""Encoders in a worker process: the same features as in this one, errors that come back, an end that is always tidy."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import tsprobe
from tsprobe.capture import Reading, Steps, extract, stream
from tsprobe.data.panel import Panel
from tsprobe.encoders import load_encoder, registry, remote, wire, workshop
from tsprobe.encoders.remote import start
from tsprobe.errors import EncoderError, MissingPackageError

READING = Reading(("mean", "max", "segments2"), rows=4)


@pytest.fixture(scope="module")
def here():
    return load_encoder("fracast")


@pytest.fixture(scope="module")
def there():
    encoder = start(sys.executable, "fracast")
    yield encoder
    encoder.close()


def panel(*lengths):
    random = np.random.default_rng(0)
    series = [random.normal(size=(2, n)).cumsum(1).astype(np.float32) for n in lengths]
    series[0][0, 3:9] = np.nan
    return Panel(tuple(series))


def test_features_of_a_worker_are_those_of_this_process(here, there):
    many = panel(50, 300, 2500, 70)  # one is read in two windows
    windows = []
    ours, theirs = extract(here, many, READING), extract(there, many, READING, progress=windows.append)
    assert list(ours.arrays) == list(theirs.arrays) == list(here.taps)
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(theirs.arrays[name], array)
    assert sum(windows) == ours.notes["windows"] == 5


def test_layers_that_are_asked_for_come_and_no_other(here, there):
    ours = extract(here, panel(50, 60), READING, layers=["block.3"])
    theirs = extract(there, panel(50, 60), READING, layers=["block.3"])
    assert theirs.layers == ("block.3",)
    np.testing.assert_array_equal(theirs.arrays["block.3"], ours.arrays["block.3"])


def test_a_worker_says_what_it_holds(here, there):
    assert (there.name, there.final, there.layers) == (here.name, here.final, here.layers)
    assert there.facts == here.facts
    assert there.fingerprint() == here.fingerprint()
    assert there.device == here.device
    assert there.to("cpu") is there


def test_untrained_twin_lives_in_the_same_worker(here, there):
    twin, ours = there.untrained(3), here.untrained(3)
    assert (twin.name, twin.facts.objective) == ("fracast@untrained", "untrained")
    assert twin.fingerprint() == ours.fingerprint() != there.fingerprint()
    many = panel(50)
    np.testing.assert_array_equal(extract(twin, many).arrays["norm"], extract(ours, many).arrays["norm"])


def test_promises_are_checked_in_the_worker(there):
    there.check(channels=2, untrained=False)
    with pytest.raises(EncoderError, match="tokens before a bump"):
        there.check(length=64, causal=True, untrained=False)  # its scale is that of the whole window


def test_steps_are_read_in_the_worker(here, there):
    for causal in (False, True):
        steps = Steps(np.array([[0, 20, 49], [7, 8, 30]]), causal)
        how, two = Reading((steps.pooling,), steps=steps), panel(50, 60)
        layer = extract(there, two, how).arrays["norm"]
        np.testing.assert_array_equal(layer, extract(here, two, how).arrays["norm"])
        assert layer.shape[:2] == (2, 3)


def test_done_series_are_not_read(there):
    done = np.array([True, False, True])
    windows = []
    with closing(stream(there, panel(50, 60, 70), READING, done=done, progress=windows.append)) as blocks:
        assert [block.index.tolist() for block in blocks] == [[1]]
    assert sum(windows) == 1


def test_a_stream_can_be_left_early_and_the_worker_goes_on(there):
    many, windows = panel(*[50] * 12), []
    one = Reading(("mean",), rows=2)
    with closing(stream(there, many, one, layers=["norm"], progress=windows.append)) as blocks:
        next(blocks)
        with pytest.raises(EncoderError, match="still reading a panel"):
            there.untrained(0)
    assert sum(windows) < 12
    assert len(extract(there, many, one, layers=["norm"]).arrays["norm"]) == 12


def test_modules_and_tokens_stay_in_the_worker(there):
    for call in (lambda: there.prepare(None), lambda: there.run(None), there.fresh_module):
        with pytest.raises(EncoderError, match="lives in a worker process"):
            call()


def test_a_mistake_comes_back_as_it_was_made(there):
    with pytest.raises(EncoderError, match=r"^fracast: there is no folder \./nowhere$"):
        there._worker.ask({"do": "load", "name": "fracast:./nowhere", "options": {}})
    with pytest.raises(EncoderError, match=r"worker of fracast reports UnknownNameError: unknown encoder 'fracats'"):
        there._worker.ask({"do": "load", "name": "fracats", "options": {}})


def test_a_worker_is_gone_with_its_last_encoder():
    encoder = start(sys.executable, "fracast")
    process = encoder._worker._process
    twin = encoder.untrained(0)
    del encoder
    gc.collect()
    assert process.poll() is None
    del twin
    gc.collect()
    assert process.poll() == 0


def test_a_worker_that_dies_leaves_its_last_words(tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho loading >&2\necho 'ImportError: libnone.so' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(EncoderError, match=r"worker of some:thing has died \(exit code 3\).*ImportError: libnone\.so$"):
        start(script, "some:thing")
    with pytest.raises(EncoderError, match="cannot start"):
        start(tmp_path / "none", "some:thing")


def test_a_worker_that_fails_midway_is_reported_each_time_it_is_asked():
    encoder = start(sys.executable, "fracast")
    with pytest.raises(EncoderError, match=r"exit code 1\).*TypeError: .*'nonsense'"):
        encoder._worker.ask({"do": "load", "name": "fracast", "options": {"nonsense": 1}})
    for use in (lambda: extract(encoder, panel(50)), lambda: encoder.untrained(0)):
        with pytest.raises(EncoderError, match=r"exit code 1\).*TypeError: .*'nonsense'"):
            use()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A family whose package, `apart`, is found by the worker alone, and which prints while it loads."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "apart.py").write_text("")
    info = ours / "noisy-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tsprobe.encoders]\nnoisy = noisy:Noisy\n")
    (ours / "noisy.py").write_text(
        "import os\n"
        "from tsprobe.encoders.registry import Card, load_named\n"
        "class Noisy:\n"
        "    card = Card('noisy', 'none', 'apart', '-', '-', '-', requirements=('apart==1',))\n"
        "    @staticmethod\n"
        "    def load(source):\n"
        "        import apart\n"
        "        print('loading'); os.write(1, b'from C too\\n')\n"
        "        return load_named('fracast')\n"
    )
    monkeypatch.syspath_prepend(ours)
    registry._targets.cache_clear()
    path = os.pathsep.join([str(ours), str(theirs), str(Path(tsprobe.__file__).parents[1])])
    monkeypatch.setattr(remote, "clean_environment", lambda: os.environ | {"PYTHONPATH": path})
    yield
    registry._targets.cache_clear()


def test_a_package_that_is_not_here_is_used_in_a_worker_if_the_user_agrees(plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("TSPROBE_WORKERS", str(tmp_path / "workers"))
    monkeypatch.delenv(workshop.CONSENT, raising=False)
    with pytest.raises(EncoderError, match=r"noisy needs apart==1.*TSPROBE_ALLOW_WORKERS=1 or .*workers=True"):
        load_encoder("noisy")
    with pytest.raises(MissingPackageError, match="apart"):
        load_encoder("noisy", workers=False)
    assert not (tmp_path / "workers").exists()
    monkeypatch.setattr(workshop, "_make", lambda folder, python, *_: None)
    monkeypatch.setattr(remote, "find_python", lambda *a: workshop.find_python(*a) and sys.executable)
    encoder = load_encoder("noisy@untrained", workers=True)
    assert isinstance(encoder, remote.Remote)
    assert encoder.fingerprint() == load_encoder("fracast@untrained").fingerprint()
    encoder.close()


def test_an_environment_is_made_once_and_holds_this_tsprobe(tmp_path, monkeypatch):
    monkeypatch.setenv("TSPROBE_WORKERS", str(tmp_path))
    commands = []

    def run(command, family):
        commands.append(command)
        if "venv" in command:
            subprocess.run([*command[:3], "--without-pip", *command[3:]], check=True)

    monkeypatch.setattr(workshop, "_run", run)
    python = workshop.find_python("some", ("package==1",), allowed=True)
    assert commands[1] == [
        str(python), "-m", "pip", "install", "--quiet", "package==1", *workshop.BASE
    ]  # fmt: skip
    asked = "import tsprobe; print(tsprobe.__file__)"
    said = subprocess.run(
        [str(python), "-P", "-c", asked], capture_output=True, text=True, env=workshop.clean_environment(), check=True
    ).stdout
    assert Path(said.strip()).resolve() == Path(tsprobe.__file__).resolve()
    assert workshop.find_python("some", ("package==1",)) == python
    assert len(commands) == 2
    assert workshop.find_python("some", ("package==2",), allowed=True) != python


def test_an_environment_that_pip_cannot_fill_is_made_anew_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TSPROBE_WORKERS", str(tmp_path))
    monkeypatch.setattr(workshop, "BASE", ())
    fails = [sys.executable, "-c", "import sys; sys.exit('x\\nERROR: No matching distribution found for package==1')"]
    real, calls = workshop._run, []

    def run(command, family):
        calls.append(command)
        if "pip" in command:
            real(fails, family)

    monkeypatch.setattr(workshop, "_run", run)
    for _ in range(2):
        with pytest.raises(EncoderError, match="failed: ERROR: No matching distribution found for package==1"):
            workshop.find_python("some", ("package==1",), allowed=True)
    assert len(calls) == 4


def test_messages_survive_the_wire():
    many = Panel((np.array([[1, np.nan, 3], [np.inf, 5, -6]], np.float32), np.zeros((2, 1), np.float32)))
    back, done = wire.unpack_panel(bytes(wire.pack_panel(many, np.array([True, False]))))
    assert done.tolist() == [True, False]
    assert back.fingerprint() == many.fingerprint()
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(2, 3, 2), "index": np.ones((2, 1, 1), np.float32)}
    index, again = wire.unpack_block(bytes(wire.pack_block(np.array([4, 1]), arrays)))
    assert index.tolist() == [4, 1]
    assert list(again) == ["a", "index"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    pipe = io.BytesIO()
    wire.send(pipe, {"do": "x"}, b"12345")
    assert wire.receive(io.BytesIO(pipe.getvalue())) == ({"do": "x"}, b"12345")
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(pipe.getvalue()[:-1]))
