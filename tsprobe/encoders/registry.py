"""Which encoders there are: the built-in families and those that other packages bring through entry points.

A family is registered under a name as a lazy string `"module:attr"`. The attribute has `card`, a `Card`, and
`load(source, **options)`, which gives an `Encoder`; `source` is what stands behind the name (`chronos-bolt:SOURCE`,
`zoo/SOURCE`) or None where nothing does. Its module must be light: it imports the model's package inside `load`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tsprobe.encoders.base import UNTRAINED
from tsprobe.errors import EncoderError, MissingPackageError, UnknownNameError

if TYPE_CHECKING:
    from tsprobe.encoders.base import Encoder

GROUP = "tsprobe.encoders"
BUILT_IN = {
    "fracast": "tsprobe.encoders.fracast:Fracast",
    "chronos-t5": "tsprobe.encoders.chronos_t5:ChronosT5",
    "chronos-bolt": "tsprobe.encoders.chronos_bolt:ChronosBolt",
    "chronos-2": "tsprobe.encoders.chronos2:Chronos2",
    "patchtst": "tsprobe.encoders.patchtst:PatchTST",
}


@dataclass(frozen=True)
class Card:
    """What `tsprobe list encoders` says about a family without loading anything.

    `pattern` is how its encoders are named: `NAME:SOURCE`, `NAME/SOURCE`, or `NAME` where there is one that needs no
    source. `package` is the module that must be importable, None if the family needs no other package; `extra` is the
    extra of tsprobe that brings it.
    """

    pattern: str
    objective: str
    package: str | None
    code_licence: str
    weights_licence: str
    final_is: str
    extra: str | None = None

    @property
    def install(self) -> str:
        if self.package is None:
            return ""
        return f'pip install "tsprobe[{self.extra}]"' if self.extra else f"pip install {self.package}"


class Family(Protocol):
    card: Card

    def load(self, source: str | None, **options: Any) -> Encoder: ...


def list_encoders() -> list[dict[str, str | bool]]:
    """One row for each family, sorted by name, with the keys `name`, `objective`, `package`, `installed`, `install`,
    `code_licence`, `weights_licence` and `final_is`. Nothing is loaded and no model package is imported."""
    rows: list[dict[str, str | bool]] = []
    for name in sorted(_targets()):
        card = _family(name).card
        rows.append(
            {
                "name": card.pattern,
                "objective": card.objective,
                "package": card.package or "",
                "installed": _installed(card),
                "install": card.install,
                "code_licence": card.code_licence,
                "weights_licence": card.weights_licence,
                "final_is": card.final_is,
            }
        )
    return rows


def load_named(name: str, **options: Any) -> Encoder:
    """The encoder of that name. Raises `UnknownNameError`, `MissingPackageError` or `EncoderError`."""
    plain = name.removesuffix(UNTRAINED)
    family, source = _split(plain)
    card = _family(family).card
    if not _installed(card):
        raise MissingPackageError(cast("str", card.package), f"the encoder {plain}", card.extra)
    encoder = _family(family).load(source, **options)
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


def _installed(card: Card) -> bool:
    return card.package is None or find_spec(card.package) is not None
