"""What produced a study: versions, device, checksums of data and weights, timings."""

from __future__ import annotations

import platform
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


def describe_task(task: Task) -> dict[str, Any]:
    return {
        "source": task.source, "licence": task.licence, "sha256": task.fingerprint(), "n_train": len(task.train),
        "n_test": len(task.test), "channels": task.train.channels, "description": task.description,
        "missing_values": task.train.missing + task.test.missing,
    }  # fmt: skip
