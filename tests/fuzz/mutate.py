"""Changes to a file that leave its outer form whole: a value in a JSON or YAML document, a line of a table, a member of
an archive whose checksums are made anew, the head of an array or of a file of weights.

Every change is drawn from a `random.Random`, so that the same seed makes the same file.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

import yaml

from tsprobe.errors import DAMAGE

from . import rasters

# What a number, a name, or a text might be that a reader did not think of
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 1.5, 255, 65536, 2**31, 2**63, 10**30, -(10**9), 1e308, float("nan"),
    float("inf"), "", " ", "0", "a", "é\u0660", "../../outside", "/etc/passwd", "C:\\x", "a/b", "..", "\x00", "\n",
    "<script>alert(1)</script>", "{{7*7}}", "zoo/jepa", "python:os:system", "float32", "null", "x" * 5000, [], [[]],
    [0], [1, 2], {}, {"a": 1}, [None], ["a", "a"],
)  # fmt: skip
TOKENS = (
    "nan", "inf", "-inf", "1e999", "1e39", "?", "", "-1", "0", "1", "9" * 400, "1_0", "\u0661", "0x10", "1e", "--1",
    ",", ":", ";", "\t", "\x00", "\ufeff", '"', "'", "#", "%", "@", "@data", "@equalLength true", "@classLabel true",
    "@targetLabel true", "label", "target", "series", "True", "1970-01-01", "(1+2j)", "../x", "<b>", "&a [*a, *a]",
    "!!python/object/apply:os.system [x]", "!!binary aGk=", "<<: {a: 1}", "{", "}", "[", "]", "- ", "? ", "|", "=",
    "\u2028", "\x85", "\ud7ff", "\r",
)  # fmt: skip


def mutated(name: str, content: bytes, rng: random.Random) -> bytes:
    """Content with one to three changes that suit a file of that name."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = _changed(name, content, rng)
    return content


def _changed(name: str, content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return _bytes(content, rng)
    if content.startswith(rasters.PNG):
        return rasters.png(content, rng, _bytes)
    if content.startswith(rasters.JPEG):
        return rasters.jpeg(content, rng, _bytes)
    if rasters.is_tar(content):
        return rasters.tar(content, rng, lambda inside, rng: _changed("", inside, rng))
    if content[:2] == b"PK":
        return _archive(content, rng)
    if content[:6] == b"\x93NUMPY":
        return _array(content, rng)
    if name.endswith(".safetensors"):
        return _weights(content, rng)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _bytes(content, rng)
    if text.lstrip()[:1] in ("{", "[") and rng.random() < 0.8:
        return _json(text, rng)
    if name.endswith((".yaml", ".yml")) and rng.random() < 0.7:
        return _yaml(text, rng)
    return _text(text, rng)


def folder_mutated(content: bytes, rng: random.Random) -> bytes:
    """Of a file of a folder, the name is kept."""
    name, mark, rest = content.partition(b"\n")
    return name + mark + mutated(name.decode(errors="replace"), rest, rng)


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    at = rng.randrange(len(data) + 1)
    way = rng.randrange(5)
    if way == 0:
        del data[at:]
    elif way == 1:
        del data[at : at + rng.choice((1, 2, 4, 8, 64))]
    elif way == 2:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
    elif way == 3:
        data[at : at + 4] = rng.choice((b"\x00" * 4, b"\xff" * 4, struct.pack("<i", -1), struct.pack("<I", 1 << 30)))
    elif data:
        data[at - 1] ^= 1 << rng.randrange(8)
    return bytes(data)


def _text(text: str, rng: random.Random) -> bytes:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    way = rng.randrange(7)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, rng.choice(lines))
    elif way == 2:
        lines.insert(at, rng.choice(TOKENS))
    elif way == 3:
        lines[at] = ""
    else:
        lines[at] = _line(lines[at], rng)
    return "\n".join(lines).encode("utf-8", errors="replace")


def _line(line: str, rng: random.Random) -> str:
    """One field of a line, whatever divides them, taken out, doubled or replaced."""
    sign = rng.choice([s for s in ",: =." if s in line] or [","])
    parts = line.split(sign)
    at = rng.randrange(len(parts))
    way = rng.randrange(4)
    if way == 0 and len(parts) > 1:
        del parts[at]
    elif way == 1:
        parts.insert(at, rng.choice(parts))
    elif way == 2:
        parts[at] = rng.choice(TOKENS) + parts[at]
    else:
        parts[at] = rng.choice(TOKENS)
    return sign.join(parts)


def _json(text: str, rng: random.Random) -> bytes:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _text(text, rng)
    if rng.random() < 0.02:
        return rng.choice((b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000, b'{"a":1,"a":2}', b"[]", b"null", b'"a"'))
    return json.dumps(_node(found, rng)).encode()


