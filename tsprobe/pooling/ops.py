"""The choice between the paths of pooling, and the torch operators that compilation and export see."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsprobe.errors import EncoderError, SpecError
from tsprobe.pooling import blocked, direct, gradient, native, reference
from tsprobe.pooling.kinds import codes
from tsprobe.pooling.norm import Norm, attend
from tsprobe.pooling.slots import Slots
from tsprobe.types import TokenMap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float

PATHS = ("auto", "triton", "native", "blocked torch", "reference")
_log = logging.getLogger(__name__)


def pool(
    x: Float[Tensor, "R T D"],
    tokens: TokenMap,
    slots: Slots,
    spans: Float[Tensor, "R K+1"] | None = None,
    path: str = "auto",
    *,
    norm: Norm | None = None,
    query: Float[Tensor, " D"] | None = None,
) -> tuple[Float[Tensor, "R P D"], Float[Tensor, "R P"]]:
    """Pool the real tokens of each row: what `reference.pool` defines, by the fastest path that serves `x`.

    Gives the pooled slots, in float32 (float64 for float64 input), and the weight of each, with which windows of one
    series are merged. `spans` are the borders of the K segments in steps of this window. With a `norm`, tokens are
    normalised before they are pooled; with a `query`, one more slot stands behind the others: the mean of the tokens
    weighted by the softmax of their product with it, whose weight is the number of real tokens.
    A token map and borders must stay as they are once used: what follows from them is kept for the other layers.
    `path` is one of `PATHS`; "triton" on a CPU needs `TRITON_INTERPRET=1` in the environment.

    Differentiable in `x` (see `gradient` for ties and a deviation of 0); where a norm or a query is given and
    gradients are wanted, by plain torch. Raises `EncoderError` for shapes that do not fit, `SpecError` for a path
    that does not serve `x`.
    """
    compiling = torch.compiler.is_compiling()  # then the operator chooses, where and when it runs
    plain = norm is None and query is None
    if plain and not compiling and (prepared := direct.recall(x, tokens, slots, spans, path)) is not None:
        return prepared.pool(x)
    _check(x, tokens, slots, spans)
    chosen = "auto" if compiling and path == "auto" and _fusable(x) else _choose(x, path)
    if chosen == "reference" or (not plain and _wants_gradient(x, norm, query)):
        return _plain(x, tokens, slots, spans, norm, query)
    share = None if spans is None or not slots.segments else _shares(tokens, spans)
    if plain and not compiling and chosen == "native" and direct.allowed(x, tokens.mask):
        prepared = native.prepare(x, tokens.mask, share, codes(slots.kinds), tokens.cls or 0)
        direct.keep(prepared, x, tokens, slots, spans, path)
        return prepared.pool(x)
    weight = _weights(tokens, slots, share, more=query is not None)
    if plain:
        return torch.ops.tsprobe.pool(x, tokens.mask, share, codes(slots.kinds), tokens.cls or 0, path), weight
    kind, *vectors = ("", None, None, 0.0) if norm is None else (norm.kind, norm.weight, norm.bias, norm.eps)
    op = torch.ops.tsprobe.pool_normed
    return op(x, tokens.mask, share, codes(slots.kinds), tokens.cls or 0, path, kind, *vectors, query), weight


def path_used(x: Tensor) -> str:
    """The path that `pool` takes for such a tensor: "triton", "native", "blocked torch" or "reference"."""
    return _choose(x, "auto")


def _check(x: Tensor, tokens: TokenMap, slots: Slots, spans: Tensor | None) -> None:
    if x.ndim != 3 or x.shape[:2] != tokens.mask.shape:
        raise EncoderError(f"tokens of shape {tuple(x.shape)} do not fit a mask of shape {tuple(tokens.mask.shape)}")
    if tokens.mask.device != x.device or tokens.mask.dtype != torch.bool:
        raise EncoderError(f"the mask must be bool on {x.device}, not {tokens.mask.dtype} on {tokens.mask.device}")
    if "cls" in slots.kinds:
        if tokens.cls is None:
            raise EncoderError("pooling 'cls' was asked for, but this encoder has no class token")
        if not 0 <= tokens.cls < x.shape[1]:
            raise EncoderError(f"the class token is said to be token {tokens.cls} of {x.shape[1]}")
    if slots.segments and spans is None:
        raise ValueError("pooling by segments needs the borders of the segments")


def _choose(x: Tensor, path: str) -> str:
    if path not in PATHS:
        raise SpecError(f"path of pooling must be one of {', '.join(PATHS)}, not {path!r}")
    if path == "auto":
        if not _fusable(x):
            return "reference"
        if x.is_cuda:
            return "triton" if _adjacent(x) and _has_triton(x.dtype, x.device.index) else "reference"
        return "native" if native.serves(x) else "blocked torch"
    serves = {
        "triton": _fusable(x)
        and _adjacent(x)
        and (_has_triton(x.dtype, x.device.index) if x.is_cuda else os.environ.get("TRITON_INTERPRET") == "1"),
        "native": _fusable(x) and native.serves(x),
        "blocked torch": _fusable(x),
        "reference": True,
    }
    if not serves[path]:
        raise SpecError(f"path {path!r} does not serve {x.dtype} on {x.device} with strides {tuple(x.stride())}")
    return path


def _fusable(x: Tensor) -> bool:
    return x.layout == torch.strided and x.dtype in native.DTYPES and (x.is_cpu or x.is_cuda)


def _adjacent(x: Tensor) -> bool:
    return x.stride(2) == 1 or x.shape[2] == 1


@functools.cache
def _has_triton(dtype: torch.dtype, index: int | None) -> bool:
    """Whether triton is installed and serves this GPU and type; says why not, once."""
    major, minor = torch.cuda.get_device_capability(index or 0)
    why = ""
    if importlib.util.find_spec("triton") is None:
        why = "the package triton is not installed"
    elif torch.version.cuda and (major, minor) < ((8, 0) if dtype == torch.bfloat16 else (7, 5)):
        why = f"the GPU (compute capability {major}.{minor}) is too old for {dtype}"
    if why:
        _log.warning("pooling on the GPU runs in separate torch operations: %s", why)
    return not why


def _wants_gradient(x: Tensor, norm: Norm | None, query: Tensor | None) -> bool:
    leaves = (x, query, *((norm.weight, norm.bias) if norm is not None else ()))
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)


def _plain(
    x: Tensor, tokens: TokenMap, slots: Slots, spans: Tensor | None, norm: Norm | None, query: Tensor | None
) -> tuple[Tensor, Tensor]:
    x = x if norm is None else norm(x)
    pooled, weight = reference.pool(x, tokens, slots, spans)
    if query is not None:
        pooled = torch.cat([pooled, attend(x, tokens.mask, query)[:, None]], 1)
        weight = torch.cat([weight, tokens.mask.sum(1, dtype=weight.dtype)[:, None]], 1)
    return pooled, weight


def _shares(tokens: TokenMap, spans: Tensor) -> Float[Tensor, "R T K"]:
    """Steps that each token shares with each segment."""
    borders = spans.to(torch.float32)
    low = torch.maximum(tokens.start[:, :, None].to(torch.float32), borders[:, None, :-1])
    high = torch.minimum(tokens.stop[:, :, None].to(torch.float32), borders[:, None, 1:])
    return (high - low).clamp(min=0) * tokens.mask[:, :, None]


def _weights(tokens: TokenMap, slots: Slots, share: Tensor | None, *, more: bool) -> Float[Tensor, "R P"]:
    count = tokens.mask.sum(1, dtype=torch.float32)
    if share is None and "cls" not in slots.kinds:
        return count[:, None].expand(-1, len(slots) + more)
    ones, total = torch.ones_like(count), iter(() if share is None else share.sum(1).unbind(1))
    columns = [ones if kind == "cls" else next(total) if kind == "segment" else count for kind in slots.kinds]
    return torch.stack([*columns, *([count] if more else [])], 1)


def _run(
    x: Tensor,
    mask: Tensor,
    share: Tensor | None,
    kinds: Sequence[int],
    cls: int,
    path: str,
    norm: Norm | None,
    query: Tensor | None,
) -> Tensor:
    path = _choose(x, path)
    engine: Callable[..., Tensor] = native.pool if path == "native" else blocked.pool
    if path == "triton":
        from tsprobe.pooling import launch

        if x.shape[2] <= launch.WHOLE or (norm is None and query is None):
            return launch.pool(x, mask, share, kinds, cls, norm=norm, query=query)
        engine = launch.pool
    x = x if norm is None else norm(x)
    pooled = engine(x, mask, share, kinds, cls)
    return pooled if query is None else torch.cat([pooled, attend(x, mask, query)[:, None]], 1)


@torch.library.custom_op("tsprobe::pool", mutates_args=())
def _pool(x: Tensor, mask: Tensor, share: Tensor | None, kinds: list[int], cls: int, path: str) -> Tensor:
    return _run(x, mask, share, kinds, cls, path, None, None)


@_pool.register_fake
def _(x: Tensor, mask: Tensor, share: Tensor | None, kinds: list[int], cls: int, path: str) -> Tensor:
    return x.new_empty(x.shape[0], len(kinds), x.shape[2], dtype=torch.float32)


@torch.library.custom_op("tsprobe::pool_backward", mutates_args=())
def _pool_backward(
    grad: Tensor, x: Tensor, mask: Tensor, share: Tensor | None, pooled: Tensor, kinds: list[int], cls: int, path: str
) -> Tensor:
    found = gradient.coefficients(grad, mask, share, pooled, kinds)
    if _choose(x, path) == "triton":
        from tsprobe.pooling import launch

        out = launch.backward(x, mask, share, found)
    else:
        out = gradient.tokens(x, mask, share, found)
    return gradient.add_single_tokens(out, grad, mask, kinds, cls)


@_pool_backward.register_fake
def _(
    grad: Tensor, x: Tensor, mask: Tensor, share: Tensor | None, pooled: Tensor, kinds: list[int], cls: int, path: str
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    x, mask, share, ctx.kinds, ctx.cls, ctx.path = inputs
    ctx.save_for_backward(x, mask, share, output)


def _backward(ctx, grad):
    x, mask, share, pooled = ctx.saved_tensors
    out = torch.ops.tsprobe.pool_backward(grad, x, mask, share, pooled, ctx.kinds, ctx.cls, ctx.path)
    return out, None, None, None, None, None


_pool.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("tsprobe::pool_normed", mutates_args=())
def _pool_normed(
    x: Tensor,
    mask: Tensor,
    share: Tensor | None,
    kinds: list[int],
    cls: int,
    path: str,
    norm: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    query: Tensor | None,
) -> Tensor:
    how = Norm(norm, weight, bias, eps) if norm else None  # type: ignore[arg-type]
    return _run(x, mask, share, kinds, cls, path, how, query)


@_pool_normed.register_fake
def _(x, mask, share, kinds, cls, path, norm, weight, bias, eps, query):
    return x.new_empty(x.shape[0], len(kinds) + (query is not None), x.shape[2], dtype=torch.float32)
