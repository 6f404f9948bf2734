"""What produced a study: versions, device, checksums of data and weights, timings."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tsprobe.encoders.base import Encoder
from tsprobe.encoders.baselines import Baseline
from tsprobe.pooling import path_used
from tsprobe.tasks.base import Task

PACKAGES = (
    "tsprobe", "torch", "numpy", "xarray", "zarr", "pandas", "scikit-learn", "sktime", "gluonts", "fracast",
    "chronos-forecasting", "transformers", "mlflow",
)  # fmt: skip


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_device(device: str) -> dict[str, Any]:
    """Where a study ran, and by which path float32 tokens were pooled there."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    pooling = path_used(torch.empty(1, 1, 1, device=device))
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "pooling": pooling}


def describe_encoder(encoder: Encoder | Baseline, fingerprint: str) -> dict[str, Any]:
    facts = encoder.facts
    return {
        "objective": facts.objective, "weights_sha256": fingerprint, "pretrained_on": facts.pretrained_on,
        "overlaps": list(facts.overlaps), "code_licence": facts.code_licence, "weights_licence": facts.weights_licence,
        "context": facts.context, "final": encoder.final, "final_is": facts.final_is,
    }  # fmt: skip


def describe_tasks(tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
    """By their own names, as tables have them: they may have been asked for by other spellings."""
    return {task.name: _describe_task(task) for task in tasks}


def _describe_task(task: Task) -> dict[str, Any]:
    return {
        "source": task.source, "licence": task.licence, "sha256": task.fingerprint(), "n_train": len(task.train),
        "n_test": len(task.test), "channels": task.train.channels, "description": task.description,
        "missing_values": task.train.missing + task.test.missing,
    }  # fmt: skip


def seen_in_pretraining(encoders: Mapping[str, dict[str, Any]], tasks: Iterable[str]) -> dict[str, list[str]]:
    """The tasks of each encoder (as `describe_encoder` tells of it) whose data it declares to have been trained on.

    An evaluation set that it names is looked for among the words of the tasks' names: `M3` is in `m3/monthly`.
    """
    words = {task: re.split(r"[^a-z0-9]+", task.casefold()) for task in tasks}
    seen = {
        name: [task for task, said in words.items() if any(part.casefold() in said for part in facts["overlaps"])]
        for name, facts in encoders.items()
    }
    return {name: found for name, found in seen.items() if found}
