"""Looking into encoders: `run`, `report`, `embed`, `atlas`, `anchors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsprobe.cli.shared import Device, Missing, Nan, Out, app, cell, overrides, print_table, say, show_verdicts, tracked

if TYPE_CHECKING:
    from tsprobe.study.filled import Fill

_CLUSTER = "On a cluster"
OutOrAddress = Annotated[
    str | None,
    typer.Option(
        help="Output folder, by default runs/NAME_OF_THE_CONFIG; or an address that fsspec reaches, such as "
        "s3://BUCKET/FOLDER: finished cells are sent there as they come."
    ),
]
OnCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="local|auto|ADDRESS", rich_help_panel=_CLUSTER,
        help="Run on Ray: on this machine's processors, on the cluster that it is part of, at HOST:PORT or at "
        "ray://HOST:PORT. Workers load encoders and tasks by name; they need no folder in common.",
    ),
]  # fmt: skip
Shard = Annotated[
    int | None,
    typer.Option(rich_help_panel=_CLUSTER, help="Series that a worker reads at a time, of panels with more; 4096."),
]
Cpus = Annotated[
    float | None, typer.Option(rich_help_panel=_CLUSTER, help="Processors, and threads, of a piece of work; 1.")
]
Gpus = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=_CLUSTER,
        help="GPUs of a piece of work with an encoder, 0.5 for two of them on one; by default 1 where --device allows "
        "it and a node has one.",
    ),
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/quickstart.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set seeds=[0,1].")
    ] = None,
    out: OutOrAddress = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished cells, or forget them.")] = True,
    nan: Missing = None,
    cluster: OnCluster = None,
    shard: Shard = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """Run a study: every layer of every encoder on every task, with controls, verdicts and a report.

    A study that was stopped goes on where it was, also on a cluster, and also on another machine if it was sent to an
    address. Exits with 0 when everything was run and logged, with 1 when an encoder could not be run on a task or the
    tracking store could not be reached, with 2 for a mistake in the request or a cluster or store that refuses.
    """
    from tsprobe.mirror import is_address, placed
    from tsprobe.study import read_spec, run_study
    from tsprobe.study.progress import bars
    from tsprobe.tracking import log_study

    spec = read_spec(config, (*overrides(set_, device), *([f"missing={nan.value}"] if nan else ())))
    fill = _filling(cluster, {"shard": shard, "cpus": cpus, "gpus": gpus})
    with bars() as stage, placed(out or Path("runs") / config.stem, fresh=not resume) as place:
        study = run_study(spec, place.folder, stage=place.told(stage), fresh=not resume, fill=fill)
        with stage("report", 1):
            page = study.report(place.folder / "report.html")
        with stage("MLflow", 1):
            logged, logging_failed = tracked(
                "study", study.folder, spec.tracking, lambda uri: log_study(study, uri, spec.tracking.experiment)
            )
    show_verdicts(study)
    left_out = study.provenance["left_out"]
    for pair in left_out:
        say(f"left out: {pair['encoder']} on {pair['task']}: {pair['reason']}")
    print(f"report:  {page}")
    print(logged)
    if is_address(out or ""):
        print(f"sent to: {out}")
    if left_out or logging_failed:
        raise typer.Exit(1)


def _filling(address: str | None, given: dict[str, Any]) -> Fill | None:
    """What fills the study's folder: a cluster, if one is named."""
    from tsprobe.errors import SpecError

    given = {name: value for name, value in given.items() if value is not None}
    if address is None:
        if given:
            raise SpecError(f"--{next(iter(given))} is for studies on a cluster: name one with --cluster")
        return None
    from tsprobe.cluster import Cluster, on_cluster
    from tsprobe.settings import validated

    return on_cluster(validated(Cluster, {"address": address, **given}))


@app.command()
def report(
    folders: Annotated[
        list[str], typer.Argument(help="The folder or address of a finished study, or the folders of alignments.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default in the study's folder, or beside the first alignment's.")
    ] = None,
) -> None:
    """Write report.html anew from a finished study and print its verdicts.

    Given folders of `tsprobe align`, print what each recipe brought to each family of tasks and what it cost, and draw
    that as one page.
    """
    from tsprobe.alignment.families import FILE, as_text, tradeoff
    from tsprobe.mirror import is_address
    from tsprobe.report.tradeoff import write_tradeoff
    from tsprobe.study import Study

    paths = [Path(folder) for folder in folders]
    if len(paths) > 1 or (paths[0] / FILE).exists():
        table = tradeoff(paths)
        print_table(*as_text(table))
        print(f"report:  {write_tradeoff(out or paths[0].resolve().parent / 'tradeoff.html', table)}")
        return
    study = Study.open(folders[0])
    page = study.report(out or (Path() if is_address(folders[0]) else paths[0]) / "report.html")
    show_verdicts(study)
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
        print_table(list(listed[0]), [[cell(v) for v in row.values()] for row in listed]) if listed else print(
            "no anchors"
        )
        return
    if not data:
        raise SpecError("name the data to measure on: --data davis=FOLDER")
    loaded, rows = load_encoder(encoder).to(pick_device(device or "auto")), []
    for given in data:
        name, is_, folder = given.partition("=")
        if not is_:
            raise SpecError(f"--data {given}: write NAME=FOLDER, such as davis=FOLDER")
        scores, compared = compare(loaded, name, folder)
        print_table(["block", name], [[layer, f"{score:.1f}"] for layer, score in scores.items()])
        if compared is None:
            print(f"no published result of {loaded.name} on {name} is in the table")
        else:
            rows.append(compared.row())
    if rows:
        print_table(
            list(rows[0]), [[f"{v:.1f}" if isinstance(v, float) else cell(v) for v in r.values()] for r in rows]
        )
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
    print_table(["part", "kind", "state"], [[part.name, part.kind, part.state] for part in made.parts])
    for part in made.parts:
        if part.state == "failed":
            say(f"failed: {part.name}: {part.why}")
        for line in part.left_out:
            say(f"left out: {part.name}: {line}")
    print(f"document: {made.document or 'as soon as a study is finished'}")
    if made.failed:
        raise typer.Exit(1)
