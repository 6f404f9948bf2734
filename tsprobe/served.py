"""A layer of an encoder, or an estimator on it, in a folder of plain files, and what it answers. No pickles.

    served.json   which encoder is read, where, and how
    encoder/      its weights, cut at the layer where that is possible: what `Encoder.save` writes
    base/         JSON files of the folder that the encoder's name points to, if it points to one
    head.npz      of an estimator: scaler, coefficients, classes

The network itself is built from the encoder's name, by code that is installed where the folder is read; an encoder
that wraps a module of the user's own is built by their function (`python:package.module:function`), and then filled
with the weights. MLflow loads such a folder by `_load_pyfunc`; `tsprobe.serving` writes it there.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tsprobe.capture import Reading, extract
from tsprobe.data.panel import Panel, as_panel
from tsprobe.encoders import hub, load_encoder
from tsprobe.encoders.aligned import Aligned, Tuned
from tsprobe.encoders.base import Encoder, Tap
from tsprobe.encoders.registry import load_named
from tsprobe.encoders.wrap import Wrapped
from tsprobe.errors import EncoderError, SpecError
from tsprobe.files import read_arrays, read_json, replace_file, replace_text

if TYPE_CHECKING:
    from jaxtyping import Float

_CLOSE = 1e-4  # of the largest feature: float32 through a network that was built anew
_PLAIN = "biufU"  # kinds of classes that an array holds without a pickle


@dataclass(frozen=True)
class Where:
    """What is read: a layer of an encoder, and how the network is built: `base` is a name, or `python:...`."""

    encoder: str
    base: str
    layer: str
    pooling: str
    channels: Literal["mean", "concat"]
    wrapped: dict[str, Any] | None = None  # arguments of `load_encoder` for a module of the user's own

    def __post_init__(self) -> None:
        """Raises `ValueError` for what is no text."""
        if not all(isinstance(value, str) for name, value in vars(self).items() if name != "wrapped"):
            raise ValueError("encoder, base, layer, pooling and channels are texts")
        if not isinstance(self.wrapped, dict | None):
            raise ValueError("wrapped is a dict of arguments")


@dataclass(frozen=True, eq=False)
class Head:
    """A linear readout of standardised vectors: of classes where there are any, else of one value.

    z = (x - mean) / scale; scores `[N, K]` are z W' + b. One row of W stands for the second of two classes.
    """

    mean: Float[np.ndarray, " D"]
    scale: Float[np.ndarray, " D"]
    weight: Float[np.ndarray, "K D"]
    bias: Float[np.ndarray, " K"]
    classes: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` for arrays that are not numbers, or do not fit each other."""
        numbers = (self.mean, self.scale, self.weight, self.bias)
        shapes = [array.shape for array in numbers]
        if any(array.dtype.kind not in "iuf" for array in numbers) or self.weight.ndim != 2:
            raise ValueError("a head is of numbers")
        rows, width = self.weight.shape
        if shapes != [(width,), (width,), (rows, width), (rows,)]:
            raise ValueError(f"mean, scale, weight and bias of shapes {shapes} do not fit each other")
        if self.classes is not None and self.classes.shape != (max(rows, 2),):
            raise ValueError(f"{rows} rows of weights and classes of shape {self.classes.shape}")

    @classmethod
    def of(cls, fitted: Any) -> Head:
        """From the pipeline of a scaler and a linear model that `tsprobe.estimators` fits, searched for or not."""
        scaler, model = (pipeline := getattr(fitted, "best_estimator_", fitted))[0], pipeline[-1]
        classes = getattr(model, "classes_", None)
        if classes is not None and classes.dtype.kind == "O" and all(isinstance(name, str) for name in classes):
            classes = classes.astype(str)
        if classes is not None and classes.dtype.kind not in _PLAIN:
            raise SpecError(f"classes of type {classes.dtype} cannot be kept; give numbers or strings")
        return cls(scaler.mean_, scaler.scale_, np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_), classes)

    def scores(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        return (x - self.mean) / self.scale @ self.weight.T + self.bias

    def probabilities(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
        from scipy.special import expit, softmax

        scores = self.scores(x)
        if scores.shape[1] > 1:
            return softmax(scores, axis=1)
        return np.hstack([expit(-scores), expit(scores)])

    def answers(self, x: Float[np.ndarray, "N D"]) -> np.ndarray:
        """Classes, or values `[N]`."""
        return self.scores(x)[:, 0] if self.classes is None else self.classes[self.probabilities(x).argmax(1)]

    def save(self, file: Path) -> None:
        arrays: dict[str, Any] = {key: value for key, value in vars(self).items() if value is not None}
        replace_file(file, lambda handle: np.savez(handle, **arrays))

    @classmethod
    def load(cls, file: Path) -> Head:
        return cls(**read_arrays(file))


class Served:
    """Answers to series `[N, C, S]`: features `[N, D]`, or what a head says of them."""

    def __init__(self, encoder: Encoder, where: Where, head: Head | None) -> None:
        self.encoder, self.where, self.head = encoder, where, head

    @property
    def kind(self) -> str:
        if self.head is None:
            return "features"
        return "values" if self.head.classes is None else "labels"

    def features(self, x: Any) -> Float[np.ndarray, "N D"]:
        where = self.where
        reading = Reading((where.pooling,), where.channels)
        return extract(self.encoder, as_panel(x), reading, layers=(where.layer,)).matrix(where.layer, where.pooling)

    def get_raw_model(self) -> Served:
        """What MLflow's loaded models give out as their inside."""
        return self

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Of MLflow's pyfunc models. With `proba` true, probabilities `[N, C]` of the classes instead of labels."""
        vectors = self.features(np.asarray(model_input))
        if (params or {}).get("proba"):
            if self.kind != "labels":
                raise SpecError(f"this model gives {self.kind}; proba is for classifiers")
            assert self.head is not None
            return self.head.probabilities(vectors)
        return vectors if self.head is None else self.head.answers(vectors)


def write(
    folder: Path, encoder: Encoder, layer: str, reading: Reading, head: Head | None, example: Panel, source: str | None
) -> Served:
    """Write a folder and read it back: what is read must give the features of `encoder` for the example.

    `source` is the function that builds the encoder, or its module, where no name does. Raises `EncoderError` for an
    encoder that cannot be kept, and says why: one in a worker process; one without a name to build it by and without
    `source`; one wrapped with functions that no file holds, whose `source` gives the module only.
    """
    from tsprobe.encoders.remote import Remote

    if isinstance(encoder, Remote):
        raise EncoderError(f"{encoder.name} lives in a worker process; only encoders in this process can be served")
    expected = extract(encoder, example, reading, layers=(layer,)).matrix(layer, reading.poolings[0])
    kept = _cut(encoder, layer)
    base = source or _name_of(kept)
    where = Where(encoder.name, base, layer, reading.poolings[0], reading.channels)
    if isinstance(kept, Wrapped):
        if source is None:
            raise EncoderError(
                f"{encoder.name} wraps a module of your own, which no name builds: give "
                'source="python:package.module:function", what builds it or its encoder, and code= its files'
            )
        where = replace(where, wrapped=_wrapped(kept))
    _save(kept, folder, where)
    if head is not None:
        head.save(folder / "head.npz")
    served = read(folder)
    found = served.features(example)
    if found.shape != expected.shape or np.abs(found - expected).max() > _CLOSE * np.abs(expected).max():
        raise EncoderError(f"{encoder.name}: what {base!r} builds does not read as this encoder does at {layer}")
    return served


def read(folder: Path) -> Served:
    """What `write` wrote. Raises `EncoderError` for a folder that is damaged, and what loading an encoder does."""
    try:
        where = Where(**read_json(folder / "served.json"))
        head = Head.load(folder / "head.npz") if (folder / "head.npz").exists() else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EncoderError(f"{folder} is not a whole folder of a served model ({error})") from error
    with hub.without_weights():
        base = _base(folder, where)
    encoder = Aligned.load(str(folder / "encoder"), base=base, name=where.encoder)
    return Served(encoder, where, head)


def _load_pyfunc(data_path: str) -> Served:
    """MLflow's way to a model of this module."""
    from tsprobe.study.run import pick_device

    served = read(Path(data_path))
    served.encoder.to(pick_device("auto"))
    return served


def _cut(encoder: Encoder, layer: str) -> Encoder:
    """Without what comes after the layer, or whole where it cannot be cut there."""
    if encoder.cut is not None and encoder.final == layer:
        return encoder
    try:
        return encoder.truncate(layer)
    except EncoderError:
        return encoder


def _name_of(encoder: Encoder) -> str:
    if isinstance(encoder.tuned, Tuned):
        return encoder.tuned.base
    return encoder.name if encoder.cut is None else encoder.name.removesuffix(f"..{encoder.cut.layer}")


def _save(encoder: Encoder, folder: Path, where: Where) -> None:
    twin = copy.copy(encoder)
    if not isinstance(encoder.tuned, Tuned):
        twin.tuned = Tuned(where.base, "none", "nothing more")
    twin.save(folder / "encoder")
    replace_text(folder / "served.json", json.dumps(asdict(where), indent=1) + "\n")
    home = Path(where.base.partition(":")[2]).expanduser()
    if not where.base.startswith("python:") and ":" in where.base and home.is_dir():
        (folder / "base").mkdir()
        for file in home.glob("*.json"):
            shutil.copy(file, folder / "base")


def _base(folder: Path, where: Where) -> Encoder:
    """The network without its weights."""
    from tsprobe.study.entries import build_source

    if where.base.startswith("python:"):
        built = build_source(where.base)
        if isinstance(built, Encoder):
            return built
        if where.wrapped is None:
            raise EncoderError(
                f"{where.base} gives a module, and {where.encoder} wraps it with functions or not at all: let it give "
                "the encoder, as load_encoder(module, ...) does"
            )
        settings = dict(where.wrapped)
        return load_encoder(built, blocks=[Tap(**tap) for tap in settings.pop("blocks")], **settings)
    if (folder / "base").is_dir():
        return load_named(f"{where.base.partition(':')[0]}:{folder / 'base'}")
    return load_named(where.base)


def _wrapped(encoder: Wrapped) -> dict[str, Any] | None:
    """Arguments of `load_encoder` that wrap the module anew; None where they are not plain."""
    settings = encoder.settings()
    blocks = [tap for name, tap in encoder.taps.items() if name.startswith("block.")]
    if settings is None or not blocks:
        return None
    return settings | {
        "name": encoder.name,
        "blocks": [{"path": tap.path, "side": tap.side, "call": tap.call} for tap in blocks],
    }
