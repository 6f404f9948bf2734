"""Environments for encoders whose packages cannot live beside ours: one virtual environment a family, made once.

They lie in `$TSPROBE_WORKERS`, or in `tsprobe/workers` of the user's cache folder, and are made only with the user's
consent: an environment holds a torch of its own and takes minutes and gigabytes. pip's own settings apply, so that
`PIP_CONSTRAINT` or `PIP_EXTRA_INDEX_URL` can ask for a build of torch without CUDA. tsprobe itself is not installed but
linked, so that both sides of the pipe are always of one version. To make an environment anew, remove its folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tsprobe.data.sources import cache_folder
from tsprobe.errors import EncoderError

CONSENT = "TSPROBE_ALLOW_WORKERS"
# All that reading an encoder imports. Versions are left to the family's requirements, which are often tight; later
# pyarrows want numpy 2 without saying so to pip, and Arrow's stream format is the same in all.
BASE = ("torch", "numpy", "pyarrow<21", "safetensors")
_READY = "ready"


def workers_folder() -> Path:
    own = os.environ.get("TSPROBE_WORKERS")
    return Path(own).expanduser() if own else cache_folder() / "workers"


def find_python(family: str, requirements: tuple[str, ...], allowed: bool | None = None) -> Path:
    """The interpreter of the family's environment, which is made where it is not there and that is `allowed`.

    By default `$TSPROBE_ALLOW_WORKERS` says whether it is. Raises `EncoderError` where it is not, saying how to allow
    it, and where pip or the disk refuses.
    """
    key = "\n".join([*sorted(requirements), *BASE, sys.version])
    folder = workers_folder() / f"{family}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / _READY).exists():
        return python
    if allowed is None:
        allowed = os.environ.get(CONSENT, "") not in ("", "0")
    if not allowed:
        raise EncoderError(
            f"{family} needs {', '.join(requirements)}, which may not fit beside the packages installed here: allow an "
            f"environment of its own with {CONSENT}=1 or load_encoder(..., workers=True); it is made once, in {folder}"
        )
    _make(folder, python, family, requirements)
    return python


def _make(folder: Path, python: Path, family: str, requirements: tuple[str, ...]) -> None:
    from filelock import FileLock  # torch brings it

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (folder / _READY).exists():  # another process was faster
                return
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted process left
            _run([sys.executable, "-m", "venv", str(folder)], family)
            _run([str(python), "-m", "pip", "install", "--quiet", *requirements, *BASE], family)
            _link(python)
            (folder / _READY).touch()
    except OSError as error:
        raise EncoderError(f"{family}: cannot make {folder}: {error.strerror or error}") from error


def _link(python: Path) -> None:
    """Put this very package, and nothing beside it, on the path of an environment."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True)
    link = Path(done.stdout.strip()) / "tsprobe"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(__file__).resolve().parents[1], target_is_directory=True)


def _run(command: list[str], family: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise EncoderError(f"{family}: `{' '.join(command)}` failed: {' '.join(errors)[:500]}")


def clean_environment() -> dict[str, str]:
    """The variables of this process without those that would let its packages into another environment."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in hidden} | {"PYTHONNOUSERSITE": "1"}
