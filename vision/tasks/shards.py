"""Shards in the format of webdataset: tar files whose members belong together where they share the part of their name
before the ending, as `0123.mp4` and `0123.json`.

Members are read in place. Nothing is unpacked, and names are looked up only, never paths.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsprobe.errors import DAMAGE, DataError, reason
from tsprobe.files import parse_json

_LARGEST = {"json": 1 << 22, "mp4": 1 << 30}  # bytes that a member of this ending may have


@dataclass(frozen=True)
class Clip:
    """A video and what is said of it: where the member of the video begins in its shard, and how long it is."""

    shard: Path
    key: str
    said: dict[str, Any]
    start: int
    size: int

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.shard}: {self.key}.mp4"

    def content(self) -> bytes:
        """The compressed video. Raises `DataError` for a shard that ends before it."""
        try:
            with self.shard.open("rb") as handle:
                handle.seek(self.start)
                content = handle.read(self.size)
        except OSError as error:
            raise DataError(f"{self.where} cannot be read ({error})") from error
        if len(content) != self.size:
            raise DataError(f"{self.where} has {len(content)} of its {self.size} bytes; the shard is cut off")
        return content


def clips(shard: Path) -> Iterator[Clip]:
    """The videos of a shard, in its order; members of other endings are passed over.

    Raises `DataError` for a shard that is no tar file or is cut off, a video without a json or the other way round, a
    member that is there twice or too large, and a json that holds no object.
    """
    videos: dict[str, tuple[int, int]] = {}
    said: dict[str, dict[str, Any]] = {}
    order: list[str] = []
    try:
        if not shard.is_file():  # a pipe would be waited for
            raise DataError(f"{shard} is no file")
        with tarfile.open(shard, "r:") as tar:
            last = -1
            for member in tar:
                if member.offset <= last:  # of a negative size: older versions of Python go round for ever
                    raise DataError(f"{shard}: {member.name} has a size below 0")
                last = member.offset
                key, _, ending = member.name.removeprefix("./").rpartition(".")
                if ending not in _LARGEST or not member.isfile():
                    continue
                kept: dict[str, Any] = videos if ending == "mp4" else said
                if key in kept or member.size > _LARGEST[ending]:
                    wrong = "is there twice" if key in kept else f"has {member.size} bytes, too many"
                    raise DataError(f"{shard}: {member.name} {wrong}")
                if ending == "mp4":
                    order.append(key)
                    videos[key] = member.offset_data, member.size
                else:
                    said[key] = _object(tar, member, shard)
    except (OSError, tarfile.TarError, *DAMAGE) as error:
        raise DataError(f"{shard} cannot be read as a tar file ({reason(error)})") from error
    lone = next(iter(sorted(set(videos) ^ set(said))), None)
    if lone is not None:
        raise DataError(f"{shard}: {lone}.{'mp4 has no json' if lone in videos else 'json has no mp4'} beside it")
    yield from (Clip(shard, key, said[key], *videos[key]) for key in order)


def _object(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> dict[str, Any]:
    handle = tar.extractfile(member)
    try:
        found = parse_json(handle.read() if handle else b"")
    except (OSError, tarfile.TarError, *DAMAGE) as error:
        raise DataError(f"{shard}: {member.name} cannot be read as json ({reason(error)})") from error
    if not isinstance(found, dict):
        raise DataError(f"{shard}: {member.name} holds no object")
    return found
