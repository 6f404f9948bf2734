"""Changes to pictures and to shards that leave their outer form whole: checksums are made anew, lengths are true."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

Change = Callable[[bytes, random.Random], bytes]
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_SIDES = (0, 1, 2, 7, 255, 4096, 9000, 20_000, 65_535, 2**31 - 1, 2**32 - 1)
_CHUNKS = (b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"pHYs", b"gAMA", b"acTL", b"fcTL", b"cHRM")
_BLOCK = 512  # bytes of a tar file


def is_tar(content: bytes) -> bool:
    return content[257:262] == b"ustar" and len(content) >= _BLOCK


def png(content: bytes, rng: random.Random, plain: Change) -> bytes:
    """One chunk changed, taken out, doubled or put in; the head says another size, depth or kind of colours."""
    chunks, at = [], len(PNG)
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return plain(content, rng)
    way = rng.randrange(6)
    i = rng.randrange(len(chunks))
    kind, data = chunks[i]
    if way <= 1 and len(head := bytearray(chunks[0][1])) == 13:
        if way:
            head[8:13] = rng.choice((1, 2, 3, 4, 8, 16)), rng.choice((0, 2, 3, 4, 5, 6)), 0, 0, rng.choice((0, 1))
        else:
            at = rng.choice((0, 4))
            head[at : at + 4] = struct.pack(">I", rng.choice(_SIDES))
        chunks[0] = chunks[0][0], bytes(head)
    elif way == 2:
        del chunks[i]
    elif way == 3:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[i])
    elif way == 4:
        zeros = zlib.compress(bytes(1 << 20))
        new = rng.choice(_CHUNKS)
        begin = rng.choice((b"", b"a\0\0", b"a\0\1\0\0\0", bytes(8), b"Exif\0\0II*\0\x08\0\0\0"))
        chunks.insert(rng.randrange(1, len(chunks) + 1), (new, begin + rng.choice((b"", zeros, rng.randbytes(12)))))
    else:
        if kind == b"IDAT" and rng.random() < 0.7:
            try:
                data = zlib.compress(plain(zlib.decompress(data), rng))
            except zlib.error:
                data = plain(data, rng)
        else:
            data = plain(data, rng)
        chunks[i] = kind, data
    written = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return PNG + written


def jpeg(content: bytes, rng: random.Random, plain: Change) -> bytes:
    """Other sides, or other channels, in the head of the frame; or cut off; or bytes anywhere."""
    at = next((i for i in (content.find(bytes((0xFF, mark))) for mark in (0xC0, 0xC1, 0xC2)) if i > 0), -1)
    way = rng.randrange(4)
    if way == 0 and 0 < at < len(content) - 10:
        sides = struct.pack(">HH", *(rng.choice(_SIDES) & 0xFFFF for _ in range(2)))
        return content[: at + 5] + sides + content[at + 9 :]
    if way == 1 and 0 < at < len(content) - 10:
        return content[: at + 9] + bytes((rng.choice((0, 1, 2, 3, 4, 255)),)) + content[at + 10 :]
    if way == 2:
        return content[: rng.randrange(len(content))]
    return plain(content, rng)


def tar(content: bytes, rng: random.Random, plain: Change) -> bytes:
    """A field of a member's head changed, its checksum made anew; or what it holds; or its blocks doubled."""
    starts = [i for i in range(0, len(content), _BLOCK) if content[i + 257 : i + 262] == b"ustar"]
    if not starts:
        return plain(content, rng)
    at = rng.choice(starts)
    end = min([i for i in starts if i > at] + [len(content)])
    head, inside = bytearray(content[at : at + _BLOCK]), content[at + _BLOCK : end]
    way = rng.randrange(8)
    if way <= 1:
        names = (b"../../x.mp4", b"/tmp/x.json", b".mp4", b".json", b"0.mp4", b"1.json", b"x", b"./1.mp4", b"\xff.mp4")
        head[:100] = rng.choice(names).ljust(100, b"\0")
    elif way <= 3:
        sizes = (
            b"00000000000\0", b"77777777777\0", b"-0000001000\0", b"x" * 12, b"\x80" + (1 << 40).to_bytes(11, "big"),
            b"\xff" * 12, b"\xff" * 10 + b"\xfe\0", b"\xff" * 10 + b"\xf8\0", b"%011o\0" % rng.randrange(2000),
        )  # fmt: skip
        head[124:136] = rng.choice(sizes)
    elif way == 4:
        head[156] = rng.choice(b"0123567xgLKSV\0")
    elif way == 5:
        head[rng.randrange(_BLOCK)] = rng.randrange(256)
    elif way == 6:
        inside = plain(inside.rstrip(b"\0"), rng)
        head[124:136] = b"%011o\0" % len(inside)
        inside = inside.ljust(-(-len(inside) // _BLOCK) * _BLOCK, b"\0")
    else:
        return content[:end] + content[at:end] + content[end:]
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return content[:at] + bytes(head) + inside + content[end:]