def _yaml(text: str, rng: random.Random) -> bytes:
    try:
        found = yaml.safe_load(text)
        return yaml.safe_dump(_node(found, rng), allow_unicode=True).encode("utf-8", errors="replace")
    except (ValueError, RecursionError, yaml.YAMLError, TypeError, AttributeError):
        return _text(text, rng)


def _node(found: Any, rng: random.Random) -> Any:
    """The document with one of its nodes, drawn evenly, replaced, taken out, moved or doubled."""
    paths = list(_paths(found, ()))
    if len(paths) < 2:
        return rng.choice(VALUES)
    *way, last = rng.choice(paths[1:])
    parent = found
    for step in way:
        parent = parent[step]
    what = rng.randrange(8)
    if what == 0:
        del parent[last]
    elif what == 1 and isinstance(parent, dict):
        parent[rng.choice(("", "a", "__class__", "../x", "name", str(rng.choice(VALUES))))] = parent.pop(last)
    elif what == 2 and isinstance(parent, dict):
        parent[rng.choice(("more", "name", "shape", "device"))] = rng.choice(VALUES)
    elif what == 3 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), parent[last])
    elif what == 4:
        parent[last] = [parent[last]]
    else:
        parent[last] = rng.choice(VALUES)
    return found


def _paths(found: Any, path: tuple[Any, ...]) -> Any:
    yield path
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _archive(content: bytes, rng: random.Random) -> bytes:
    """A zip file: a member changed, renamed, taken out, doubled, or packed in another way."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except (OSError, *DAMAGE):
        return _bytes(content, rng)
    if not members:
        return _bytes(content, rng)
    at = rng.randrange(len(members))
    name, inside = members[at]
    way = rng.randrange(10)
    if way == 0:
        del members[at]
    elif way == 1:
        members[at] = rng.choice(("../../x.npy", "/tmp/x.npy", "", "x", "meta.npy", name + "x")), inside
    elif way == 2:
        members.append((rng.choice(("more.npy", "../more.npy", "more")), inside))
    else:
        members[at] = name, _changed(name, inside, rng)
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, inside in {name or "_": inside for name, inside in members}.items():
            archive.writestr(zipfile.ZipInfo(name), inside, packing)
    return buffer.getvalue()


_HEADS = (
    "'shape': (1000000000000,)", "'shape': (-1,)", "'shape': ()", "'shape': (0,)", "'shape': (2, 3)", "'shape': 5",
    "'shape': (1.5,)", "'descr': '|O'", "'descr': '<U3'", "'descr': '<f2'", "'descr': '<c16'", "'descr': '|b1'",
    "'descr': '<M8[s]'", "'descr': '|V0'", "'descr': [('a', '<f4')]", "'descr': '<i8'", "'descr': 'x'",
    "'fortran_order': True", "'fortran_order': 3", "'more': 1",
)  # fmt: skip


def _array(content: bytes, rng: random.Random) -> bytes:
    """An array in numpy's format with another head, or other bytes (for a text inside: another text)."""
    try:
        (size,) = struct.unpack("<H", content[8:10])
        head, body = content[10 : 10 + size].decode("latin1"), content[10 + size :]
    except struct.error:
        return _bytes(content, rng)
    if "<U" in head and rng.random() < 0.6:
        text = body.decode("utf-32-le", errors="ignore")
        changed = _json(text, rng).decode() if text[:1] in "{[" else _text(text, rng).decode()
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, np.array(changed))
        return buffer.getvalue()
    if rng.random() < 0.3:
        return content[: 10 + size] + _bytes(body, rng)
    new = rng.choice(_HEADS)
    key = new.partition(":")[0]
    if key in head:
        begin = head.index(key)
        end = head.find(", '", begin)
        head = head[:begin] + new + (head[end:] if end > 0 else "}")
    else:
        head = head.rstrip().removesuffix("}") + new + "}"
    if rng.random() < 0.1:
        head = rng.choice(("", "(" * 3000, "{", "1", "[]", "{}", "__import__('os')", "{'shape': (1,)}"))
    written = head.rstrip().encode("latin1", errors="replace") + b"\n"
    return content[:8] + struct.pack("<H", len(written)) + written + body


def _weights(content: bytes, rng: random.Random) -> bytes:
    """A file of safetensors with another head, its length told rightly."""
    try:
        (size,) = struct.unpack("<Q", content[:8])
        head = json.loads(content[8 : 8 + size])
    except (struct.error, ValueError, RecursionError):
        return _bytes(content, rng)
    if rng.random() < 0.3:
        return content[: 8 + size] + _bytes(content[8 + size :], rng)
    if rng.random() < 0.3 and isinstance(head, dict) and head:  # a changed head may be a number
        entry = head[rng.choice(list(head))]
        if isinstance(entry, dict):
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "U8", "C64", "X"))
    else:
        head = _node(head, rng)
    written = json.dumps(head).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + size :]
