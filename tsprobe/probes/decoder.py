"""A small causal language model, G of them side by side: the same architecture, weights of their own.

Two pre-norm transformer blocks (Xiong et al. 2020) of width 64, whose input and output embeddings are the same. Every
weight has a leading axis G, so that one pass and one step of an optimiser serve all G models; all begin with the same
numbers, and none depends on another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

    from tsprobe.data.text import Vocabulary

WIDTH, BLOCKS, HEADS, HIDDEN = 64, 2, 4, 128


class TinyDecoder:
    """Reads G x B sequences of embeddings `[G, B, T, E]` of at most `longest` places."""

    width, batch = WIDTH, 32

    def __init__(self, groups: int, vocabulary: Vocabulary, longest: int, generator: torch.Generator) -> None:
        self._vocabulary = vocabulary

        def drawn(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(shape, generator=generator)

        residual = 1 / math.sqrt(2 * BLOCKS)
        one: dict[str, Tensor] = {
            "words": drawn(len(vocabulary), WIDTH, scale=WIDTH**-0.5),
            "places": drawn(longest, WIDTH, scale=WIDTH**-0.5),
        }
        for i in range(BLOCKS):
            one |= {
                f"{i}.query": drawn(WIDTH, WIDTH, scale=WIDTH**-0.5),
                f"{i}.look": drawn(WIDTH, 2 * WIDTH, scale=WIDTH**-0.5),  # keys and values
                f"{i}.attended": drawn(WIDTH, WIDTH, scale=residual * WIDTH**-0.5),
                f"{i}.up": drawn(WIDTH, HIDDEN, scale=WIDTH**-0.5),
                f"{i}.up_bias": torch.zeros(1, HIDDEN),
                f"{i}.down": drawn(HIDDEN, WIDTH, scale=residual * HIDDEN**-0.5),
            }
        self.weights = {name: w.expand(groups, *w.shape).clone() for name, w in one.items()}
        self.scale = WIDTH**-0.5  # of an embedding's components

    def prompt(self, question: str) -> list[int]:
        return self._vocabulary.prompt(question)

    def answer(self, text: str) -> list[int]:
        return self._vocabulary.answer(text)

    def text(self, numbers: Sequence[int]) -> str:
        return self._vocabulary.text(numbers)

    @property
    def end(self) -> int:
        return self._vocabulary.END

    def embed(self, ids: Int[Tensor, "#G B T"]) -> Float[Tensor, "G B T E"]:
        words = self.weights["words"]
        g, v, e = words.shape
        first = torch.arange(0, g * v, v, device=words.device)[:, None, None]  # of each model in the table of all
        return F.embedding(ids.to(words.device) + first, words.reshape(g * v, e))

    def logits(self, x: Float[Tensor, "G B T E"], at: Int[Tensor, "B A"]) -> Float[Tensor, "G B A V"]:
        """For the words that follow the places `at` of each sequence; the last block is computed for these alone."""
        g, _, t, e = x.shape
        at = at.to(x.device)
        h = x + self.weights["places"][:, None, :t]
        for i in range(BLOCKS - 1):
            h = self._block(i, h, h, None)
        some = h.gather(2, at[None, :, :, None].expand(g, -1, -1, e))
        earlier = torch.arange(t, device=x.device) <= at[:, :, None]  # [B, A, T]
        h = self._block(BLOCKS - 1, some, h, earlier[None, :, None])
        return (F.layer_norm(h, (e,)).flatten(1, 2) @ self.weights["words"].mT).unflatten(1, at.shape)

    def _block(self, i: int, h: Tensor, context: Tensor, mask: Tensor | None) -> Float[Tensor, "G B A E"]:
        """`h [G, B, A, E]` after attention to `context [G, B, T, E]`; without a mask to what is not later."""
        w = {name: self.weights[f"{i}.{name}"] for name in ("query", "look", "attended", "up", "up_bias", "down")}
        shape, e = h.shape, h.shape[-1]

        def heads(x: Tensor, weight: Tensor) -> Tensor:
            return (F.layer_norm(x, (e,)).flatten(1, 2) @ weight).view(*x.shape[:3], HEADS, -1).transpose(2, 3)

        k, v = heads(context, w["look"]).chunk(2, -1)
        seen = F.scaled_dot_product_attention(heads(h, w["query"]), k, v, attn_mask=mask, is_causal=mask is None)
        h = h.flatten(1, 2) + seen.transpose(2, 3).reshape(shape[0], -1, e) @ w["attended"]
        up = F.gelu(torch.baddbmm(w["up_bias"], F.layer_norm(h, (e,)), w["up"]))
        return torch.baddbmm(h, up, w["down"]).view(shape)
