"""Choosing and changing what is used: `sweep`, `align`, `pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsprobe.cli.shared import Device, Out, Resume, app, cell, overrides, print_table, say, tracked

if TYPE_CHECKING:
    from tsprobe.sweep import Sweep


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

    A config with align: searches the settings of an alignment instead, such as rate, mask, teacher and steps; see
    configs/sweep_align.yaml. The test set is read once, for the chosen trial. A sweep that was stopped runs the trials
    that are missing. Exits with 1 where the tracking store could not be reached, with 2 for a mistake in the request.
    """
    from tsprobe.study.progress import bars
    from tsprobe.sweep import TuningSweepSpec, read_sweep_spec, run_sweep, run_tuning_sweep
    from tsprobe.tracking import log_sweep

    spec = read_sweep_spec(config, overrides(set_, device))
    folder = out or Path("runs") / config.stem
    with bars() as stage:
        if isinstance(spec, TuningSweepSpec):
            found = run_tuning_sweep(spec, folder, stage=stage, fresh=not resume)
        else:
            found = run_sweep(spec, folder, stage=stage, fresh=not resume)
        if not found.best:
            print(found.message)
            print(f"before:  {folder / 'before' / 'report.html'}")
            return
        with stage("MLflow", 1):
            logged, logging_failed = tracked(
                "sweep", found.folder, spec.tracking,
                lambda uri: log_sweep(found, spec.dump(), uri, spec.tracking.experiment),
            )  # fmt: skip
    if isinstance(spec, TuningSweepSpec):
        _show_tuning(found)
    else:
        _show_readout(found)
    print(f"trials:  {', '.join(f'{n} {state}' for state, n in found.trials['state'].value_counts().items())}")
    if "compared" in found.best:
        grid = found.best["compared"]
        print(
            f"grid:    best of {grid['cells']} settings {grid['best']:.3f} [{grid['low']:.3f}, {grid['high']:.3f}], "
            f"of the trials {grid['best_of_sweep']:.3f}; within from trial {grid['trials_to_within']} on"
        )
    print(f"report:  {folder / 'report.html'}")
    print(logged)
    if logging_failed:
        raise typer.Exit(1)


def _show_readout(found: Sweep) -> None:
    best, test = found.best, found.best["test"]
    header = ["trial", *best["params"], "inner", "test", "interval"]
    interval = f"[{test['low']:.3f}, {test['high']:.3f}]"
    row = [best["trial"], *best["params"].values(), f"{best['inner_score']:.3f}", f"{test['score']:.3f}", interval]
    print_table(header, [[cell(value) for value in row]])


def _show_tuning(found: Sweep) -> None:
    best = found.best
    if found.message:
        print(found.message)
    header = ["trial", *best["params"], "inner", "price"]
    row = [best["trial"], *best["params"].values(), f"{best['inner_score']:+.3f}", f"{best['price']:.3f}"]
    print_table(header, [[cell(value) for value in row]])
    rows = []
    for one in best["test"]:
        interval = "" if one["change_low"] is None else f"[{one['change_low']:+.3f}, {one['change_high']:+.3f}]"
        inner = best["inner"].get(one["family"])
        lifted = one["family"] in best["lifted"]
        inner_text = "" if inner is None else f"{inner:+.3f}"
        rows.append([one["family"], cell(lifted), str(one["tasks"]), inner_text, f"{one['change']:+.3f}", interval])
    print_table(["family", "to lift", "tasks", "inner", "test", "interval"], rows)
    for line in best["left_out"]:
        say(f"left out: {line}")
    print(f"chosen:  {found.folder / best['folder'] / 'report.html'}")
    print(f"encoder: aligned:{found.folder / best['encoder']}")


@app.command()
def align(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/align_dense_zoo.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. --set force=true.")
    ] = None,
    out: Out = None,
    device: Device = None,
    resume: Resume = True,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload the encoder and its tables to the hub, when done.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Who may see a repository that --push makes.")
    ] = False,
) -> None:
    """Tune an encoder so that its output carries what its hidden layers do, and study it before and after.

    Where nothing is hidden, says so and stops, unless the config says force. The folder's encoder/ is loaded as
    aligned:DIR/encoder. On several GPUs: torchrun --nproc-per-node N -m tsprobe.cli align CONFIG.
    """
    from tsprobe.alignment import read_align_spec, run_alignment
    from tsprobe.alignment.processes import together
    from tsprobe.alignment.publish import check_repository, publish
    from tsprobe.study.progress import bars
    from tsprobe.study.run import pick_device
    from tsprobe.tracking import loss_curves

    spec = read_align_spec(config, overrides(set_, device))
    if push is not None:
        check_repository(push)
    folder = out or Path("runs") / config.stem
    with together(pick_device(spec.device)) as processes:
        tracking = spec.tracking.model_copy(update={"enabled": spec.tracking.enabled and processes.first})
        with bars() as stage, loss_curves(folder, spec.dump(), tracking, complain=say) as note:
            outcome = run_alignment(spec, folder, stage=stage, fresh=not resume, note=note, processes=processes)
        if not processes.first:
            return
    if outcome.message:
        print(outcome.message)
    for line in outcome.left_out:
        say(f"left out: {line}")
    if outcome.encoder is None:
        print(f"before:  {folder / 'before' / 'report.html'}")
        return
    rows = outcome.lift.fillna("").to_dict("records")
    columns = ["control", "family", "task", "metric", "final_before", "hidden_before", "cut", "final_after", "lift"]
    print_table(columns, [[f"{r[c]:.3f}" if isinstance(r[c], float) else str(r[c]) for c in columns] for r in rows])
    print(f"teacher: {', '.join(outcome.teachers)}")
    print(f"encoder: aligned:{folder / 'encoder'}")
    if push is not None:
        print(f"hub:     {publish(folder, push, private=not public)}, loaded as aligned:{push}")


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

    settings = read_settings(config, overrides(set_, device))
    fitting = load_run(settings, pick_device(str(settings.get("device", "auto"))))
    folder = out or Path("runs") / config.stem
    with bars() as stage:
        about = fit(fitting, folder, stage=stage, fresh=not resume)
    print_table(
        ["step", "held-out loss", "trivial", "effective rank"],
        [[str(x["step"]), f"{x['own']:.4f}", f"{x['trivial']:.4f}", str(x["rank_means"])] for x in about["held_out"]],
    )
    sizes = ", ".join(f"{about[what]} {what}" for what in ("series", "images", "tokens") if what in about)
    print(f"{sizes}, {about['hours']} h on {about['device']}")
    print(f"encoder: {fitting.loads_as}:{folder}")
