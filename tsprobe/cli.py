"""The command line: `tsprobe run | list | report | embed | align | pretrain | anchors | atlas | doctor`."""

from __future__ import annotations

import math
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsprobe.errors import DamagedWarning, TsprobeError

if TYPE_CHECKING:
    from tsprobe.study import Study, StudySpec
    from tsprobe.sweep import Sweep, SweepSpec

app = typer.Typer(
    name="tsprobe",
    help="Look inside time-series encoders: where in the network is the answer, and does the final embedding hide it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Kind(StrEnum):
    encoders = "encoders"
    tasks = "tasks"
    probes = "probes"
    poolings = "poolings"
    diagnostics = "diagnostics"
    recipes = "recipes"


class Nan(StrEnum):
    handle = "handle"
    error = "error"


Out = Annotated[Path | None, typer.Option(help="Output folder; by default runs/NAME_OF_THE_CONFIG.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU where there is one.")]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Go on where a stopped run was, or forget it.")]
Missing = Annotated[
    Nan | None, typer.Option("--nan", help="handle: mask or interpolate missing values and count them; error: refuse.")
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/quickstart.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set seeds=[0,1].")
    ] = None,
    out: Out = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished cells, or forget them.")] = True,
    nan: Missing = None,
) -> None:
    """Run a study: every layer of every encoder on every task, with controls, verdicts and a report.

    A study that was stopped goes on where it was. Exits with 0 when everything was run and logged, with 1 when an
    encoder could not be run on a task or the tracking store could not be reached, with 2 for a mistake in the request.
    """
    from tsprobe.study import read_spec, run_study
    from tsprobe.study.progress import bars

    spec = read_spec(config, (*_overrides(set_, device), *([f"missing={nan.value}"] if nan else ())))
    folder = out or Path("runs") / config.stem
    with bars() as stage:
        study = run_study(spec, folder, stage=stage, fresh=not resume)
        with stage("report", 1):
            page = study.report(folder / "report.html")
        with stage("MLflow", 1):
            logged, logging_failed = _track(study, spec)
    _show_verdicts(study)
    left_out = study.provenance["left_out"]
    for pair in left_out:
        _say(f"left out: {pair['encoder']} on {pair['task']}: {pair['reason']}")
    print(f"report:  {page}")
    print(logged)
    if left_out or logging_failed:
        raise typer.Exit(1)


@app.command(name="list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.encoders) -> None:
    """List what there is by name, and whether it can be used here and now."""
    rows = _rows(kind)
    if not rows:
        print(f"no {kind.value} are registered; a package can add some through the entry points tsprobe.{kind.value}")
        return
    _table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="The folder of a finished study, or those of alignments.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default in the study's folder, or beside the first alignment's.")
    ] = None,
) -> None:
    """Write report.html anew from a finished study and print its verdicts.

    Given folders of `tsprobe align`, print what each recipe brought to each family of tasks and what it cost, and draw
    that as one page.
    """
    from tsprobe.alignment.families import FILE, as_text, tradeoff
    from tsprobe.report.tradeoff import write_tradeoff
    from tsprobe.study import Study

    if len(folders) > 1 or (folders[0] / FILE).exists():
        table = tradeoff(folders)
        _table(*as_text(table))
        print(f"report:  {write_tradeoff(out or folders[0].resolve().parent / 'tradeoff.html', table)}")
        return
    folder = folders[0]
    study = Study.open(folder)
    page = study.report(out or folder / "report.html")
    _show_verdicts(study)
    print(f"report:  {page}")


