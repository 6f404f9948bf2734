"""The short way to the compiled loop: past torch's dispatcher, and past the checks that an earlier layer has passed.

Between two layers of an encoder the processor's caches hold nothing of ours, and every line of Python costs some ten
times what it costs in a loop: an operator in Python more than the pooling of a small batch. It is needed only where
somebody watches: a gradient, a compiler, a trace, a mode, a tensor that stands for another. What is asked here is
private to torch, so where a version of it lacks one of the questions, the operator is always taken.

What is prepared for a token map is kept with it, as it is the same for all layers of a batch. The map and the borders
must not be changed after their first use: of tensors made in inference mode, torch itself does not know a change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.pooling.native import Prepared
from tsprobe.pooling.slots import Slots
from tsprobe.types import TokenMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float


def _unknown() -> bool:
    return True


_modes: Callable[[], object] = getattr(torch._C, "_len_torch_dispatch_stack", _unknown)  # fake tensors, make_fx
_transforms: Callable[[], object] = getattr(torch._C, "_are_functorch_transforms_active", _unknown)  # vmap, grad
_trace: Callable[[], object] = getattr(torch._C, "_get_tracing_state", _unknown)  # torch.jit.trace


def allowed(x: Tensor, mask: Tensor) -> bool:
    """Whether nothing but the values of `x` and `mask` matters. Not to be asked while compiling."""
    return (
        type(x) is Tensor
        and type(mask) is Tensor
        and x.layout is torch.strided
        and not (x.requires_grad and torch.is_grad_enabled())
        and not _modes()
        and not _transforms()
        and _trace() is None
        and not x.is_neg()  # values whose sign is turned only when they are read
    )


def recall(
    x: Float[Tensor, "R T D"], tokens: TokenMap, slots: Slots, spans: Float[Tensor, "R K+1"] | None, path: str
) -> Prepared | None:
    """What `keep` kept for tokens such as `x`, if they may take this way."""
    kept = tokens.__dict__.get("_prepared")
    if kept is None or not x.is_cpu or not allowed(x, tokens.mask):
        return None
    prepared, borders, versions = kept.get(_key(x, slots, path), (None, None, None))
    return prepared if borders is spans and versions == _versions(tokens, spans) else None


def keep(
    prepared: Prepared,
    x: Float[Tensor, "R T D"],
    tokens: TokenMap,
    slots: Slots,
    spans: Float[Tensor, "R K+1"] | None,
    path: str,
) -> None:
    """Keep it with the token map for the next layer."""
    kept = tokens.__dict__.setdefault("_prepared", {})
    kept[_key(x, slots, path)] = (prepared, spans, _versions(tokens, spans))


def _key(x: Tensor, slots: Slots, path: str) -> tuple[object, ...]:
    return x.shape, x.stride(), x.dtype, slots.kinds, path


def _versions(tokens: TokenMap, spans: Tensor | None) -> list[int]:
    """Numbers that a change in place raises. Without borders only the mask is read, and that at every call."""
    if spans is None:
        return []
    sources = (tokens.mask, tokens.start, tokens.stop, spans)
    return [0 if source.is_inference() else source._version for source in sources]
