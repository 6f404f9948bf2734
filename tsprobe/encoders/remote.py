"""An encoder that lives in a worker process, with packages of its own: only pooled features come back.

The process runs `python -m tsprobe.worker` and ends with the last encoder that it holds. Its standard error is kept, so
that its last words can be told when it dies; what its packages print goes there too.
"""

from __future__ import annotations

import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import torch
from torch import nn

from tsprobe import errors
from tsprobe.encoders import wire
from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.workshop import clean_environment, find_python
from tsprobe.errors import EncoderError, MissingPackageError
from tsprobe.types import Batch, Inputs, Layer

if TYPE_CHECKING:
    from tsprobe.data.panel import Panel

_PATIENCE = 10.0  # seconds for a worker to end by itself once its pipe is closed
_LAST_WORDS = 3  # lines


def load_in_worker(
    name: str, family: str, requirements: tuple[str, ...], options: dict[str, Any], allowed: bool | None = None
) -> Remote:
    """The encoder of that name in a worker of the family's own environment.

    Raises `EncoderError` where that is not allowed (see `workshop.find_python`) or fails, and what loading raises.
    """
    return start(find_python(family, requirements, allowed), name, env=clean_environment(), **options)


def start(python: Path | str, name: str, *, env: dict[str, str] | None = None, **options: Any) -> Remote:
    """The encoder of that name in a worker run by that interpreter."""
    worker = Worker(python, name, env)
    return Remote(worker, worker.ask({"do": "load", "name": name, "options": options}))


class Worker:
    """A process that holds encoders and reads panels with them, one request at a time."""

    def __init__(self, python: Path | str, name: str, env: dict[str, str] | None = None) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MissingPackageError("pyarrow", "an encoder in a worker process", "models") from error
        self.name = name
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        command = [str(python), "-P", "-m", "tsprobe.worker"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, env=env
            )
        except OSError as error:
            self._words.close()
            raise EncoderError(f"{name}: cannot start {python}: {error.strerror or error}") from error
        self._in, self._out = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        self._streaming = False
        self._death: str | None = None
        self.close = weakref.finalize(self, _end, self._process, self._words)

    def ask(self, head: dict[str, Any], body: Any = b"") -> dict[str, Any]:
        """What the worker answers. Raises the errors that it reports, and `EncoderError` where it dies."""
        if self._streaming:
            raise EncoderError(f"the worker of {self.name} is still reading a panel: finish or close that stream first")
        self._send(head, body)
        return self._receive()[0]

    def stream(self, head: dict[str, Any], body: Any) -> Iterator[tuple[dict[str, Any], bytes]]:
        """All answers up to the end. Leaving early stops the worker after the block at which it is."""
        if self._streaming:
            raise EncoderError(f"the worker of {self.name} is still reading a panel: finish or close that stream first")
        self._streaming = True
        try:
            self._send(head, body)
            while "end" not in (answer := self._receive())[0]:
                if "block" in answer[0]:
                    self._send({"do": "next"})  # the next block is made while this one is used
                yield answer
        except GeneratorExit:
            with suppress(errors.TsprobeError):  # of a block that nobody waits for
                self._send({"do": "stop"})
                while "end" not in self._receive()[0]:
                    pass
            raise
        except Exception:
            raise
        except BaseException:  # told to stop, in the middle of a message, after which the pipe makes no sense
            self._death = f"the worker of {self.name} was stopped"
            self.close()
            raise
        finally:
            self._streaming = False

    def _send(self, head: dict[str, Any], body: Any = b"") -> None:
        try:
            wire.send(self._in, head, body)
        except (OSError, ValueError):
            self._report_death()

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            head, body = wire.receive(self._out)
        except (EOFError, OSError, ValueError):
            self._report_death()
        if "error" in head:
            kind = getattr(errors, head["error"], None)
            if kind in (errors.DataError, errors.SpecError, errors.StorageError, errors.EncoderError):
                raise kind(head["message"])
            raise EncoderError(f"the worker of {self.name} reports {head['error']}: {head['message']}")
        return head, body

    def _report_death(self) -> NoReturn:
        if self._death is None:
            code = _wait(self._process)
            self._words.seek(0)
            lines = self._words.read().decode(errors="replace").splitlines()
            last = [line.strip() for line in lines if line.strip()][-_LAST_WORDS:]
            said = f"its last words: {' | '.join(last)}" if last else "it said nothing"
            self._death = f"the worker of {self.name} has died (exit code {code}); {said}"
            self.close()
        raise EncoderError(self._death)


def _end(process: subprocess.Popen[bytes], words: IO[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what is left in a buffer cannot be written to a process that is gone
                pipe.close()
    _wait(process)
    words.close()


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; it is killed where it does not end by itself."""
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Remote(Encoder):
    """An encoder in a worker. It can be streamed, described, moved to a device and copied untrained; its modules and
    its tokens stay where they are."""

    def __init__(self, worker: Worker, about: dict[str, Any]) -> None:
        self._worker, self._about = worker, about
        self._handle: int = about["encoder"]
        self.name = about["name"]
        self.module = nn.Identity()
        self.taps = {layer: Tap(**tap) for layer, tap in about["taps"].items()}
        self.final = about["final"]
        self.facts = Facts(**about["facts"] | {"overlaps": tuple(about["facts"]["overlaps"])})

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(Layer(**layer) for layer in self._about["layers"])

    @property
    def device(self) -> torch.device:
        return torch.device(self._about["device"])

    def fingerprint(self) -> str:
        return self._about["fingerprint"]

    def to(self, device: torch.device | str) -> Remote:
        if torch.device(device) != self.device:
            self._about = self._worker.ask({"do": "to", "encoder": self._handle, "device": str(device)})
        return self

    def untrained(self, seed: int = 0) -> Remote:
        return Remote(self._worker, self._worker.ask({"do": "untrained", "encoder": self._handle, "seed": seed}))

    def check(self, **settings: Any) -> None:
        """Run `tsprobe.testing.check_encoder` on it in the worker. Raises what that raises."""
        self._worker.ask({"do": "check", "encoder": self._handle, "settings": settings})

    def close(self) -> None:
        """End the worker, and with it all encoders that it holds."""
        self._worker.close()

    def stream(
        self,
        panel: Panel,
        reading: Any,
        layers: tuple[str, ...],
        done: np.ndarray,
        progress: Callable[[int], None] | None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Blocks of whole series, index `[b]` and `[b, P, D]` of each layer, as `tsprobe.capture.stream` makes them
        in the worker."""
        how = asdict(reading)
        if reading.steps is not None:
            how["steps"]["at"] = reading.steps.at.tolist()
        head = {"do": "stream", "encoder": self._handle, "reading": how, "layers": list(layers)}
        answers = self._worker.stream(head, wire.pack_panel(panel, done))
        try:
            for answer, body in answers:
                if "progress" in answer and progress is not None:
                    progress(answer["progress"])
                elif "block" in answer:
                    yield wire.unpack_block(body)
        finally:
            answers.close()  # type: ignore[attr-defined]

    def prepare(self, batch: Batch) -> Inputs:
        raise EncoderError(f"{self.name} lives in a worker process, which gives pooled features only; use stream()")

    def run(self, inputs: Inputs) -> Any:
        raise EncoderError(f"{self.name} lives in a worker process, which gives pooled features only; use stream()")

    def fresh_module(self) -> nn.Module:
        raise EncoderError(f"{self.name} lives in a worker process; use untrained()")
