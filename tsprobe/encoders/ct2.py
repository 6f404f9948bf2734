"""Reading CTranslate2's binary model files (format 6), without CTranslate2.

All numbers are little-endian. A file holds the format version, the name of the model's class and its revision, then
each tensor (name, shape, type, bytes), then pairs of names for tensors that are stored under another name too.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tsprobe.errors import EncoderError

VERSION = 6
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ct2(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The class of a model and its tensors by name, as they are stored. Raises `EncoderError` for another file."""
    try:
        reader = _Reader(path.read_bytes())
        version = reader.number("I")
        if version != VERSION:
            raise EncoderError(f"{path} is CTranslate2 format {version}; only format {VERSION} is read")
        kind = reader.text()
        reader.number("I")  # the revision of that class
        tensors = {}
        for _ in range(reader.number("I")):
            name, tensor = reader.tensor()
            tensors[name] = tensor
        for _ in range(reader.number("I")):
            alias = reader.text()
            tensors[alias] = tensors[reader.text()]
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise EncoderError(f"{path} is not a whole CTranslate2 file ({error})") from error
    if not reader.done:
        raise EncoderError(f"{path} is not a CTranslate2 file: bytes are left behind its last tensor")
    return kind, tensors


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    @property
    def done(self) -> bool:
        return self._at == len(self._content)

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from("<" + kind, self._content, self._at)
        self._at += struct.calcsize("<" + kind)
        return value

    def text(self) -> str:
        size = self.number("H")  # with the zero byte at its end
        value = self._content[self._at : self._at + size - 1].decode()
        self._at += size
        return value

    def tensor(self) -> tuple[str, np.ndarray]:
        name = self.text()
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind = np.dtype(_TYPES[self.number("B")])
        size = self.number("I")
        flat = np.frombuffer(self._content, kind, size // kind.itemsize, self._at)  # ValueError past the end
        self._at += size
        return name, flat.reshape(shape)
