"""Files that are there wholly or not at all, and where packages keep theirs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from tsprobe.errors import StorageError


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, which is not imported for it; None where there is none."""
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def replace_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A process killed on the way leaves the old file, or none. Raises `StorageError` where the disk refuses.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as handle:
            temporary = Path(handle.name)
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    replace_file(path, lambda handle: handle.write(text.encode()))


OWNER = ".owner"
_BOMB, _LARGE = 100, 1 << 30  # an archive that grows so many times, to more than so many bytes, is refused


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time writes a folder; the file `.owner` says which while it does.

    Raises `StorageError` that names the one that is there, and for how long.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    if held is None:
        raise StorageError(f"{folder} is being written by {_owner(folder)}; wait for it, or use another folder")
    try:
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        replace_text(folder / OWNER, json.dumps(about) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        os.close(held)


def lock(folder: Path) -> int | None:
    """A lock on a folder, to be closed: the system takes it back when the process ends, however it ends. None where
    another process has it. Where the system or the file system has no locks, nothing is locked."""
    held = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except (ImportError, OSError):  # Windows; a file system without locks
        pass
    return held


def _owner(folder: Path) -> str:
    try:
        about = json.loads((folder / OWNER).read_text())
        minutes = (time.time() - float(about["since"])) / 60
        return f"process {int(about['process'])} on {str(about['host'])[:64]}, for {minutes:.0f} min"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`. Raises what numpy raises, and `ValueError` for one that holds objects or would fill the
    memory."""
    with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > _LARGE and size > _BOMB * path.stat().st_size:
            raise ValueError(f"it unpacks to {size / 1e9:.1f} GB, {size / path.stat().st_size:.0f} times its size")
    with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def safe_name(name: str) -> str:
    """A file name for any name: never a path, never empty; distinct for distinct names."""
    plain = re.sub(r"[^A-Za-z0-9_@=-]+", "_", name)[:80]
    if plain and plain == name:
        return plain
    return f"{plain.strip('_') or 'name'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
