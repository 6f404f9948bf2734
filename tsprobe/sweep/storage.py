"""Where trials are kept: an Optuna study in any of its storages, begun once, and gone on with after a stop.

A folder marks the study that it began with a token. Trials that ran when a process was killed are failed when the sweep
goes on, and what they had been asked is asked again.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tsprobe.errors import MissingPackageError, SpecError, StorageError
from tsprobe.files import kept_json, replace_text
from tsprobe.sweep.search import SearchSpec, hidden_password

TOKEN, MADE_OF, WHY = "tsprobe.token", "tsprobe.made_of", "why"
_WAIT = 120  # seconds for a lock of SQLite that another worker holds


@dataclass(frozen=True)
class Place:
    """A study by its storage and name."""

    storage: str
    name: str

    @classmethod
    def of(cls, spec: SearchSpec, folder: Path) -> Place:
        return cls(spec.storage or f"sqlite:///{(folder / 'study.db').resolve()}", spec.name)

    def __str__(self) -> str:
        return f"{self.name!r} in {hidden_password(self.storage)}"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Optuna's lines and its warnings of parts that may change are for its own users."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextlib.contextmanager
def telling(storage: str) -> Iterator[None]:
    """What a storage raises, as one line: `MissingPackageError`, `SpecError` or `StorageError`."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = hidden_password(storage)
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(str(error.name), f"the storage {shown}") from error
    except ImportError as error:  # Optuna's own words on a driver that is not there
        raise MissingPackageError("psycopg2-binary", f"the storage {shown}") from error
    except (NoSuchModuleError, ArgumentError) as error:
        raise SpecError(
            f"storage {shown!r} is of no kind that is known; give sqlite:///, postgresql:// or journal:"
        ) from error
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        cause = error.__cause__ or error
        line = next((part for part in str(cause).splitlines() if part.strip()), type(cause).__name__)
        raise StorageError(f"storage {shown} cannot be used: {hidden_password(line)[:300]}") from error


def open_storage(storage: str) -> Any:
    """An Optuna storage. Raises what `telling` does."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    with telling(storage), quietly():
        kind, _, path = storage.partition(":")
        if kind == "journal":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(path))
        options: dict[str, Any] = {"pool_pre_ping": True}
        if kind == "sqlite":
            options = {"creator": _connector(storage)}
        return RDBStorage(_with_driver(storage), engine_kwargs=options)


def _with_driver(url: str) -> str:
    """SQLAlchemy means psycopg by plain `postgresql://`; where only psycopg2 is installed, it is taken."""
    plain = "postgresql://"
    if url.startswith(plain) and find_spec("psycopg") is None and find_spec("psycopg2") is not None:
        return url.replace(plain, "postgresql+psycopg2://", 1)
    return url


def _connector(url: str) -> Callable[[], Any]:
    """How to open a SQLite file that several processes write often.

    With its log in a file beside (WAL), a transaction is not waited for until it is on the disk: one that a killed
    process has written counts, and where the machine itself fails the last ones may be lost.
    """
    import sqlite3

    from sqlalchemy.engine import make_url

    path = make_url(url).database or ":memory:"

    def connect() -> Any:
        connection = sqlite3.connect(path, timeout=_WAIT, check_same_thread=False)
        if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return connect


def begin(spec: SearchSpec, place: Place, folder: Path, *, fresh: bool) -> Any:
    """The study of a folder, made or gone on with; what had died is failed.

    Raises `SpecError` where another folder began a study of that name in the storage.
    """
    import optuna

    storage, kept = open_storage(place.storage), folder / "study.json"
    with telling(place.storage), quietly():
        names = {study.study_name for study in storage.get_all_studies()}
        token = _token(kept)
        if place.name in names:
            study = optuna.load_study(study_name=place.name, storage=storage)
            if spec.storage is not None and study.user_attrs.get(TOKEN) != token:
                raise SpecError(
                    f"study {place} was begun by another folder; give this one a name of its own: --set name=NAME"
                )
            if fresh:
                optuna.delete_study(study_name=place.name, storage=storage)
                names.remove(place.name)
        if place.name not in names:
            token = secrets.token_hex(8)
            replace_text(
                kept, json.dumps({"token": token, "storage": hidden_password(place.storage), "name": place.name})
            )
            study = optuna.create_study(study_name=place.name, storage=storage, directions=directions(spec))
            study.set_user_attr(TOKEN, token)
        _bury(study, again=spec.sampler != "grid")
    return study


def refuse_changed(study: Any, place: Place, fingerprints: dict[str, str]) -> None:
    """Raise `SpecError` where trials were run on other weights or data than these."""
    with telling(place.storage):
        kept = study.user_attrs.get(MADE_OF)
        if kept is None:
            study.set_user_attr(MADE_OF, fingerprints)
        elif kept != fingerprints:
            changed = [name for name, value in fingerprints.items() if kept.get(name) != value]
            raise SpecError(f"{' and '.join(changed)} is not what it was when this sweep began; take --fresh")


def directions(spec: SearchSpec) -> list[Any]:
    return ["maximize", "minimize"] if spec.cost else ["maximize"]


def load(spec: SearchSpec, place: Place, seed: tuple[int, ...]) -> Any:
    """The study with its sampler and pruner, for one who runs trials."""
    import optuna

    with telling(place.storage), quietly():
        storage = open_storage(place.storage)
        return optuna.load_study(
            study_name=place.name, storage=storage, sampler=_sampler(spec, seed), pruner=_pruner(spec)
        )


def finished(study: Any) -> list[Any]:
    """Trials that came to an end by themselves: complete, pruned, or failed for want of a score, which says why."""
    from optuna.trial import TrialState

    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in study.get_trials(deepcopy=False) if t.state in ended or WHY in t.user_attrs]


def ask_for(study: Any, asked: list[dict[str, Any]]) -> None:
    """Have trials run with these parameters: those that neither wait nor are finished."""
    from optuna.trial import TrialState

    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    there = {_key(t.params) for t in finished(study)} | {_key(t.system_attrs.get("fixed_params", {})) for t in waiting}
    for parameters in asked:
        if _key(parameters) not in there:
            study.enqueue_trial(parameters)


def _key(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)


def _token(path: Path) -> str | None:
    return kept_json(path).get("token")


def _bury(study: Any, *, again: bool) -> None:
    """Fail the trials of a process that is gone, and ask anew what they had been asked."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        asked = trial.system_attrs.get("fixed_params") or trial.params
        if asked and again:
            study.enqueue_trial(asked)


def _sampler(spec: SearchSpec, seed: tuple[int, ...]) -> Any:
    """`seed` tells workers and the times of going on apart: they must not draw the same settings."""
    import optuna

    number = int(np.random.SeedSequence([spec.seed, *seed]).generate_state(1)[0])
    if spec.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=number, population_size=max(2, min(50, spec.trials // 4)))
    if spec.sampler == "gp":
        return optuna.samplers.GPSampler(seed=number, warn_independent_sampling=False)
    if spec.sampler in ("random", "grid"):  # all settings of a grid are asked for beforehand
        return optuna.samplers.RandomSampler(seed=number)
    return optuna.samplers.TPESampler(seed=number, multivariate=True, group=True)


def _pruner(spec: SearchSpec) -> Any:
    import optuna

    return optuna.pruners.MedianPruner() if spec.prunes else optuna.pruners.NopPruner()
