"""Running the parts of an atlas, each into a folder of its own. What is finished is not run again.

A part that cannot be run is named with its reason, and the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tsprobe.alignment import run_alignment
from tsprobe.atlas.labels import few_label_layers
from tsprobe.atlas.spec import AtlasSpec
from tsprobe.errors import StorageError, TsprobeError
from tsprobe.files import parse_json, replace_text
from tsprobe.study import run_study
from tsprobe.study.progress import Stage

MARK = "atlas.json"  # of a finished part: what it was asked to do, and what it left out


@dataclass(frozen=True)
class Part:
    """`state`: finished, failed (with the reason in `why`), or missing, which was not asked for yet.

    `left_out` are lines on what a finished part could not do.
    """

    name: str
    kind: str  # study or alignment
    state: str
    why: str = ""
    left_out: tuple[str, ...] = ()


def run_parts(spec: AtlasSpec, folder: Path, only: tuple[str, ...], stage: Stage) -> Iterator[Part]:
    """The parts in their order: those of `only` (all, where it is empty) are run if they have to be."""
    for name, kind, asked, work in _parts(spec, folder, stage):
        found = _finished(folder / name / MARK, asked)
        if found is not None:
            yield Part(name, kind, "finished", left_out=tuple(found))
        elif only and name not in only:
            yield Part(name, kind, "missing", "it was not run yet")
        else:
            try:
                (folder / name / MARK).unlink(missing_ok=True)
                left_out = work()
            except TsprobeError as error:
                yield Part(name, kind, "failed", " ".join(str(error).split()))
            else:
                replace_text(folder / name / MARK, json.dumps({"asked": asked, "left_out": left_out}, indent=1))
                yield Part(name, kind, "finished", left_out=tuple(left_out))


Work = Callable[[], list[str]]


def _parts(spec: AtlasSpec, folder: Path, stage: Stage) -> Iterator[tuple[str, str, dict[str, Any], Work]]:
    for name, part in spec.studies.items():
        asked = {"study": part.spec.dump(), "labels": list(spec.labels), "draws": spec.draws, "seed": spec.seed}
        yield name, "study", asked, partial(_study, spec, name, folder / name, stage)
    for name, alignment in spec.alignments.items():
        asked = {"alignment": alignment.dump()}
        yield name, "alignment", asked, partial(_alignment, alignment, folder / name, stage)


def _study(spec: AtlasSpec, name: str, where: Path, stage: Stage) -> list[str]:
    asked = spec.studies[name].spec
    study = run_study(asked, where, stage=stage)
    study.report(where / "report.html")
    few_label_layers(asked, where, spec.labels, spec.draws, spec.seed, stage)
    return [f"{pair['encoder']} on {pair['task']}: {pair['reason']}" for pair in study.provenance["left_out"]]


def _alignment(asked: Any, where: Path, stage: Stage) -> list[str]:
    outcome = run_alignment(asked, where, stage=stage)
    return [*([outcome.message] if outcome.message else []), *outcome.left_out]


def _finished(mark: Path, asked: dict[str, Any]) -> list[str] | None:
    """What a finished part left out; None where it was not finished, or was asked for something else."""
    try:
        kept = parse_json(mark.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{mark} cannot be read ({error}); remove it, and the part is run again") from error
    return kept["left_out"] if kept.get("asked") == json.loads(json.dumps(asked)) else None
