"""The exceptions of the package: one for each kind of mistake, all catchable as `TsprobeError`.

The command line prints the message of a `TsprobeError` on one line and exits with 2; anything else is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from pathlib import Path


class TsprobeError(Exception):
    """A mistake that the caller can mend; the message names it and what would be right."""


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
        return self.message


class MissingPackageError(TsprobeError, ImportError):
    """An optional package is not installed; the message says what to install."""

    def __init__(self, package: str, purpose: str, extra: str | None = None, *, install: str | None = None) -> None:
        install = install or (f'pip install "tsprobe[{extra}]"' if extra else f"pip install {package}")
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed: {install}")


class StorageError(TsprobeError):
    """The disk refused: no space, no permission, or a damaged file that must be removed first."""


class DamagedWarning(UserWarning):
    """A kept result could not be read as what it was written as, and is made again."""


def warn_damaged(path: Path, error: BaseException) -> None:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    warnings.warn(f"{path} is damaged and is made again ({why})", DamagedWarning, stacklevel=3)
