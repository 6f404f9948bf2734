"""Encoders: `load_encoder` gives any of them by name, or wraps a module of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tsprobe.encoders.base import Encoder, Facts, Tap
from tsprobe.encoders.registry import Card, list_encoders, load_named
from tsprobe.encoders.wrap import Wrapped
from tsprobe.errors import EncoderError

if TYPE_CHECKING:
    from torch import nn

    from tsprobe.types import Batch, TokenMap

__all__ = ["Card", "Encoder", "Facts", "Tap", "Wrapped", "list_encoders", "load_encoder"]


def load_encoder(
    source: str | nn.Module | Encoder,
    *,
    blocks: str | Sequence[str | Tap] | None = None,
    final: str | None = None,
    prepare: str | Callable[[Batch], Any] | None = None,
    tokens: int | Mapping[str, int] | Callable[[Batch], TokenMap] | None = None,
    name: str | None = None,
    fresh: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Encoder:
    """A frozen encoder that can be read layer by layer.

    `source` is `FAMILY:ID_OR_FOLDER` (`chronos-bolt:amazon/chronos-bolt-small`, `chronos-bolt:./folder`), a bare name
    (`fracast`), either with `@untrained` behind it (same architecture, new weights under seed 0), or a module, which
    needs `blocks`: see `Wrapped` for the other arguments. `name` replaces the encoder's name in results. `options`
    go to the family, or, with a module, are fields of `Facts` (`objective="jepa"`, `context=512`).

    Raises `UnknownNameError`, `MissingPackageError`, or `EncoderError` for weights that are not those of the family.
    """
    if isinstance(source, str | Encoder):
        given = {"blocks": blocks, "final": final, "prepare": prepare, "tokens": tokens, "fresh": fresh}
        extra = [key for key, value in given.items() if value is not None]
        if extra:
            raise EncoderError(f"{', '.join(extra)}: only for a module that is wrapped; {source} knows its own")
        encoder = load_named(source, **options) if isinstance(source, str) else source
        if name is not None:
            encoder.name = name
        return encoder
    if blocks is None:
        raise EncoderError(
            f"a {type(source).__name__} needs its blocks named, such as blocks='encoder.layers.*': a dotted path or "
            "pattern as in dict(module.named_modules())"
        )
    return Wrapped(
        source, blocks=blocks, final=final, prepare=prepare, tokens=tokens, name=name, fresh=fresh, **options
    )