@app.command()
def embed(
    encoder: Annotated[str, typer.Argument(help="An encoder's name, e.g. fracast or chronos-bolt:./folder.")],
    data: Annotated[str, typer.Argument(help="A task's name, or a .npy, .csv or .parquet file with a row a series.")],
    out: Annotated[Path, typer.Option(help="A .npz, .npy, .csv or .parquet file.")],
    layer: Annotated[
        str, typer.Option(help="A layer's name, final, or best (chosen on inner training folds).")
    ] = "best",
    pooling: Annotated[str, typer.Option(help="How tokens become one vector.")] = "mean",
    device: Device = None,
    nan: Missing = None,
) -> None:
    """Write one vector a series: frozen features of the layer you name, or of the best one for a task."""
    from tsprobe import embed as room
    from tsprobe.capture import Reading
    from tsprobe.encoders import load_encoder
    from tsprobe.study.progress import bars
    from tsprobe.study.run import pick_device
    from tsprobe.tasks import load_task

    if out.suffix not in room.OUT_FILES:
        raise typer.BadParameter(f"--out must end in {', '.join(room.OUT_FILES)}, not {out.name!r}")
    path = Path(data)
    source = room.read_series(path) if path.suffix in room.SERIES_FILES else load_task(data)
    model = load_encoder(encoder).to(pick_device(device or "auto"))
    reading = Reading((pooling,), missing=(nan or Nan.handle).value)
    with bars() as stage:
        used, vectors = room.embed(model, source, layer, reading, stage)
    room.write_vectors(out, used, vectors)
    sizes = ", ".join(f"{name} {v.shape[0]} x {v.shape[1]}" for name, v in vectors.items())
    print(f"{out}: layer {used} of {encoder}, {sizes}")


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/pretrain/jepa.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set steps=100.")
    ] = None,
    out: Out = None,
    device: Device = None,
    resume: Resume = True,
) -> None:
    """Train a small encoder on generated data with one objective; all else is equal for every objective.

    A run that was stopped goes on from its last checkpoint, to the same losses. The folder can be studied as zoo:DIR.
    """
    from tsprobe.pretraining import fit, load_run
    from tsprobe.settings import read_settings
    from tsprobe.study.progress import bars
    from tsprobe.study.run import pick_device

    settings = read_settings(config, _overrides(set_, device))
    fitting = load_run(settings, pick_device(str(settings.get("device", "auto"))))
    folder = out or Path("runs") / config.stem
    with bars() as stage:
        about = fit(fitting, folder, stage=stage, fresh=not resume)
    _table(
        ["step", "held-out loss", "trivial", "effective rank"],
        [[str(x["step"]), f"{x['own']:.4f}", f"{x['trivial']:.4f}", str(x["rank_means"])] for x in about["held_out"]],
    )
    sizes = ", ".join(f"{about[what]} {what}" for what in ("series", "images", "tokens") if what in about)
    print(f"{sizes}, {about['hours']} h on {about['device']}")
    print(f"encoder: {fitting.loads_as}:{folder}")


@app.command()
def align(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/align_dense_zoo.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set force=true.")
    ] = None,
    out: Out = None,
    device: Device = None,
    resume: Resume = True,
) -> None:
    """Tune an encoder so that its output carries what its hidden layers do, and study it before and after.

    Where nothing is hidden, says so and stops, unless the config says force. The folder's encoder/ is loaded as
    aligned:DIR/encoder. On several GPUs: torchrun --nproc-per-node N -m tsprobe.cli align CONFIG.
    """
    from tsprobe.alignment import read_align_spec, run_alignment
    from tsprobe.alignment.processes import together
    from tsprobe.study.progress import bars
    from tsprobe.study.run import pick_device
    from tsprobe.tracking import loss_curves

    spec = read_align_spec(config, _overrides(set_, device))
    folder = out or Path("runs") / config.stem
    with together(pick_device(spec.device)) as processes:
        tracking = spec.tracking.model_copy(update={"enabled": spec.tracking.enabled and processes.first})
        with bars() as stage, loss_curves(folder, spec.dump(), tracking, complain=_say) as note:
            outcome = run_alignment(spec, folder, stage=stage, fresh=not resume, note=note, processes=processes)
        if not processes.first:
            return
    if outcome.message:
        print(outcome.message)
    for line in outcome.left_out:
        _say(f"left out: {line}")
    if outcome.encoder is None:
        print(f"before:  {folder / 'before' / 'report.html'}")
        return
    rows = outcome.lift.fillna("").to_dict("records")
    columns = ["control", "family", "task", "metric", "final_before", "hidden_before", "cut", "final_after", "lift"]
    _table(columns, [[f"{r[c]:.3f}" if isinstance(r[c], float) else str(r[c]) for c in columns] for r in rows])
    print(f"teacher: {', '.join(outcome.teachers)}")
    print(f"encoder: aligned:{folder / 'encoder'}")


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/sweep.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set trials=500.")
    ] = None,
    out: Out = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished trials, or forget them.")] = True,
) -> None:
    """Search layers, combinations of them, poolings, probes and strengths with Optuna, on inner training folds.

    The test set is read once, for the chosen trial. A sweep that was stopped runs the trials that are missing. Exits
    with 1 where the tracking store could not be reached, with 2 for a mistake in the request.
    """
    from tsprobe.study.progress import bars
    from tsprobe.sweep import read_sweep_spec, run_sweep

    spec = read_sweep_spec(config, _overrides(set_, device))
    folder = out or Path("runs") / config.stem
    with bars() as stage:
        found = run_sweep(spec, folder, stage=stage, fresh=not resume)
        with stage("MLflow", 1):
            logged, logging_failed = _track_sweep(found, spec)
    best = found.best
    test = best["test"]
    header = ["trial", *best["params"], "inner", "test", "interval"]
    interval = f"[{test['low']:.3f}, {test['high']:.3f}]"
    row = [best["trial"], *best["params"].values(), f"{best['inner_score']:.3f}", f"{test['score']:.3f}", interval]
    _table(header, [[_cell(value) for value in row]])
    print(f"trials:  {', '.join(f'{n} {state}' for state, n in found.trials['state'].value_counts().items())}")
    if "compared" in best:
        grid = best["compared"]
        print(
            f"grid:    best of {grid['cells']} settings {grid['best']:.3f} [{grid['low']:.3f}, {grid['high']:.3f}], "
            f"of the trials {grid['best_of_sweep']:.3f}; within from trial {grid['trials_to_within']} on"
        )
    print(f"report:  {folder / 'report.html'}")
    print(logged)
    if logging_failed:
        raise typer.Exit(1)


