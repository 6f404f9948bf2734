"""Which encoders there are: the built-in families and those that other packages bring through entry points.

A family is registered under a name as a lazy string `"module:attr"`. The attribute has `card`, a `Card`, and
`load(source, **options)`, which gives an `Encoder`; `source` is what stands behind the name (`chronos-bolt:SOURCE`,
`zoo/SOURCE`) or None where nothing does. Its module must be light: it imports the model's package inside `load`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tsprobe.encoders.base import UNTRAINED
from tsprobe.errors import EncoderError, MissingPackageError, UnknownNameError
from tsprobe.files import no_path

if TYPE_CHECKING:
    from tsprobe.encoders.base import Encoder

GROUP = "tsprobe.encoders"
BUILT_IN = {
    "aligned": "tsprobe.encoders.aligned:Aligned",
    "zoo": "tsprobe.encoders.zoo:Zoo",
    "fracast": "tsprobe.encoders.fracast:Fracast",
    "chronos-t5": "tsprobe.encoders.chronos_t5:ChronosT5",
    "chronos-bolt": "tsprobe.encoders.chronos_bolt:ChronosBolt",
    "chronos-2": "tsprobe.encoders.chronos2:Chronos2",
    "patchtst": "tsprobe.encoders.patchtst:PatchTST",
    "patchtsmixer": "tsprobe.encoders.patchtsmixer:PatchTSMixer",
    "timesfm-2.0": "tsprobe.encoders.timesfm:TimesFM20",
    "timesfm-2.5": "tsprobe.encoders.timesfm:TimesFM25",
    "timesfm-3": "tsprobe.encoders.timesfm3:TimesFM3",
    "moment": "tsprobe.encoders.moment:Moment",
    "momentfm": "tsprobe.encoders.momentfm:MomentFM",
    "lag-llama": "tsprobe.encoders.lag_llama:LagLlama",
    "moirai-1": "tsprobe.encoders.moirai:Moirai",
    "moirai-2": "tsprobe.encoders.moirai2:Moirai2",
    "ttm": "tsprobe.encoders.ttm:TTM",
    "sundial": "tsprobe.encoders.sundial:Sundial",
    "time-moe": "tsprobe.encoders.time_moe:TimeMoE",
    "timer": "tsprobe.encoders.timer:Timer",
    "mantis": "tsprobe.encoders.mantis:Mantis",
    "tspulse": "tsprobe.encoders.tspulse:TSPulse",
    "tirex": "tsprobe.encoders.tirex:TiRex",
    "toto": "tsprobe.encoders.toto:Toto",
    "whisper": "tsprobe.encoders.whisper:Whisper",
    "ge2e": "tsprobe.encoders.ge2e:GE2E",
    "tivit": "tsprobe.encoders.tivit:TiViT",
}


@dataclass(frozen=True)
class Size:
    """One of the sizes in which a family was published: blocks that are read, their width, all parameters."""

    name: str
    layers: int
    width: int
    parameters: int

    def __str__(self) -> str:
        return f"{self.name} {self.layers} x {self.width}, {_short(self.parameters)}".strip()


@dataclass(frozen=True)
class Card:
    """What `tsprobe list encoders` says about a family without loading anything.

    `pattern` is how its encoders are named: `NAME:SOURCE`, `NAME/SOURCE`, or `NAME` where there is one that needs no
    source. `package` is the module that must be importable, None if the family needs no other package; `extra` is the
    extra of tsprobe that brings it. `requirements` are what pip installs in an environment of the family's own, where
    its package cannot live beside ours. `package` may be a part of a package (`sktime.libs.timer`); `also` are further
    modules that must be importable. `install_as` is what pip calls the package where that is not the module's name.
    `sizes` are the published ones.
    """

    pattern: str
    objective: str
    package: str | None
    code_licence: str
    weights_licence: str
    final_is: str
    extra: str | None = None
    requirements: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    install_as: str | None = None
    sizes: tuple[Size, ...] = ()

    @property
    def missing(self) -> str | None:
        """The first module that the family needs and that is not here."""
        needed = (self.package, *self.also) if self.package else self.also
        return next((module for module in needed if not _is_here(module)), None)

    @property
    def install(self) -> str:
        """The command that brings what is missing, or all that the family needs where nothing is."""
        module = self.missing or self.package
        if module is None:
            return ""
        if module in self.also:
            return f"pip install --upgrade {module.partition('.')[0]}"
        name = f"tsprobe[{self.extra}]" if self.extra else self.install_as or module.partition(".")[0]
        return f"pip install {name}" if re.fullmatch(r"[\w.-]+", name) else f'pip install "{name}"'


class Family(Protocol):
    card: Card

    def load(self, source: str | None, **options: Any) -> Encoder: ...


def list_encoders() -> list[dict[str, str | bool]]:
    """One row for each family, sorted by name, with the keys `name`, `objective`, `sizes`, `package`, `installed`,
    `install`, `in_worker` (it can have an environment of its own), `code_licence`, `weights_licence` and `final_is`.
    Nothing is loaded and no model package is imported."""
    rows: list[dict[str, str | bool]] = []
    for name in sorted(_targets()):
        card = _family(name).card
        rows.append(
            {
                "name": card.pattern,
                "objective": card.objective,
                "sizes": "\n".join(map(str, card.sizes)),
                "package": card.package or "",
                "installed": card.missing is None,
                "install": card.install,
                "in_worker": bool(card.requirements),
                "code_licence": card.code_licence,
                "weights_licence": card.weights_licence,
                "final_is": card.final_is,
            }
        )
    return rows


def load_named(name: str, *, workers: bool | None = None, **options: Any) -> Encoder:
    """The encoder of that name. Raises `UnknownNameError`, `MissingPackageError` or `EncoderError`.

    Where its packages are not here and the family has `requirements`, it is loaded in a worker process with an
    environment of its own, if `workers` (by default `$TSPROBE_ALLOW_WORKERS`) allows one to be made.
    """
    if why := no_path(name):
        raise EncoderError(f"{name[:80]!r} names no encoder: {why}")
    plain = name.removesuffix(UNTRAINED)
    family, source = _split(plain)
    card = _family(family).card
    if card.missing is None and name.endswith(UNTRAINED):
        from tsprobe.encoders import hub

        with hub.without_weights():  # a folder with a config alone will do
            encoder = _family(family).load(source, **options)
    elif card.missing is None:
        encoder = _family(family).load(source, **options)
    elif card.requirements and workers is not False:
        from tsprobe.encoders.remote import load_in_worker

        encoder = load_in_worker(plain, family, card.requirements, options, workers)
    else:
        raise MissingPackageError(card.missing, f"the encoder {plain}", install=card.install)
    return encoder.untrained(seed=0) if name.endswith(UNTRAINED) else encoder


def _split(name: str) -> tuple[str, str | None]:
    """A name to its family and what stands behind it."""
    known = _targets()
    if name in known:
        pattern = _family(name).card.pattern
        if pattern.startswith((f"{name}:", f"{name}/")):
            raise EncoderError(f"{name!r} is a family of encoders: write {pattern}")
        return name, None
    for separator in (":", "/"):
        family, found, source = name.partition(separator)
        if found and family in known and (separator == ":" or _family(family).card.pattern.startswith(f"{family}/")):
            if not source:
                raise EncoderError(f"{name!r} names no encoder: write {_family(family).card.pattern}")
            return family, source
    if Path(name).is_dir():
        raise EncoderError(f"{name} is a folder: say whose weights it holds, such as chronos-bolt:{name}")
    hint = "(see `tsprobe list encoders`; a module of your own is wrapped with load_encoder(module, blocks=...))"
    raise UnknownNameError("encoder", name if ":" not in name else name.partition(":")[0], known, hint)


@cache
def _targets() -> dict[str, str]:
    """Names to lazy strings. Raises `EncoderError` where two packages claim one name."""
    targets = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        if targets.setdefault(point.name, point.value) != point.value:
            raise EncoderError(
                f"the encoder name {point.name!r} is claimed twice, by {targets[point.name]} and by {point.value}: "
                "uninstall one of the two packages"
            )
    return targets


def _family(name: str) -> Family:
    module, _, attribute = _targets()[name].partition(":")
    return cast("Family", getattr(import_module(module), attribute))


def _is_here(module: str) -> bool:
    """Whether a module could be imported; looked up among the files, since `find_spec` imports the parents."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    if spec is None or not parts:
        return spec is not None
    places = [Path(folder, *parts) for folder in spec.submodule_search_locations or ()]
    return any(place.is_dir() or place.with_suffix(".py").exists() for place in places)


def _short(count: int) -> str:
    """85001 as 85k, 8653696 as 8.7M, 1203000000 as 1.2B: the number of parameters at a glance."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f}{name}"
    return str(count)
