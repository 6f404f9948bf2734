"""Settings from a YAML file and the command line, checked against a frozen pydantic model in one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from tsprobe.errors import DAMAGE, SpecError, UnknownNameError, reason

M = TypeVar("M", bound=BaseModel)


class Frozen(BaseModel):
    """Settings that do not change; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Resumable(Frozen):
    """The spec of a run that can be stopped and go on.

    `LOOSE` are settings that do not change what comes out, such as where it runs and how often it is kept.
    """

    LOOSE: ClassVar[frozenset[str]] = frozenset({"device", "keep_every"})

    def dump(self) -> dict[str, Any]:
        """The resolved spec in plain types, as `spec.yaml` keeps it."""
        return self.model_dump(mode="json")

    def same_run(self, other: dict[str, Any]) -> bool:
        """Whether a stopped run of that spec can go on as this one. What was no setting then had its default."""
        fields = type(self).model_fields
        defaults = {
            name: to_jsonable_python(field.get_default()) for name, field in fields.items() if name not in other
        }
        mine, its = ({k: v for k, v in one.items() if k not in self.LOOSE} for one in (self.dump(), defaults | other))
        return mine == its


def read_settings(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """A YAML file with overrides such as `tracking.enabled=false` applied; their values are read as YAML.

    Raises `SpecError`.
    """
    try:
        settings = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"no such config: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise SpecError(f"{path} is not plain YAML: {error}") from error
    if not isinstance(settings, dict):
        raise SpecError(f"{path} must hold settings, one a line, not a {type(settings).__name__}")
    for change in overrides:
        override(settings, change)
    return settings


_MOST = 100_000  # values: a document of aliases of aliases stands for more than any memory holds


def read_yaml(text: str) -> Any:
    """Plain values. Raises `ValueError` for what is no YAML, tags that would build objects, a value that is not of the
    kind that its tag says, and aliases that stand for themselves or for too much."""
    try:
        found = yaml.safe_load(text)
        count = _count(found, {}, ())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except DAMAGE as error:
        raise ValueError(reason(error)) from error
    if count > _MOST:
        raise ValueError(f"with its aliases written out it has more than {_MOST} values")
    return found


def _count(found: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Values in a document, those of an alias as often as it stands for them."""
    if not isinstance(found, (dict, list, set, tuple)):
        return 1
    if id(found) in above:
        raise ValueError("an alias stands within what it stands for")
    if id(found) not in known:
        inside = (*above, id(found))
        parts = [*found, *found.values()] if isinstance(found, dict) else list(found)
        known[id(found)] = 1 + sum(_count(part, known, inside) for part in parts)
    return known[id(found)]


def validated(model: type[M], settings: dict[str, Any]) -> M:
    """Raise `SpecError` with the first mistake in one line, near names suggested for an unknown key."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise SpecError(_first_mistake(model, error)) from error


def _first_mistake(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"]]
    where = ".".join(name for name in names if name.isidentifier())
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return str(UnknownNameError("setting", names[-1], _fields(model, names[:-1])))
    if first["type"] == "missing":
        return f"setting {where!r} is required"
    if not where:  # a mistake of the settings together: the message says which
        return str(first["msg"]).removeprefix("Value error, ")
    return f"setting {where!r}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"


def _fields(model: Any, path: list[str]) -> list[str]:
    for name in path:
        field = getattr(model, "model_fields", {}).get(name)
        model = field.annotation if field is not None else model
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))


def override(settings: dict[str, Any], change: str) -> None:
    """Change settings by a text such as `tracking.enabled=false`. Raises `SpecError`."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set takes NAME=VALUE, not {change!r}")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise SpecError(f"--set {key}: {text!r} is not a YAML value ({error})") from error
    *path, last = key.strip().split(".")
    for part in path:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise SpecError(f"--set {key}: {part!r} holds no settings")
    settings[last] = value
