"""Folders of pictures that somebody made to do harm: each is refused in one line, soon, and without much memory."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from tsprobe.errors import DataError, EncoderError
from vision.tasks import files, shards


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """What waits for a pipe, or goes round for ever, ends."""

    def late(*_: object) -> None:
        raise AssertionError("it takes for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def png(width: int, height: int, data: bytes) -> bytes:
    """Of one bit a pixel, and one of the two colours transparent."""

    def chunk(kind: bytes, inside: bytes) -> bytes:
        return struct.pack(">I", len(inside)) + kind + inside + struct.pack(">I", zlib.crc32(kind + inside))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", b"\0\0"), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_a_small_file_of_a_huge_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(13_000, 13_000, zlib.compress(bytes(1626 * 13_000), 9)))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match=r"unpacks to 2\.0 GB"):
        files.read(tmp_path / "a.png", 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other packages do
    (tmp_path / "a.png").write_bytes(png(14_000, 14_000, os.urandom(20_000_000)))
    with pytest.raises(DataError, match="14000 x 14000 pixels, too many"):
        files.read_map(tmp_path / "a.png")


def test_a_large_picture_of_little_is_read(tmp_path: Path) -> None:
    Image.new("L", (3000, 3000), 7).save(tmp_path / "a.png")
    assert (files.read(tmp_path / "a.png", 8) == 7).all()
    assert (files.read_map(tmp_path / "a.png") == 7).all()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file_is_no_picture(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    with pytest.raises(DataError, match="no readable image"):
        files.read(path, 8)
    with pytest.raises(DataError, match=r"no file|cannot be read"):
        list(shards.clips(path))


def test_links_are_followed(tmp_path: Path) -> None:
    """Data sets lie on other disks."""
    (tmp_path / "here").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "here" / "a.png").symlink_to(tmp_path / "a.png")
    assert files.read(files.below(tmp_path / "here", "a.png"), 8)[0].min() == 255


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "x/../../a.png", "", "a\0b", "9" * 300, None, 5])
def test_annotations_name_no_file_elsewhere(name: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leads out of the folder|no name of a file"):
        files.below(tmp_path, name)
    assert files.below(tmp_path, "train2014/..a.png") == tmp_path / "train2014" / "..a.png"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "eps")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program is started"))
    with pytest.raises(DataError, match="cannot identify"):
        files.read(tmp_path / "a.png", 8)


def test_a_shard_does_not_go_backwards(tmp_path: Path) -> None:
    """A member of a negative size: older versions of Python read it again and again."""
    blocks = []
    for name, size in (("b.txt", 0), ("a.txt", -512)):
        head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
        head[124:136] = size.to_bytes(12, "big", signed=True) if size else b"00000000000\0"
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        blocks.append(bytes(head))
    (tmp_path / "0.tar").write_bytes(b"".join(blocks))
    with pytest.raises(DataError, match=r"0\.tar"):
        list(shards.clips(tmp_path / "0.tar"))


@pytest.mark.parametrize("picture", [np.full((4, 4), -1, np.int32), np.full((4, 4), np.nan, np.float32)])
def test_numbers_of_objects_are_whole_and_not_too_many(picture: np.ndarray, tmp_path: Path) -> None:
    from vision.tasks.folders import _mask

    Image.fromarray(picture).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="other numbers than objects"):
        _mask(tmp_path / "a.tiff")
    Image.fromarray(np.full((4, 4), 2**31 - 1, np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="other numbers than objects"):
        _mask(tmp_path / "a.tiff")


def test_no_code_of_the_hub_is_run_for_masks(tmp_path: Path) -> None:
    """transformers takes the name of a repository for attention, and runs what it finds in it."""
    import torch

    from vision.sam import Masks

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2", "attn_implementation": "someone/kernel"}))
    with pytest.raises(EncoderError, match="asks for code from elsewhere"):
        Masks.load(str(tmp_path), torch.device("cpu"))
