"""Targets: encoders' folders, weights and what goes with them."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from tsprobe.encoders import hub, load_encoder, pickles
from tsprobe.encoders.backbone import Shape
from tsprobe.encoders.ct2 import read_ct2
from tsprobe.encoders.zoo_model import ZooModel
from tsprobe.pretraining.spec import PretrainSpec
from tsprobe.pretraining.train import CHECKPOINT, take_up

from .harness import Target

_HERE = b"@HERE@"  # in a file, the folder that it is put into
_SHAPE = {"patch": 4, "context": 32, "width": 8, "depth": 1, "heads": 2, "hidden": 8}
Files = dict[str, bytes]


def _zoo() -> Files:
    torch.manual_seed(0)
    config = {
        "model_type": "tsprobe-zoo", "objective": "jepa", "shape": _SHAPE, "pretrained_on": "noise", "overlaps": ["M3"],
    }  # fmt: skip
    weights = to_bytes(ZooModel(Shape(**_SHAPE), "jepa").state_dict())  # type: ignore[arg-type]
    return {"config.json": json.dumps(config).encode(), "model.safetensors": weights}


def _aligned() -> Files:
    config = {
        "model_type": "tsprobe-aligned", "base": f"zoo:{_HERE.decode()}/base", "recipe": "dense", "trained_on": "noise",
        "scaled": False, "cut": "block.0",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), _zoo())
        state = load_encoder(f"zoo:{folder}").truncate("block.0").module.state_dict()
    base = {f"base/{name}": content for name, content in _zoo().items()}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": to_bytes(state), **base}


def _served() -> Files:
    from tsprobe.capture import Reading
    from tsprobe.data.panel import as_panel
    from tsprobe.served import Head, write

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _write(place / "base", _zoo())
        encoder = load_encoder(f"zoo:{place}/base")
        head = Head(np.zeros(8), np.ones(8), np.ones((3, 8)), np.zeros(3), np.array(["a", "b", "c"]))
        example = as_panel(np.random.default_rng(0).standard_normal((2, 1, 16)))
        write(place / "served", encoder, "block.0", Reading(), head, example, None)
        files = {str(f.relative_to(place)): f.read_bytes() for f in sorted(place.rglob("*")) if f.is_file()}
    return {
        name: content.replace(folder.encode(), _HERE) if name.endswith(".json") else content
        for name, content in files.items()
    }


def _patchtst() -> Files:
    from transformers import PatchTSTConfig, PatchTSTForPretraining

    config = PatchTSTConfig(
        context_length=32, patch_length=8, patch_stride=8, d_model=8, ffn_dim=8, num_hidden_layers=1,
        num_attention_heads=2, num_input_channels=2,
    )  # fmt: skip
    return _saved(PatchTSTForPretraining(config))


def _chronos_bolt() -> Files:
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    patches = {"context_length": 32, "input_patch_size": 8, "input_patch_stride": 8, "quantiles": [0.1, 0.5, 0.9],
               "use_reg_token": True, "prediction_length": 8}  # fmt: skip
    config = T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        chronos_config=patches,
    )  # fmt: skip
    return _saved(ChronosBoltModelForForecasting(config))


def _saved(model: Any) -> Files:
    with hub.quiet(), tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir()) if f.suffix in (".json", ".safetensors")}


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.replace(_HERE, str(folder).encode()) if name.endswith(".json") else content)


def folder_target(name: str, make: Callable[[], Files], read: Callable[[Path], Any]) -> Target:
    """Of a folder one file is as the content says, and the others are as they should be."""
    files = cache(make)

    def valid(_: Path) -> list[bytes]:
        return [each.encode() + b"\n" + content for each, content in sorted(files().items())]

    def put(folder: Path, content: bytes) -> Any:
        given, _, changed = content.partition(b"\n")
        names = sorted(files())
        chosen = given.decode() if given in {n.encode() for n in names} else names[len(content) % len(names)]
        _write(folder, {**files(), chosen: changed})
        return read(folder)

    return Target(name, ".folder", valid, put)


def _file(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    def put(folder: Path, content: bytes) -> Any:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return put


def _pickles(_: Path) -> list[bytes]:
    state = {"weight": torch.ones(2, 3), "more": {"step": 1, "names": ["a"]}}
    return [_pickled(state), _pickled({"state_dict": state}), _pickled(state, zipped=False)]


def _pickled(what: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _ge2e(path: Path) -> Any:
    from tsprobe.encoders.ge2e import load_weights

    return load_weights(path)


def _ct2_file(_: Path) -> list[bytes]:
    def text(name: str) -> bytes:
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    tensor = text("a") + struct.pack("<BIIBI", 2, 2, 1, 0, 8) + np.ones(2, np.float32).tobytes()
    return [struct.pack("<I", 6) + text("Spec") + struct.pack("<II", 1, 1) + tensor + struct.pack("<I", 1)
            + text("b") + text("a")]  # fmt: skip


class _Stopped:
    """A run as it is taken up from its checkpoint."""

    spec = PretrainSpec.model_validate({"objective": "jepa", "backbone": {"patch": 8, "width": 8, "heads": 1}})
    device = torch.device("cpu")

    def restore(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])


def _checkpoints(_: Path) -> list[bytes]:
    return [_pickled({"spec": _Stopped.spec.dump(), "step": 3, "network": {"w": torch.ones(2)}})]


def _served_read(folder: Path) -> Any:
    from tsprobe.served import read

    return read(folder / "served").predict(np.ones((1, 1, 16)))


TARGETS = [
    folder_target("zoo", _zoo, lambda folder: load_encoder(f"zoo:{folder}")),
    folder_target("zoo-untrained", _zoo, lambda folder: load_encoder(f"zoo:{folder}@untrained")),
    folder_target("aligned", _aligned, lambda folder: load_encoder(f"aligned:{folder}")),
    folder_target("served", _served, _served_read),
    folder_target("patchtst", _patchtst, lambda folder: load_encoder(f"patchtst:{folder}")),
    folder_target("chronos-bolt", _chronos_bolt, lambda folder: load_encoder(f"chronos-bolt:{folder}")),
    Target("pickle", ".pt", _pickles, _file("model.pt", lambda path: pickles.read_pickle(path, "toy"))),
    Target("ge2e", ".pt", _pickles, _file("pretrained.pt", _ge2e)),
    Target(
        "safetensors", ".safetensors", lambda _: [_zoo()["model.safetensors"]],
        _file("model.safetensors", lambda path: hub.read_state(path.parent, "toy")),
    ),
    Target("ct2", ".bin", _ct2_file, _file("model.bin", read_ct2)),
    Target("checkpoint", ".pt", _checkpoints, _file(CHECKPOINT, lambda path: take_up(_Stopped(), path.parent))),
]  # fmt: skip
