"""Files that are there wholly or not at all, and where packages keep theirs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

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


def safe_name(name: str) -> str:
    """A file name for any name: never a path, never empty; distinct for distinct names."""
    plain = re.sub(r"[^A-Za-z0-9_@=-]+", "_", name)[:80]
    if plain and plain == name:
        return plain
    return f"{plain.strip('_') or 'name'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
