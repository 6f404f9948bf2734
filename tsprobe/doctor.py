"""What works on this machine: packages, devices, kernels, the store, the hub."""

from __future__ import annotations

import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "missing", "off", "broken"]

PACKAGES = {
    "numpy": "core", "xarray": "core", "zarr": "core: study.zarr", "scikit-learn": "core",
    "triton": "fused pooling on GPUs",
    "sktime": "real data, raw-signal baselines", "numba": "raw-signal baselines", "gluonts": "forecasting data",
    "mlflow": "tracking", "optuna": "sweeps", "plotly": "the report", "fracast": "the encoder in the quickstart",
    "transformers": 'PatchTST, vision: pip install "tsprobe[models]"',
    "chronos-forecasting": 'Chronos encoders: pip install "tsprobe[models]"',
    "timm": 'vision encoders: pip install "tsprobe[vision]"', "ray": 'clusters: pip install "tsprobe[cluster]"',
}  # fmt: skip
OPTIONAL = ("transformers", "chronos-forecasting", "timm", "ray")


class Check(NamedTuple):
    what: str
    state: State
    detail: str


def examine() -> Iterator[Check]:
    """Look at one thing after another; nothing is changed."""
    yield Check("python", "ok", platform.python_version())
    yield _torch()
    for package, purpose in PACKAGES.items():
        try:
            yield Check(package, "ok", f"{version(package)} ({purpose})")
        except PackageNotFoundError:
            yield Check(package, "off" if package in OPTIONAL else "missing", f"not installed ({purpose})")
    yield from _devices()
    yield _pooling()
    yield _weights()
    yield _disk()
    yield _hub()


def _torch() -> Check:
    import torch

    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _devices() -> Iterator[Check]:
    import torch

    yield Check("cpu", "ok", platform.machine())
    if not torch.cuda.is_available():
        yield Check("cuda", "off", "no GPU that torch can use: everything runs on the CPU")
        return
    for i in range(torch.cuda.device_count()):
        try:
            total = float(torch.ones(8, device=f"cuda:{i}").sum())
            yield Check(f"cuda:{i}", "ok" if total == 8 else "broken", torch.cuda.get_device_name(i))
        except RuntimeError as error:
            yield Check(f"cuda:{i}", "broken", str(error).splitlines()[0])


def _pooling() -> Check:
    import torch

    from tsprobe.pooling import Slots, native_state, path_used, pool
    from tsprobe.types import TokenMap

    steps = torch.arange(3).expand(1, 3)
    tokens = TokenMap(torch.tensor([[True, True, False]]), steps, steps + 1)
    x = torch.tensor([[[1.0], [3.0], [9.0]]])
    pooled, _ = pool(x, tokens, Slots.parse(("mean", "max")))
    right = pooled.flatten().tolist() == [2.0, 3.0]
    return Check("pooling on the CPU", "ok" if right else "broken", f"{path_used(x)} ({native_state()[1]})")


def _weights() -> Check:
    from tsprobe.encoders import load_encoder
    from tsprobe.errors import TsprobeError

    try:
        encoder = load_encoder("fracast")
    except TsprobeError as error:
        return Check("fracast weights", "missing", str(error))
    return Check("fracast weights", "ok", f"{sum(p.numel() for p in encoder.module.parameters()):,} parameters")


def _disk() -> Check:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        return Check("disk", "broken", f"cannot write here: {error.strerror}")
    return Check("disk", "ok", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here")


def _hub() -> Check:
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return Check("model hub", "off", "not reachable: give encoders as local folders (FAMILY:./folder)")
    return Check("model hub", "ok", "reachable")
