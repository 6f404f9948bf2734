"""The exceptions of the package: one for each kind of mistake, all catchable as `TsprobeError`.

The command line prints the message of a `TsprobeError` on one line and exits with 2; anything else is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
import lzma
import pickle
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

LONGEST = 2000  # characters of a message: what it quotes may come from a file that holds anything


class TsprobeError(Exception):
    """A mistake that the caller can mend; the message names it and what would be right."""

    def __str__(self) -> str:
        return _shortened(super().__str__())


class DataError(TsprobeError):
    """Series or targets that cannot be used: empty, ragged where it must not be, one class, NaN refused."""


class EncoderError(TsprobeError):
    """An encoder that cannot be loaded or read: wrong weights, wrong shapes, a layer that never runs."""


class SpecError(TsprobeError):
    """A configuration that does not say what to do: unknown key, wrong type, impossible value."""


class UnknownNameError(TsprobeError, KeyError):
    """A name that nothing is registered under; the message suggests near ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        suggestion = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        self.message = f"unknown {kind} {name!r}{suggestion}{' ' + hint if hint else ''}"
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would show the repr, quotes included
        return _shortened(self.message)


class MissingPackageError(TsprobeError, ImportError):
    """An optional package is not installed; the message says what to install."""

    def __init__(self, package: str, purpose: str, extra: str | None = None, *, install: str | None = None) -> None:
        install = install or (f'pip install "tsprobe[{extra}]"' if extra else f"pip install {package}")
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed: {install}")


class StorageError(TsprobeError):
    """The disk refused: no space, no permission, or a damaged file that must be removed first."""


class ClusterError(TsprobeError):
    """A cluster that cannot be reached, has not what a study asks for, or lost workers too often."""


class DamagedWarning(UserWarning):
    """A kept result could not be read as what it was written as, and is made again."""


# What packages that read files (numpy, pandas, zarr, torch, zipfile, ...) raise on those that are cut short or changed,
# where they did not think of it; beside what the system raises, an `OSError`. Catch it around such a call alone.
DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, EOFError,
    MemoryError, SystemError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    tokenize.TokenError, pickle.UnpicklingError,
)  # fmt: skip


def _shortened(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 500]} [...] {message[-400:]}"


def first_line(error: BaseException) -> str:
    """Of what an error of another package says; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason(error: BaseException) -> str:
    """What an error of another package says, short and on one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def warn_damaged(path: Path, error: BaseException) -> None:
    warnings.warn(f"{path} is damaged and is made again ({reason(error)})", DamagedWarning, stacklevel=3)
