"""A study's folder at an address that fsspec reaches (`s3://bucket/folder`, `gs://`, `memory://`, ...).

The study itself runs in a working folder on this machine, which belongs to the address: there it is locked, resumes,
and keeps what need not be sent, such as features. Finished cells are sent as they come; the tables, the tree, the
report and the provenance when all is done. A machine that is given the address for the first time fetches the cells
that lie there and goes on from them; a cell that a machine has already is its own to keep.

An object store has no locks. Of two machines that run at one address at the same time, each computes what the other has
not sent yet, and the tables are those of the one that ends last.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.data.sources import cache_folder
from tsprobe.errors import MissingPackageError, SpecError, StorageError, first_line
from tsprobe.files import kept_json, replace_file, replace_text, safe_name

if TYPE_CHECKING:
    from tsprobe.study.progress import Stage

CELLS = ("cells",)
# In the order in which they are sent: a reader who sees the last of them sees all
ENDS = ("study.zarr", "diagnostics.csv", "verdicts.csv", "spec.yaml", "provenance.json", "report.html", "scores.csv")
EVERY, SHARE = 2.0, 5  # seconds after which new cells are sent, and so many times what the last sending took, at least
_SENT, _OWNER, _AT_ONCE = ".sent.json", ".owner", 256


def is_address(place: str | Path) -> bool:
    """Whether it is for fsspec, and no path."""
    return isinstance(place, str) and "://" in place


@dataclass(frozen=True)
class Place:
    """Where a study is run, and what it must tell of its progress, so that what is finished is sent."""

    folder: Path
    told: Callable[[Stage], Stage]


@contextmanager
def placed(out: str | Path, *, fresh: bool = False) -> Iterator[Place]:
    """A path as it is; of an address the working folder, fetched before, and sent when the study is over.

    `fresh` removes what a study has left at the address. Raises `SpecError` for an address that fsspec does not know,
    `MissingPackageError` where a package for it is missing, `StorageError` where the store refuses; what was finished
    by then stays in the working folder, and the next start sends it.
    """
    if not is_address(out):
        yield Place(Path(out), lambda stage: stage)
        return
    mirror = Mirror(str(out), cache_folder() / "studies" / safe_name(str(out).rstrip("/")))
    mirror.begin(fresh=fresh)
    try:
        yield Place(mirror.folder, mirror.told)
    except BaseException:
        with suppress(StorageError):  # the first mistake is what the user should hear of
            mirror.send(CELLS)
            mirror.end()
        raise
    mirror.send((*CELLS, *ENDS))
    mirror.end()


def fetched(address: str) -> Path:
    """A temporary folder with the tables, tree, report and provenance of the study at an address."""
    folder = Path(tempfile.mkdtemp(prefix="tsprobe-"))
    try:
        Mirror(address, folder).fetch(ENDS)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


class Mirror:
    """An address, and the folder on this machine that stands for it."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder
        self._store, self._root = _open(self.address)
        self._sent: dict[str, list[int]] = {}  # size and time of the files that lie there as they do here
        self._last, self._cost = 0.0, 0.0

    def begin(self, *, fresh: bool) -> None:
        """See that the address can be written, and fetch the cells that are there."""
        with self._refusal_named("write"):
            self._store.pipe_file(self._there(_OWNER), json.dumps({"since": time.time()}).encode())
            there = self._listed()
            if fresh:
                known = [name for name in there if name.split("/")[0] in (*CELLS, *ENDS)]
                self._remove(known)
                there = [name for name in there if name not in known]
        sent = kept_json(self.folder / _SENT)
        self._sent = {name: sent[name] for name in there if name in sent}
        if not fresh:
            self.fetch(CELLS, there)

    def end(self) -> None:
        with self._refusal_named("write"):
            self._remove([_OWNER])

    def told(self, stage: Stage) -> Stage:
        """The stage, which sends new cells now and then when it is told of progress."""

        @contextmanager
        def telling(text: str, total: int) -> Iterator[Callable[[int], None]]:
            with stage(text, total) as advance:

                def step(steps: int) -> None:
                    advance(steps)
                    if time.monotonic() - self._last > max(EVERY, SHARE * self._cost):
                        self.send(CELLS)

                yield step

        return telling

    def fetch(self, parts: Sequence[str], there: Sequence[str] | None = None) -> None:
        """Files of these parts that are there and not here."""
        with self._refusal_named("read"):
            there = self._listed() if there is None else there
            left = [n for n in there if n.split("/")[0] in parts and not (self.folder / n).exists()]
            for names in _some(left):
                content = self._store.cat([self._there(name) for name in names])
                for name in names:
                    path = self.folder / name
                    replace_file(path, lambda handle, name=name: handle.write(content[self._there(name)]))  # type: ignore[misc]  # noqa: B023
                    self._sent[name] = _stamp(path)

    def send(self, parts: Sequence[str]) -> None:
        """Files of these parts that have changed since they were sent; and there, no others of the tree."""
        begin = time.monotonic()
        for part in parts:
            files = self._files(part)
            stamps = {name: _stamp(self.folder / name) for name in files}
            changed = [name for name in files if self._sent.get(name) != stamps[name]]
            with self._refusal_named("write"):
                for names in _some(changed):
                    here = [str(self.folder / name) for name in names]
                    self._store.put(here, [self._there(name) for name in names])
                    self._sent |= {name: stamps[name] for name in names}
                if part == "study.zarr":
                    self._remove([name for name in self._listed(part) if name not in stamps])
        replace_text(self.folder / _SENT, json.dumps(self._sent))
        self._last = time.monotonic()
        self._cost = self._last - begin

    def _files(self, part: str) -> list[str]:
        top = self.folder / part
        paths = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in paths if not path.name.startswith(".writing-")]

    def _there(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _listed(self, part: str = "") -> list[str]:
        """Names of the files that are there."""
        self._store.invalidate_cache()
        try:
            found = self._store.find(self._there(part).rstrip("/"))
        except FileNotFoundError:
            return []
        return [name.split(f"{self._root.lstrip('/')}/", 1)[1] for name in found]

    def _remove(self, names: list[str]) -> None:
        for some in _some(names):
            self._store.rm([self._there(name) for name in some])

    @contextmanager
    def _refusal_named(self, what: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except _refusals() as error:
            raise StorageError(f"cannot {what} {self.address}: {first_line(error)}") from error


def _open(address: str) -> tuple[Any, str]:
    """The file system, and the path within."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingPackageError("fsspec", address, "cluster") from error
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        from fsspec.registry import known_implementations

        package = known_implementations[address.partition("://")[0]]["class"].partition(".")[0]
        raise MissingPackageError(package, address, "cluster" if package == "s3fs" else None) from error
    except ValueError as error:
        raise SpecError(f"{address}: {error}") from error


def _refusals() -> tuple[type[BaseException], ...]:
    """What stores raise: most an OSError, and of two libraries beneath them their own."""
    found: list[type[BaseException]] = [OSError]
    if "botocore.exceptions" in sys.modules:
        found.append(sys.modules["botocore.exceptions"].BotoCoreError)
    if "aiohttp" in sys.modules:
        found.append(sys.modules["aiohttp"].ClientError)
    return tuple(found)


def _some(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]


def _stamp(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
