"""Parallel speech: the telephone prompts of Asterisk, each spoken in English, French and Russian.

Debian packages them (CC-BY-SA-3.0, the Russian ones CC-BY-3.0) as mono files of 8,000 samples a second. There is one
voice for each language. They are found in the folder that the packages install, or in `$TSPROBE_SOUNDS`.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsprobe.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from jaxtyping import Float32

FOLDERS = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June", "ru": "ru_RU_f_IvrvoiceRU"}
LICENCE = "CC-BY-SA-3.0 (English, French), CC-BY-3.0 (Russian)"
SOURCE = "Asterisk core sounds, Debian packages asterisk-core-sounds-{en,fr,ru}-wav"
RATE = 16_000  # steps a second of the series that are given
_STORED = 8_000
_PACKAGES = " ".join(f"asterisk-core-sounds-{language}-wav" for language in FOLDERS)
_VARIABLE = "TSPROBE_SOUNDS"


def sounds_folder() -> Path:
    """The folder with one folder a language."""
    return Path(os.environ.get(_VARIABLE) or "/usr/share/asterisk/sounds").expanduser()


def are_here() -> bool:
    """Whether the prompts of all three languages are on this machine."""
    return all((sounds_folder() / name).is_dir() for name in FOLDERS.values())


def find_items(pattern: str, purpose: str) -> list[str]:
    """The prompts, sorted, that all languages have and whose path without `.wav` matches, such as `digits/*`.

    Raises `MissingPackageError` that says what to install for `purpose`.
    """
    if not are_here():
        where = f"apt-get install --no-install-recommends {_PACKAGES} (or unpack them and give their folder in "
        raise MissingPackageError(_PACKAGES, purpose, install=f"{where}${_VARIABLE})")
    found = []
    for name in FOLDERS.values():
        root = sounds_folder() / name
        found.append({file.relative_to(root).with_suffix("").as_posix() for file in root.glob(f"{pattern}.wav")})
    return sorted(set.intersection(*found))


def seconds(language: str, item: str) -> float:
    """How long a prompt is, from the head of its file. Raises `DataError`."""
    with _open(language, item) as file:
        return file.getnframes() / _STORED


def read_prompt(language: str, item: str) -> Float32[np.ndarray, "1 S"]:
    """A prompt at 16,000 steps a second, full scale at 1. Raises `DataError`."""
    from scipy.signal import resample_poly

    with _open(language, item) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    return resample_poly(samples, RATE // _STORED, 1).astype(np.float32)[None]


def _open(language: str, item: str) -> wave.Wave_read:
    path = sounds_folder() / FOLDERS[language] / f"{item}.wav"
    try:
        file = wave.open(str(path), "rb")  # noqa: SIM115  (the caller closes it)
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{path} is no readable WAV file ({error})") from error
    if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, _STORED):
        file.close()
        raise DataError(f"{path} is not mono, 16 bits, {_STORED} samples a second, as the Debian packages have it")
    return file
