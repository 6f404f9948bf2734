"""A worker: a process that holds encoders and reads panels with them, for another process at the ends of its pipes.

`tsprobe.encoders.remote` starts it as `python -m tsprobe.worker` and speaks the protocol of `tsprobe.encoders.wire`.
It imports what reading an encoder needs and nothing more, since it runs in environments that hold little else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from tsprobe.encoders import load_encoder, wire
from tsprobe.encoders.base import Encoder
from tsprobe.errors import TsprobeError


class _Gone(Exception):
    """Nobody is at the other end any more."""


class Server:
    """Answers one request after another; encoders are known by the number under which they were loaded."""

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        self._source, self._target = source, target
        self._encoders: list[Encoder] = []
        self._actions: dict[str, Callable[[dict[str, Any], bytes], None]] = {
            "load": self._load, "untrained": self._untrained, "to": self._to, "check": self._check,
            "stream": self._stream,
        }  # fmt: skip

    def serve(self) -> None:
        """Until the pipe is closed. A mistake is answered and the next request served."""
        with suppress(_Gone):
            while True:
                head, body = self._receive()
                if head["do"] not in ("next", "stop"):  # meant for a stream that had come to its end already
                    try:
                        self._actions[head["do"]](head, body)
                    except TsprobeError as error:
                        self._send({"error": type(error).__name__, "message": str(error)})

    def _load(self, head: dict[str, Any], _: bytes) -> None:
        self._describe(load_encoder(head["name"], **head["options"], workers=False))

    def _untrained(self, head: dict[str, Any], _: bytes) -> None:
        self._describe(self._encoders[head["encoder"]].untrained(head["seed"]))

    def _to(self, head: dict[str, Any], _: bytes) -> None:
        self._describe(self._encoders[head["encoder"]].to(head["device"]), head["encoder"])

    def _check(self, head: dict[str, Any], _: bytes) -> None:
        from tsprobe.testing import check_encoder

        check_encoder(self._encoders[head["encoder"]], **head["settings"])
        self._send({"end": True})

    def _describe(self, encoder: Encoder, place: int | None = None) -> None:
        if place is None:
            place = len(self._encoders)
            self._encoders.append(encoder)
        self._send(
            {
                "encoder": place,
                "name": encoder.name,
                "layers": [asdict(layer) for layer in encoder.layers],
                "taps": {n: {"path": t.path, "side": t.side, "call": t.call} for n, t in encoder.taps.items()},
                "final": encoder.final,
                "facts": asdict(encoder.facts),
                "fingerprint": encoder.fingerprint(),
                "device": str(encoder.device),
            }
        )

    def _stream(self, head: dict[str, Any], body: bytes) -> None:
        from tsprobe.capture import Reading, Steps, stream

        panel, done = wire.unpack_panel(body)
        how = head["reading"] | {"poolings": tuple(head["reading"]["poolings"])}
        if how["steps"] is not None:
            how["steps"] = Steps(np.array(how["steps"]["at"]), how["steps"]["causal"])
        reading = Reading(**how)
        encoder, layers = self._encoders[head["encoder"]], tuple(head["layers"])
        tell = lambda windows: self._send({"progress": windows})  # noqa: E731
        with closing(stream(encoder, panel, reading, layers=layers, done=done, progress=tell)) as blocks:
            for block in blocks:
                self._send({"block": len(block.index)}, wire.pack_block(block.index, block.arrays))
                if self._receive()[0]["do"] == "stop":
                    break
        self._send({"end": True})

    def _send(self, head: dict[str, Any], body: Any = b"") -> None:
        try:
            wire.send(self._target, head, body)
        except OSError as error:
            raise _Gone from error

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            return wire.receive(self._source)
        except (EOFError, OSError) as error:
            raise _Gone from error


def main() -> None:
    """Serve on standard input and output; what packages print goes to standard error, not between the messages."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    Server(source, target).serve()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to be saved, and taking the model packages down in order takes seconds


if __name__ == "__main__":
    main()
