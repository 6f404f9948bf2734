"""A target, and how one try of it is watched.

A reader may read what it is given or refuse it with one of `tsprobe.errors`, in a line that can be read. All else is a
finding: another exception, more than some seconds of processor time, more than some memory, and anything done outside
of the folder (a file written, a process started, a connection, a pickled object looked up).
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tsprobe.errors import TsprobeError

SECONDS = 8  # of processor time: a valid file takes well under one
MEMORY = 1 << 30  # bytes of address space beyond what the process has when a try begins
LONGEST = 2000  # characters of a message

# of each event, where the paths are among its arguments, and where the descriptors of the folders that these are in
_TOUCH = {
    "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),), "os.truncate": ((0, None),),
    "os.rename": ((0, 2), (1, 3)), "os.link": ((1, 3),), "os.symlink": ((1, 2),),
}  # fmt: skip
_NEVER = {
    "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
    "pickle.find_class",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`valid(folder)` gives files as our own writers make them; `read(folder, content)` puts a file where the reader
    expects it and reads it. `ending` is that of its files in the corpus, and says which mutations there are."""

    name: str
    ending: str
    valid: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], Any]


@dataclass(frozen=True)
class Finding:
    """What broke, and where in our own code it came from: one cause has one `place`."""

    what: str
    place: str

    def __str__(self) -> str:
        return f"{self.what} [{self.place}]"


class Slow(BaseException):
    """A try took too long. No `Exception`, so that no reader takes it for damage."""


class Escaped(BaseException):
    """A try did something outside of its folder."""


def attempt(target: Target, content: bytes, folder: Path) -> Finding | None:
    """One try in an empty folder, which is emptied again. None where the content was read or refused in one line."""
    _warm(target)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with _watched(folder):
            target.read(folder, content)
    except TsprobeError as error:
        return _of_message(error)
    except (Exception, Slow, Escaped) as error:  # noqa: BLE001  (what is looked for)
        return _of(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


@cache
def _warm(target: Target) -> None:
    """Read a valid file, unwatched: what is imported, compiled or asked of the system only once is done then."""
    with tempfile.TemporaryDirectory() as place, suppress(TsprobeError):
        (Path(place) / "valid").mkdir()
        (Path(place) / "read").mkdir()
        for content in target.valid(Path(place) / "valid")[:1]:
            target.read(Path(place) / "read", content)


def _of_message(error: TsprobeError) -> Finding | None:
    said = " ".join(str(error).split())
    if not said or len(said) > LONGEST:
        return Finding(f"a message of {len(said)} characters: {said[:80]!r}", _place(error))
    return None


def _of(error: BaseException) -> Finding:
    said = " ".join(str(error).split())[:200]
    return Finding(f"{type(error).__name__}: {said}", _place(error))


def _place(error: BaseException) -> str:
    """The kind of error, and the innermost line of our own that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/tsprobe/" in f.filename or "/vision/" in f.filename] or list(frames)
    kind = type(error.__cause__ or error).__name__
    return f"{kind} {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else kind


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Bounds of time and memory, and an eye on what is done outside of the folder."""
    _install()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGPROF, _too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again every second, should a reader have let it pass
    _State.folder, _State.escaped = str(folder.resolve()), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        if _State.escaped:
            raise Escaped(_State.escaped)
    except TsprobeError:
        if _State.escaped:
            raise Escaped(_State.escaped) from None
        raise
    finally:
        _State.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _too_slow(*_: object) -> None:
    raise Slow(f"more than {SECONDS} s of processor time")


class _State:
    folder: str | None = None
    escaped: str | None = None


@cache
def _install() -> None:
    """A hook into Python's audit events, which cannot be taken out again: it sleeps between tries."""
    platform.processor()  # asks `uname`, once
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _State.folder is None or event not in _EVENTS:
        return
    if event in _NEVER:
        _State.escaped = f"{event} {str(args)[:200]}"
    elif event == "open":
        path, mode, flags = args
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if writes:
            _inside("open", path, None)
    else:
        for path, parent in _TOUCH[event]:
            _inside(event, args[path], None if parent is None else args[parent])


# what torch makes when parts of it are first imported, and folders of `tempfile`
_CACHES = (f"{tempfile.gettempdir()}/torchinductor_", f"{tempfile.gettempdir()}/tmp")
_EVENTS = _NEVER | {"open", *_TOUCH}


def _inside(event: str, path: Any, parent: int | None) -> None:
    if isinstance(path, int) or _State.folder is None:
        return
    where = os.readlink(f"/proc/self/fd/{parent}") if parent is not None and parent >= 0 else ""
    full = os.path.realpath(os.path.join(where, os.fsdecode(path)))
    if full not in (_State.folder, os.devnull) and not full.startswith((_State.folder + os.sep, *_CACHES)):
        _State.escaped = f"{event} {full}"
