"""`tp.probe` and `tp.align` from Python, on names or on the caller's own encoders and tasks."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprobe.encoders import load_encoder
from tsprobe.encoders.base import Encoder
from tsprobe.errors import MissingPackageError, SpecError
from tsprobe.mirror import placed
from tsprobe.study import Study, StudySpec, make_spec, run_study
from tsprobe.study.progress import bars
from tsprobe.tasks.base import Task
from tsprobe.tracking import TrackingError, log_study

if TYPE_CHECKING:
    from torch import nn


def probe(
    encoders: str | Encoder | nn.Module | Sequence[str | Encoder],
    tasks: str | Task | Sequence[str | Task],
    *,
    poolings: Sequence[str] = ("mean",),
    probes: Sequence[str] = ("ridge",),
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    **settings: Any,
) -> Study:
    """Study encoders on tasks, layer by layer, controls included.

    Encoders and tasks are names, or objects of `load_encoder`, `Classification` and their likes. Further settings
    are those of a config file (`controls`, `layers`, `folds`, `missing`, `level`, ...). With `out` the study is kept
    in that folder, or at an address that fsspec reaches, with its report, resumed from it and logged to MLflow
    (`tracking={"enabled": False}` for none, or `{"uri": ...}`); without, it lives in a temporary one as long as the
    result does.

    Raises `SpecError` for a setting that makes no sense, `DataError` and `EncoderError` as loading does.
    """
    named_encoders = {e if isinstance(e, str) else _name(e, "encoder"): e for e in _list(encoders)}
    named_tasks = {t if isinstance(t, str) else _name(t, "task"): t for t in _list(tasks)}
    spec = make_spec(
        {"name": "study" if out is None else Path(out).name, "encoders": list(named_encoders),
         "tasks": list(named_tasks),
         "poolings": _list(poolings), "probes": _list(probes), "seeds": _list(seeds)} | settings
    )  # fmt: skip
    where = tempfile.mkdtemp(prefix="tsprobe-") if out is None else out
    try:
        with bars() as stage, placed(where) as place:
            study = run_study(
                spec, place.folder, stage=place.told(stage),
                encoders={name: e for name, e in named_encoders.items() if isinstance(e, Encoder)},
                tasks={name: t for name, t in named_tasks.items() if isinstance(t, Task)},
            )  # fmt: skip
            if out is not None:
                study.report(place.folder / "report.html")
    except BaseException:
        if out is None:
            shutil.rmtree(where, ignore_errors=True)
        raise
    if out is None:
        weakref.finalize(study, shutil.rmtree, where, ignore_errors=True)
    else:
        _track(study, spec)
    return study


def align(
    encoder: str | Encoder,
    recipe: str,
    tasks: str | Task | Sequence[str | Task],
    *,
    out: str | Path | None = None,
    probes: Sequence[str] = ("ridge",),
    **settings: Any,
) -> Encoder:
    """The encoder, tuned by a recipe (`dense`, `joint`, `labels`, `state`): what was hidden is in its final layer.

    `tasks` are studied before and after; further settings are those of a config file (`steps`, `lift`, `teacher`,
    `labelled`, ...). With `out` the studies, `lift.csv`, the report and the encoder are kept in that folder. Where
    nothing is hidden the encoder is given back as it is, with a warning that says so (`force=True` tunes it anyway).

    Raises `SpecError` for a setting that makes no sense, `EncoderError` for an encoder that cannot be tuned.
    """
    from tsprobe.alignment import AlignSpec, run_alignment
    from tsprobe.settings import validated

    named = {t if isinstance(t, str) else _name(t, "task"): t for t in _list(tasks)}
    study = {"tasks": list(named), "probes": _list(probes)}
    asked = {"encoder": encoder if isinstance(encoder, str) else encoder.name, "recipe": recipe, "study": study}
    spec = validated(AlignSpec, {**asked, **settings})
    folder = Path(tempfile.mkdtemp(prefix="tsprobe-") if out is None else out)
    given = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    try:
        with bars() as stage:
            outcome = run_alignment(
                spec, folder, stage=stage, encoder=given,
                tasks={name: t for name, t in named.items() if isinstance(t, Task)},
            )  # fmt: skip
    finally:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
    if outcome.encoder is None:
        warnings.warn(outcome.message, stacklevel=2)
    return outcome.encoder or given


def _track(study: Study, spec: StudySpec) -> None:
    """Log a kept study. A store that is gone costs a warning, not the study."""
    if spec.tracking.enabled:
        try:
            log_study(study, spec.tracking.uri, spec.tracking.experiment)
        except (TrackingError, MissingPackageError) as error:
            warnings.warn(f"{error}; the study is kept in {study.folder}", stacklevel=3)


def _list(value: Any) -> list[Any]:
    if isinstance(value, (str, int, Encoder, Task)) or not isinstance(value, Sequence):
        return [value]
    return list(value)


def _name(item: Any, kind: str) -> str:
    if isinstance(item, (Encoder, Task)):
        return item.name
    hint = "wrap a module with load_encoder(module, blocks=...)" if kind == "encoder" else "use Classification(...)"
    raise SpecError(f"a {type(item).__name__} is no {kind}; {hint}")
