"""What every sweep is asked: how many trials, by which sampler, kept where, run by how many."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import Field, field_validator

from tsprobe.errors import UnknownNameError
from tsprobe.settings import Resumable
from tsprobe.study.spec import Tracking

SAMPLERS = ("tpe", "random", "grid", "nsga2", "gp")
_PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*@")


class SearchSpec(Resumable):
    """A search of some space by Optuna. `cost` names a second objective, which is to be small.

    `trials` are those of the sweep in all; the grid has as many as there are cells.
    """

    LOOSE: ClassVar[frozenset[str]] = Resumable.LOOSE | {"trials", "workers", "tracking"}

    name: str = Field("sweep", min_length=1)
    trials: int = Field(ge=1)
    sampler: str = "tpe"
    cost: str | None = None
    storage: str | None = None  # null: SQLite in the output folder
    workers: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    tracking: Tracking = Tracking()

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        return known("sampler", name, SAMPLERS)

    @field_validator("storage")
    @classmethod
    def _known_storage(cls, storage: str | None) -> str | None:
        if storage is not None and "://" not in storage and not re.match(r"journal:.", storage):
            raise ValueError(
                "give sqlite:///FILE, postgresql://USER@HOST/DATABASE, journal:FILE, or null for SQLite in the folder"
            )
        return storage

    @property
    def prunes(self) -> bool:
        """Whether a trial is stopped early that is worse than others were at the same step."""
        return False

    def dump(self) -> dict[str, Any]:
        """The resolved spec in plain types, as `spec.yaml` keeps it; a password in the storage is left out."""
        plain = self.model_dump(mode="json")
        return plain | {"storage": None if self.storage is None else hidden_password(self.storage)}


def hidden_password(storage: str) -> str:
    return _PASSWORD.sub(r"\1***@", storage)


def known(kind: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise UnknownNameError(kind, name, names, f"(one of {', '.join(names)})")
    return name
