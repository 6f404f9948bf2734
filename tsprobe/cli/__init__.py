"""The command line. `main` runs it: `tsprobe COMMAND`, or `python -m tsprobe.cli COMMAND`."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# isort: off
from tsprobe.cli import studies, searches, lists  # noqa: F401  # their commands, in the order of the help

# isort: on
from tsprobe.cli.shared import app, say
from tsprobe.errors import DamagedWarning, TsprobeError

__all__ = ["app", "main"]


def _tell(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """One line for what the user should know; what packages warn of, as Python does it."""
    ours = issubclass(category, DamagedWarning)
    say(f"tsprobe: {message}" if ours else warnings.formatwarning(message, category, filename, lineno).rstrip())


class _Stopped(BaseException):
    """By Ctrl-C, or by SIGTERM, as a scheduler sends it before it kills. No `KeyboardInterrupt`, which typer keeps to
    itself."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _told_to_stop() -> Iterator[None]:
    def stop(number: int, _: object) -> None:
        raise _Stopped(number)

    wanted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2, a signal with 128 + its number."""
    try:
        with _told_to_stop(), warnings.catch_warnings():
            warnings.showwarning = _tell  # type: ignore[assignment]
            app()
    except TsprobeError as error:
        say(f"tsprobe: {' '.join(str(error).split())}")
        sys.exit(2)
    except _Stopped as stopped:
        say("tsprobe: stopped; what is finished is kept, the same command goes on from there")
        sys.exit(128 + stopped.number)
