"""Files that are there wholly or not at all, and where packages keep theirs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tsprobe.errors import DAMAGE, StorageError, reason

if TYPE_CHECKING:
    import pandas as pd


_LONGEST = 4000  # bytes of a path, to which names of files may still be added


def no_path(name: str) -> str | None:
    """Why a name, which may hold a path, can be none on any system; None where it can."""
    parts = [len(part.encode(errors="replace")) for part in name.split("/")]
    if "\0" in name or max(parts) > 255 or sum(parts) + len(parts) > _LONGEST:
        return f"it holds a zero byte, more than 255 bytes between two '/', or more than {_LONGEST} in all"
    try:
        for mark in (None, ":", "/"):
            Path(name if mark is None else name.partition(mark)[2]).expanduser()
    except RuntimeError:
        return "it begins with the home folder of nobody"
    return None


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
        about = parse_json((folder / OWNER).read_text())
        minutes = (time.time() - float(about["since"])) / 60
        return f"process {int(about['process'])} on {str(about['host'])[:64]}, for {minutes:.0f} min"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def parse_json(text: str | bytes) -> Any:
    """Raises `ValueError` for what is no JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `OSError`, and `ValueError` for another content."""
    found = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} and no object")
    return found


def kept_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of our own; an empty one where there is none, or it is damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def read_table(path: Path, **settings: Any) -> pd.DataFrame:
    """A CSV file, by pandas with these settings. Raises `OSError`, and `ValueError` for a file that is no table.

    Numbers are read as Python reads them: the reader of pandas 2 ends the process at one with an exponent of ten
    digits (pandas issue 63089).
    """
    import pandas as pd

    try:
        return pd.read_csv(path, float_precision="round_trip", **settings)
    except DAMAGE as error:
        raise ValueError(reason(error)) from error


def read_parquet(path: Path) -> pd.DataFrame:
    """Raises `OSError`, and `ValueError` for a file that is damaged, or would fill the memory."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.read_metadata(path)
        # a run of equal values takes no room
        refuse_growth(8 * about.num_rows * about.num_columns, path.stat().st_size)
        return pd.read_parquet(path)
    except (*DAMAGE, pa.ArrowException) as error:
        raise ValueError(reason(error)) from error


def read_array(path: Path) -> np.ndarray:
    """The array of an `.npy`. Raises `OSError`, and `ValueError` for a file that is damaged, holds objects, or is
    shorter than it says."""
    with path.open("rb") as handle:
        return _array(handle, path.stat().st_size)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`. Raises as `read_array` does, and `ValueError` for one that would fill the memory."""
    with path.open("rb") as handle:
        refuse_bomb(handle)
        try:
            with zipfile.ZipFile(handle) as archive:
                return {entry.filename.removesuffix(".npy"): _member(archive, entry) for entry in archive.infolist()}
        except DAMAGE as error:
            raise ValueError(reason(error)) from error


def refuse_bomb(handle: IO[bytes]) -> None:
    """Raise `ValueError` for a zip file that unpacks to more than it can be meant to; other files are let pass."""
    try:
        if not zipfile.is_zipfile(handle):
            return
        with zipfile.ZipFile(handle) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except DAMAGE as error:
        raise ValueError(reason(error)) from error
    finally:
        packed = handle.seek(0, os.SEEK_END)
        handle.seek(0)
    refuse_growth(size, packed)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def refuse_growth(size: int, packed: int) -> None:
    """Raise `ValueError` for what grows from `packed` bytes to more than it can be meant to."""
    if size > _LARGE and size > _BOMB * packed:
        raise ValueError(f"it unpacks to {size / 1e9:.1f} GB, {size / packed:.0f} times its size")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as handle:
        return _array(handle, entry.file_size)


def _array(handle: IO[bytes], size: int) -> np.ndarray:
    """The array of a file of so many bytes, whose head is compared with them before anything is allocated."""
    kinds = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(handle)
        if version not in kinds:
            raise ValueError(f"format {version[0]}.{version[1]} of arrays is not read")
        shape, _, kind = kinds[version](handle)
    except DAMAGE as error:
        raise ValueError(f"its head is no array's ({reason(error)})") from error
    least = math.prod(shape) * max(kind.itemsize, 1)
    if not kind.hasobject and (min(shape, default=0) < 0 or least > size - handle.tell()):
        raise ValueError(f"it is to hold an array of shape {shape}, and has {size - handle.tell()} bytes")
    handle.seek(0)
    return np.lib.format.read_array(handle, allow_pickle=False)


def safe_name(name: str) -> str:
    """A file name for any name: never a path, never empty; distinct for distinct names."""
    plain = re.sub(r"[^A-Za-z0-9_@=-]+", "_", name)[:80]
    if plain and plain == name:
        return plain
    return f"{plain.strip('_') or 'name'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
