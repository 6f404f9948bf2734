"""The network that learns: a copy of the encoder that sees a part of its input, with blocks left out at random.

Without that, an output that agrees with a layer below it could be had by passing that layer through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tsprobe.alignment.lora import insert_lora, merge_lora
from tsprobe.capture.hooks import layer_tokens
from tsprobe.encoders.aligned import Tuned, insert_scales, retuned
from tsprobe.encoders.base import Encoder
from tsprobe.errors import EncoderError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from tsprobe.types import Inputs


class Student:
    """A trainable copy of an encoder. `tokens(inputs)` are those of its final layer, `[R, T, D]`."""

    def __init__(
        self,
        encoder: Encoder,
        tuned: Tuned,
        *,
        mask: float = 0.0,
        mask_block: int = 2,
        stochastic_depth: float = 0.0,
        layer_scale: bool = True,
        rank: int = 0,
        targets: tuple[str, ...] = (),
        checkpointing: bool = False,
    ) -> None:
        """With a `rank`, only low-rank changes of the linear layers (and the scales) are trained; see `lora`.

        With `checkpointing`, what a block computes is forgotten, and computed again when its gradient is (Chen et al.
        2016): the same gradients for less memory and a third more time.
        """
        self.encoder = retuned(encoder, encoder.name, tuned)
        self.mask, self.mask_block, self.stochastic_depth = mask, mask_block, stochastic_depth
        self.rng = torch.Generator()
        self._tuning = False
        self.encoder.module.requires_grad_(True)
        self.low_rank = bool(rank)
        if rank:
            insert_lora(self.encoder, rank, targets)
        if checkpointing:
            _forget_within(self.encoder)
        if layer_scale or stochastic_depth:
            scales = insert_scales(self.encoder, self._drop)
            for scale in scales:
                scale.requires_grad_(layer_scale)
        self.scaled = layer_scale or bool(stochastic_depth)
        self._enter = self.encoder.taps.get("embedding")
        if mask and (self._enter is None or self._enter.side != "input"):
            raise EncoderError(f"{encoder.name}: its embedding does not enter a block, so no token of it can be hidden")

    def merge(self) -> None:
        """Make of it what it was, with other weights."""
        if self.low_rank:
            merge_lora(self.encoder.module)

    def tokens(self, inputs: Inputs, *, tuning: bool, seed: int = 0) -> Float[Tensor, "R T D"]:
        """With `tuning`, tokens are hidden and blocks left out, as `seed` says."""
        self.rng.manual_seed(seed)
        self._tuning = tuning
        final = self.encoder.final_of_steps
        real = inputs.tokens_of("embedding" if "embedding" in self.encoder.taps else final).mask
        with self._hiding(real if tuning and self.mask else None):
            found = layer_tokens(self.encoder, inputs, [final])
        self._tuning = False
        return found[final]

    def _drop(self, x: Float[Tensor, "R T D"], y: Float[Tensor, "R T D"]) -> Float[Tensor, "R T D"]:
        """Stochastic depth (Huang et al. 2016): a block is left out for a row, and counts for more in the others."""
        if not self._tuning or not self.stochastic_depth:
            return y
        keep = torch.rand(len(x), generator=self.rng) >= self.stochastic_depth
        factor = (keep.to(x.dtype) / (1 - self.stochastic_depth)).to(x.device)[:, None, None]
        return x + factor * (y - x)

    @contextmanager
    def _hiding(self, real: Bool[Tensor, "R T"] | None) -> Iterator[None]:
        if real is None or self._enter is None:
            yield
            return
        hidden = blocks_hidden(real, self.mask, self.mask_block, self.rng)
        calls = 0

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            nonlocal calls
            calls += 1
            if calls > 1:  # blocks with shared weights are called many times; the input enters at the first
                return None
            if args:
                return (hide(args[0], real, hidden), *args[1:]), kwargs
            first, *rest = kwargs
            return args, {first: hide(kwargs[first], real, hidden), **{name: kwargs[name] for name in rest}}

        module = self.encoder.module.get_submodule(self._enter.path)
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _forget_within(encoder: Encoder) -> None:
    """Hooks on the blocks run outside of what is run twice."""
    for path in dict.fromkeys(tap.path for name, tap in encoder.taps.items() if name.startswith("block.")):
        block = encoder.module.get_submodule(path)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def hide(x: Float[Tensor, "R T D"], real: Bool[Tensor, "R T"], hidden: Bool[Tensor, "R T"]) -> Float[Tensor, "R T D"]:
    """Hidden tokens as the mean of those that are seen: no new parameter, and no value that the network never met.

    Raises `EncoderError` where what enters the first block is not `[R, T, D]`.
    """
    if x.ndim != 3 or x.shape[:2] != real.shape:
        raise EncoderError(f"what enters the first block has shape {list(x.shape)}, not [R, T, D]: set mask to 0")
    seen = (real & ~hidden)[..., None].to(x.dtype)
    mean = (x * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
    return torch.where(hidden[..., None], mean, x)


def blocks_hidden(real: Bool[Tensor, "R T"], share: float, block: int, rng: torch.Generator) -> Bool[Tensor, "R T"]:
    """In each row the given share of its blocks of `block` neighbouring tokens; never all of its real tokens.

    Raises `EncoderError` for a row with fewer real tokens than two blocks.
    """
    rows, tokens = real.shape
    if int(real.sum(1).min()) < 2 * block:
        raise EncoderError(f"a series of {int(real.sum(1).min())} tokens is too short to hide blocks of {block}")
    count = -(-tokens // block)
    order = torch.rand(rows, count, generator=rng)
    # blocks without a real token go last, so that the share is one of those that matter
    alive = nn.functional.pad(real.cpu(), (0, count * block - tokens)).view(rows, count, block).any(2)
    order = torch.where(alive, order, 2.0)
    rank = order.argsort(1).argsort(1)
    number = (share * alive.sum(1)).round().long().minimum(alive.sum(1) - 1)
    hidden = (rank < number[:, None]).repeat_interleave(block, 1)[:, :tokens].to(real.device) & real
    return hidden
