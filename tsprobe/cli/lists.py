"""What there is, and whether it works here: `list`, `doctor`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from tsprobe.cli.shared import app, cell, print_table


class Kind(StrEnum):
    encoders = "encoders"
    tasks = "tasks"
    probes = "probes"
    poolings = "poolings"
    diagnostics = "diagnostics"
    recipes = "recipes"


@app.command(name="list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.encoders) -> None:
    """List what there is by name, and whether it can be used here and now."""
    rows = _rows(kind)
    if not rows:
        print(f"no {kind.value} are registered; a package can add some through the entry points tsprobe.{kind.value}")
        return
    print_table(list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


@app.command()
def doctor() -> None:
    """Say what is installed, which devices work and whether a model hub is reachable. Exits with 1 if a part fails."""
    from tsprobe.doctor import examine

    checks = list(examine())
    print_table(["what", "state", "detail"], [[c.what, c.state, c.detail] for c in checks])
    if any(c.state in ("missing", "broken") for c in checks):
        raise typer.Exit(1)


def _rows(kind: Kind) -> list[dict[str, Any]]:
    if kind is Kind.encoders:
        from tsprobe.encoders import list_encoders

        worker = ", or TSPROBE_ALLOW_WORKERS=1"
        return [
            {
                "name": row["name"],
                "objective": row["objective"],
                "blocks x width, parameters": row["sizes"],
                "code": row["code_licence"],
                "weights": row["weights_licence"],
                "loads here": True if row["installed"] else f"no: {row['install']}{worker if row['in_worker'] else ''}",
            }
            for row in list_encoders()
        ]
    if kind is Kind.tasks:
        from tsprobe.tasks import list_tasks

        return list_tasks()
    if kind is Kind.probes:
        from tsprobe.probes import PROBES, probes_for

        return [
            {"name": name, "reads": ", ".join(probes_for(name)), "what": entry.description}
            for name, entry in PROBES.items()
        ]
    if kind is Kind.poolings:
        from tsprobe.pooling import POOLINGS

        return [{"name": name, "what": what} for name, what in POOLINGS.items()]
    if kind is Kind.diagnostics:
        from tsprobe.diagnostics import CATALOGUE, KINDS

        return [
            {"name": name, "measured": KINDS[entry.kind], "unit": entry.unit, "what": entry.what}
            for name, entry in CATALOGUE.items()
        ]
    from tsprobe.alignment import RECIPES
    from tsprobe.pretraining.objectives import OBJECTIVES
    from tsprobe.pretraining.recipes import list_recipes

    rows = [{"command": "align", "name": name, "what": recipe.description} for name, recipe in RECIPES.items()]
    rows += [{"command": "pretrain", "name": name, "what": "an objective of the zoo"} for name in OBJECTIVES]
    return rows + [{"command": "pretrain", **row} for row in list_recipes()]
