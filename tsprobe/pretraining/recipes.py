"""Which run a config asks for: one of the objectives here, or a recipe of another package.

`recipe: SOURCE/NAME` in a config asks for what the entry point SOURCE of the group `tsprobe.recipes` gives. Its value,
`"module:attr"`, is a function that takes all settings and a device to a `Fitting`, and raises `SpecError` for settings
that it does not know; it is imported when one of its recipes is asked for. Where its module has a function
`list_recipes`, without arguments, the rows that it gives are listed.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from tsprobe.errors import SpecError, UnknownNameError
from tsprobe.pretraining.spec import PretrainSpec
from tsprobe.pretraining.train import Fitting, Run
from tsprobe.settings import validated

GROUP = "tsprobe.recipes"


def load_run(settings: dict[str, Any], device: str) -> Fitting:
    """The run of a config, at its start. Raises `SpecError`, and `UnknownNameError` for a recipe that nobody has."""
    if "recipe" not in settings:
        return Run(validated(PretrainSpec, settings), device)
    name = str(settings["recipe"])
    sources = _sources()
    source = name.partition("/")[0]
    if source not in sources:
        hint = f"(sources: {', '.join(sorted(sources))})" if sources else "(no package here provides recipes)"
        raise UnknownNameError("recipe", name, sources, hint)
    module, _, attribute = sources[source].partition(":")
    return getattr(importlib.import_module(module), attribute)(settings, device)


def list_recipes() -> list[dict[str, Any]]:
    """A row for each recipe that other packages provide, with `name` and `what`, sorted by name."""
    rows: list[dict[str, Any]] = []
    for target in _sources().values():
        lister = getattr(importlib.import_module(target.partition(":")[0]), "list_recipes", None)
        rows += lister() if lister is not None else []
    return sorted(rows, key=lambda row: row["name"])


def _sources() -> dict[str, str]:
    """Source names and where their functions lie."""
    found: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        if found.setdefault(point.name, point.value) != point.value:
            raise SpecError(
                f"two packages provide the recipes {point.name}/: {found[point.name]} and {point.value}; uninstall one"
            )
    return found
