"""What a study asks of those who compute its cells elsewhere, such as a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tsprobe.errors import EncoderError
from tsprobe.study.entries import Entry
from tsprobe.study.progress import Stage
from tsprobe.study.spec import StudySpec
from tsprobe.tasks.base import Task


@dataclass(frozen=True)
class Filled:
    """What was said of it: `refused` are the reasons by encoder and task, `facts` go into the provenance."""

    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check(self, encoder: str, task: str) -> None:
        """Raise EncoderError where the task was refused, as the encoder itself would."""
        if (encoder, task) in self.refused:
            raise EncoderError(self.refused[encoder, task])


class Fill(Protocol):
    """Computes elsewhere what is not there yet, and puts the cells and details into the study's folder."""

    def __call__(
        self, spec: StudySpec, folder: Path, entries: Sequence[Entry], tasks: Mapping[str, Task], stage: Stage
    ) -> Filled: ...
