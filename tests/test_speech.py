"""The tasks on parallel prompts, on files laid out as the Debian packages have them."""

from __future__ import annotations

import string
import wave
from pathlib import Path

import numpy as np
import pytest

from tsprobe.data import speech as data
from tsprobe.errors import DataError, MissingPackageError, UnknownNameError
from tsprobe.tasks import list_tasks, load_task
from tsprobe.tasks import speech as tasks

NAMES = ("digit", "duration", "item", "language", "letter")
PITCH = {"en": 200, "fr": 300, "ru": 400}


def write(path, samples, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def tone(hertz, seconds):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(8000 * seconds)) / 8000)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tone in the pitch of each language for every prompt; some are too long, too short, or no words."""
    root = tmp_path_factory.mktemp("sounds")
    items = [f"letters/{c}" for c in string.ascii_lowercase] + [f"phonetic/{c}_p" for c in string.ascii_lowercase]
    items += [f"digits/{prefix}{n}" for prefix in ("", "h-") for n in tasks.NUMBERS]
    lasts = dict.fromkeys(items, 0.1)
    lasts |= {f"prompt-{i:02}": 0.6 + 0.01 * i for i in range(75)}
    lasts |= {"too-short": 0.5, "too-long": 6.1, "beep": 1.0, "ascending-2tone": 1.0}
    for language, folder in data.FOLDERS.items():
        for item, seconds in lasts.items():
            write(root / folder / f"{item}.wav", tone(PITCH[language], seconds))
    write(root / data.FOLDERS["en"] / "only-english.wav", tone(200, 1))
    return root


@pytest.fixture
def sounds(tree, monkeypatch):
    monkeypatch.setenv("TSPROBE_SOUNDS", str(tree))
    return tree


def test_prompts_come_at_sixteen_thousand_steps_a_second(sounds):
    x = data.read_prompt("fr", "letters/a")
    assert (x.shape, x.dtype) == ((1, 1600), np.float32)
    spectrum = np.abs(np.fft.rfft(x[0]))
    assert spectrum.argmax() * data.RATE / 1600 == 300
    assert abs(np.abs(x).max() - 0.5) < 0.02
    assert data.seconds("fr", "letters/a") == 0.1


def test_items_are_those_of_all_languages(sounds):
    found = data.find_items("*", "x")
    assert "prompt-00" in found
    assert "only-english" not in found
    assert data.find_items("letters/*", "x") == [f"letters/{c}" for c in string.ascii_lowercase]


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_as_the_list_says(sounds, name):
    (row,) = (row for row in list_tasks() if row["name"] == f"speech/{name}")
    task = load_task(f"speech/{name}")
    assert (task.kind, task.metric, task.n_classes) == (row["kind"], row["metric"], row["classes"])
    assert (task.train.n, task.test.n, task.train.channels) == (row["n_train"], row["n_test"], row["channels"])
    assert row["here"]
    assert task.licence == row["licence"] == data.LICENCE


def clips(name):
    """Training and test clips as `load_speech` deals them out."""
    full = f"speech/{name}"
    if name in ("language", "duration"):
        return tasks._prompts(full)
    return (tasks._numbers("", full), tasks._numbers("h-", full)) if name == "digit" else tasks._letters(full)


def test_no_prompt_of_the_test_is_in_training(sounds):
    for name in ("language", "duration", "digit"):
        train, test = ({item for _, item in part} for part in clips(name))
        assert not train & test
    for name in ("item", "letter"):
        train, test = ({language for language, _ in part} for part in clips(name))
        assert (train, test) == ({"fr", "ru"}, {"en"})


def test_prompts_are_words_and_sentences(sounds):
    train, test = clips("language")
    items = {item for _, item in train + test}
    assert len(items) == 70
    assert all(item.startswith("prompt-") for item in items)


def test_targets(sounds):
    for name, expected in {
        "language": lambda language, item: language,
        "item": lambda language, item: item,
        "letter": lambda language, item: item[item.index("/") + 1],
    }.items():
        task = load_task(f"speech/{name}")
        for part, y in zip(clips(name), (task.y_train, task.y_test), strict=True):
            assert [task.labels[k] for k in y] == [expected(*clip) for clip in part]
    digit = load_task("speech/digit")
    of = {n: digit.labels[k] for (_, n), k in zip(clips("digit")[1], digit.y_test, strict=True)}
    assert [of[f"digits/h-{n}"] for n in (1, 11, 16, 20, 60)] == ["1", "1", "6", "2", "6"]
    duration = load_task("speech/duration")
    np.testing.assert_allclose(2 ** duration.y_test[:, 0], duration.test.lengths / 16_000, rtol=1e-3)
    assert duration.train.fingerprint() == load_task("speech/language").train.fingerprint()  # features serve both


def test_folds_ask_what_the_test_asks(sounds):
    for name in ("item", "letter"):
        task, (train, _) = load_task(f"speech/{name}"), clips(name)
        fold = task.folds(5, seed=0)
        languages = np.array([language for language, _ in train])
        assert len({*fold}) == 2
        assert all(len({*fold[languages == language]}) == 1 for language in ("fr", "ru"))
    for name in ("language", "digit"):
        task, (train, _) = load_task(f"speech/{name}"), clips(name)
        fold = task.folds(5, seed=0)
        items = np.array([item for _, item in train])
        assert len({*fold}) == 5
        assert all(len({*fold[items == item]}) == 1 for item in items)


def test_without_the_prompts_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("TSPROBE_SOUNDS", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"^speech/item needs .*apt-get install --no-install-recommends a"):
        load_task("speech/item")
    assert not any(row["here"] for row in list_tasks() if row["name"].startswith("speech/"))
    monkeypatch.delenv("TSPROBE_SOUNDS")
    assert data.sounds_folder() == Path("/usr/share/asterisk/sounds")


def test_files_that_are_not_as_expected_are_named(sounds, tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="did you mean 'speech/letter'"):
        load_task("speech/leter")
    for folder in data.FOLDERS.values():
        write(tmp_path / folder / "letters/a.wav", tone(200, 0.1), rate=16_000)
        (tmp_path / folder / "letters/b.wav").write_bytes(b"RIFF")
    monkeypatch.setenv("TSPROBE_SOUNDS", str(tmp_path))
    with pytest.raises(DataError, match=r"a\.wav is not mono, 16 bits, 8000 samples a second"):
        data.read_prompt("en", "letters/a")
    with pytest.raises(DataError, match=r"b\.wav is no readable WAV file"):
        data.read_prompt("en", "letters/b")
    with pytest.raises(DataError, match="no prompt letters/c in all three languages"):
        load_task("speech/item")
    with pytest.raises(DataError, match=r"0 prompts of 0\.6 to 6\.0 s; it needs 70"):
        load_task("speech/language")
