"""Attention weights of layers, without changing the model: what goes into its fused attention is looked at on the way.

An encoder that allows this has an `attention`: for each layer the path of a module in which the layer's self-attention
runs, as one call of torch's `scaled_dot_product_attention` over the tokens of the layer, `[R, heads, T, d]`. While that
module runs, and only then, its queries and keys of some rows are copied; the weights are softmax(qk) of
these. Where no such call is seen, or one over other tokens, the layer has no weights and its measures are NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

    from tsprobe.diagnostics.places import Places

QUERIES = 256  # of a row, evenly spaced among its real tokens, that are averaged over: all of them up to here
SCORES = 1 << 24  # attention weights that are held at a time


class Seen(TorchFunctionMode):
    """Copies the queries, keys and mask of the first fused attention over `[rows of the batch, heads, T, d]`."""

    def __init__(self, rows: Int[Tensor, " n"], shape: tuple[int, int]) -> None:
        super().__init__()
        self._rows, self._shape = rows, shape
        self.call: tuple[Tensor, Tensor, Tensor | None, dict[str, Any]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.call is None:
            self._look(*args, **kwargs)
        return func(*args, **kwargs)

    def _look(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **more: Any,
    ) -> None:
        shapes = [(t.ndim, t.shape[0], t.shape[-2]) for t in (query, key)]
        if any(shape != (4, *self._shape) for shape in shapes):
            return
        if attn_mask is not None:
            full = (len(query), attn_mask.shape[-3] if attn_mask.ndim > 2 else 1, *attn_mask.shape[-2:])
            attn_mask = attn_mask.expand(full)[self._rows]
        self.call = query[self._rows], key[self._rows], attn_mask, {"causal": is_causal, "scale": more.get("scale")}


@contextmanager
def looking(
    module: nn.Module, paths: Mapping[str, str], rows: Int[Tensor, " n"], shapes: Mapping[str, tuple[int, int]]
) -> Iterator[dict[str, Seen]]:
    """While the context is open, a pass of `module` leaves in `Seen` what its attentions took; by layer.

    `shapes` are the rows and tokens of each layer. Hooks are removed, and no mode is left on, however the pass ends.
    """
    seen: dict[str, Seen] = {}
    handles = []
    on: list[Seen] = []

    def leave() -> None:
        while on:
            on.pop().__exit__(None, None, None)

    def hook(layer: str, inner: nn.Module) -> None:
        def begin(*_: Any) -> None:
            if layer not in seen and not on:
                seen[layer] = Seen(rows, shapes[layer])
                on.append(seen[layer])
                seen[layer].__enter__()

        handles.append(inner.register_forward_pre_hook(begin))
        handles.append(inner.register_forward_hook(lambda *_: leave(), always_call=True))

    try:
        for layer, path in paths.items():
            hook(layer, module.get_submodule(path))
        yield seen
    finally:
        leave()
        for handle in handles:
            handle.remove()


def attention_measures(seen: Seen, places: Places, names: Sequence[str]) -> Float[Tensor, "n M"]:
    """A column for each name; NaN where no attention was seen.

    `attention_mass`: the mean over queries of the head-averaged attention, at the key where it is largest, times the
    number of tokens. 1 where all keys get the same, T where all attention goes to one token: vertical stripes in the
    attention map, by which Bolya et al. 2025 (PE, section 5.1) see global tokens. Queries and keys are real tokens;
    what goes to special ones lowers it. Under a causal mask even attention gives 1 + 1/2 + … + 1/T, at the first token.

    `attention_distance`: the mean over queries of `Σ_j a_ij d(i, j)`, d between the middles of the tokens, in steps or
    pixels, a over real tokens (Dosovitskiy et al. 2020, figure 7; Raghu et al. 2021, section 3, there by heads).
    """
    n = len(places.mask)
    if seen.call is None:
        return places.at.new_full((n, len(names)), torch.nan)
    q, k, mask, how = seen.call
    rows = []
    step = max(1, SCORES // (q.shape[1] * min(QUERIES, q.shape[2]) * k.shape[2]))
    for i in range(0, n, step):
        part = slice(i, i + step)
        a, queries = _weights(q[part], k[part], None if mask is None else mask[part], places.mask[part], how)
        rows.append(_of_weights(a, queries, places, part, names))
    return torch.cat(rows)


def _weights(
    q: Float[Tensor, "n H T d"], k: Float[Tensor, "n G T d"], mask: Tensor | None, real: Bool[Tensor, "n T"], how: dict
) -> tuple[Float[Tensor, "n Q T"], Int[Tensor, "n Q"]]:
    """Head-averaged weights of some queries, and which tokens these are."""
    n, tokens = real.shape
    if tokens > QUERIES:
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)  # real tokens first
        spaced = torch.linspace(0, 1, QUERIES, device=q.device, dtype=torch.float64)
        queries = order.gather(1, (spaced * (real.sum(1, keepdim=True) - 1)).round().long().clamp(min=0))
    else:
        queries = torch.arange(tokens, device=q.device).expand(n, -1)  # all; those that are not real weigh 0
    pick = queries[:, None, :, None]
    q = q.float().gather(2, pick.expand(-1, q.shape[1], -1, q.shape[3]))
    k = k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)  # groups of heads may share their keys
    scale = q.shape[3] ** -0.5 if how["scale"] is None else how["scale"]
    scores = q @ k.transpose(2, 3) * scale  # [n, H, Q, T]
    if mask is not None:
        mask = mask.expand(-1, -1, k.shape[2], -1)
        allowed = mask.gather(2, pick.expand(-1, mask.shape[1], -1, mask.shape[3]))
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    if how["causal"]:
        later = torch.arange(k.shape[2], device=q.device) > pick
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(3).mean(1).double(), queries


def _of_weights(
    a: Float[Tensor, "n Q T"],
    queries: Int[Tensor, "n Q"],
    places: Places,
    part: slice,
    names: Sequence[str],
) -> Float[Tensor, "n M"]:
    """Of the rows `part` of `places`."""
    real, at = places.mask[part], places.at[part]
    asks = real.gather(1, queries)  # [n, Q]
    a = torch.where(asks[..., None] & real[:, None, :], a, 0)
    columns = []
    for name in names:
        if name == "attention_mass":
            value = a.sum(1).amax(1) / asks.sum(1) * real.sum(1)
        else:
            if queries.shape[1] == real.shape[1]:  # all tokens, in their order
                distance = places.distance[part]
            else:
                distance = torch.cdist(at.gather(1, queries[..., None].expand(-1, -1, at.shape[2])), at)
            reach = (a * distance).sum(2) / a.sum(2)
            value = torch.where(asks, reach, 0).nansum(1) / asks.sum(1)
        columns.append(value)
    enough = real.sum(1) > 1
    return torch.where(enough[:, None], torch.stack(columns, 1), torch.nan)