@app.command()
def anchors(
    encoder: Annotated[str | None, typer.Argument(help="An encoder's name; without one, the table is listed.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Data to measure on, e.g. davis=~/data/DAVIS.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A .csv file for what was compared.")] = None,
    device: Device = None,
) -> None:
    """Compare an encoder with published results: scores of every block by a paper's protocol, and whether they agree.

    Exits with 1 where one is farther off than its tolerance.
    """
    from tsprobe.anchors import compare, list_anchors
    from tsprobe.encoders import load_encoder
    from tsprobe.errors import SpecError
    from tsprobe.study.result import write_table
    from tsprobe.study.run import pick_device

    if encoder is None:
        listed = [
            {"encoder": a.encoder, "data": a.data, "metric": a.metric, "best": a.best, "block": f"{a.layer}/{a.layers}",
             "last": a.last, "tolerance": a.tolerance, "source": a.source} for a in list_anchors()
        ]  # fmt: skip
        _table(list(listed[0]), [[_cell(v) for v in row.values()] for row in listed]) if listed else print("no anchors")
        return
    if not data:
        raise SpecError("name the data to measure on: --data davis=FOLDER")
    loaded, rows = load_encoder(encoder).to(pick_device(device or "auto")), []
    for given in data:
        name, is_, folder = given.partition("=")
        if not is_:
            raise SpecError(f"--data {given}: write NAME=FOLDER, such as davis=FOLDER")
        scores, compared = compare(loaded, name, folder)
        _table(["block", name], [[layer, f"{score:.1f}"] for layer, score in scores.items()])
        if compared is None:
            print(f"no published result of {loaded.name} on {name} is in the table")
        else:
            rows.append(compared.row())
    if rows:
        _table(list(rows[0]), [[f"{v:.1f}" if isinstance(v, float) else _cell(v) for v in r.values()] for r in rows])
    if out is not None:
        write_table(out, rows, tuple(rows[0]) if rows else ("encoder",))
    if not all(row["agrees"] for row in rows):
        raise typer.Exit(1)


@app.command()
def atlas(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/atlas.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set draws=3.")
    ] = None,
    out: Out = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this study or alignment alone; others stay as they are."),
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="The document; by default ATLAS.md in the output folder.")
    ] = None,
) -> None:
    """Run studies and alignments, and write what they say together: tables, figures and one document of answers.

    What is finished is not run again. Exits with 1 when a part failed; the others are in the document.
    """
    from tsprobe.atlas import read_atlas_spec, run_atlas
    from tsprobe.study.progress import bars

    spec, folder = read_atlas_spec(config, tuple(set_ or ())), out or Path("runs") / config.stem
    with bars() as stage:
        made = run_atlas(spec, folder, only=tuple(only or ()), document=document, config=str(config), stage=stage)
    _table(["part", "kind", "state"], [[part.name, part.kind, part.state] for part in made.parts])
    for part in made.parts:
        if part.state == "failed":
            _say(f"failed: {part.name}: {part.why}")
        for line in part.left_out:
            _say(f"left out: {part.name}: {line}")
    print(f"document: {made.document or 'as soon as a study is finished'}")
    if made.failed:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Say what is installed, which devices work and whether a model hub is reachable. Exits with 1 if a part fails."""
    from tsprobe.doctor import examine

    checks = list(examine())
    _table(["what", "state", "detail"], [[c.what, c.state, c.detail] for c in checks])
    if any(c.state in ("missing", "broken") for c in checks):
        raise typer.Exit(1)


def _overrides(set_: list[str] | None, device: str | None) -> tuple[str, ...]:
    return (*(set_ or ()), *([f"device={device}"] if device else ()))


def _track(study: Study, spec: StudySpec) -> tuple[str, bool]:
    """A line on where the study is logged, and whether that failed."""
    if not spec.tracking.enabled:
        return "MLflow:  off", False
    from tsprobe.tracking import default_uri, log_study

    try:
        log_study(study, spec.tracking.uri, spec.tracking.experiment)
    except TsprobeError as error:
        return f"MLflow:  {error}; the study itself is safe, run it again to log it", True
    uri = spec.tracking.uri or default_uri(study.folder)
    return f"MLflow:  mlflow ui --backend-store-uri {uri}", False


def _track_sweep(found: Sweep, spec: SweepSpec) -> tuple[str, bool]:
    """A line on where the sweep is logged, and whether that failed."""
    if not spec.tracking.enabled:
        return "MLflow:  off", False
    from tsprobe.tracking import default_uri, log_sweep

    uri = spec.tracking.uri or default_uri(found.folder)
    try:
        log_sweep(found, spec.dump(), uri, spec.tracking.experiment)
    except TsprobeError as error:
        return f"MLflow:  {error}; the sweep itself is safe, run it again to log it", True
    return f"MLflow:  mlflow ui --backend-store-uri {uri}", False


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


def _show_verdicts(study: Study) -> None:
    rows = []
    for v in study.verdicts.to_dict("records"):
        role = study.controls.get(v["encoder"], "")
        interval = "" if role.startswith("ba") else f"{v['gap']:+.3f}"
        if interval and not math.isnan(v["gap_low"]):  # one test series has none
            interval += f" [{v['gap_low']:+.3f}, {v['gap_high']:+.3f}]"
        readable = [v["encoder"], v["task"], v["metric"], f"{v['final_score']:.3f}", f"{v['chosen_score']:.3f}"]
        rows.append([*readable, v["chosen_layer"], interval, f"{v['p_adjusted']:.3f}", v["verdict"]])
    _table(["encoder", "task", "metric", "final", "chosen", "layer", "gap", "p (Holm)", "verdict"], rows)


def _table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(*header, header_style="bold", box=None, pad_edge=False)
    styles = {"hidden": "bold yellow", "broken": "bold red", "missing": "red", "exposed": "green", "ok": "green"}
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _tell(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """One line for what the user should know; what packages warn of, as Python does it."""
    ours = issubclass(category, DamagedWarning)
    _say(f"tsprobe: {message}" if ours else warnings.formatwarning(message, category, filename, lineno).rstrip())


class _Stopped(BaseException):
    """By Ctrl-C, or by SIGTERM, as a scheduler sends it before it kills. No `KeyboardInterrupt`, which typer keeps to
    itself."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _told_to_stop() -> Iterator[None]:
    def stop(number: int, _: object) -> None:
        raise _Stopped(number)

    wanted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2, a signal with 128 + its number."""
    try:
        with _told_to_stop(), warnings.catch_warnings():
            warnings.showwarning = _tell  # type: ignore[assignment]
            app()
    except TsprobeError as error:
        _say(f"tsprobe: {' '.join(str(error).split())}")
        sys.exit(2)
    except _Stopped as stopped:
        _say("tsprobe: stopped; what is finished is kept, the same command goes on from there")
        sys.exit(128 + stopped.number)


if __name__ == "__main__":
    main()
