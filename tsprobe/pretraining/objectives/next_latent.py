"""Next-latent prediction with SIGReg (LeNEPA): a causal encoder, no slow copy, no views, nothing detached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tsprobe.encoders.zoo_model import TokenProjector, ZooModel
from tsprobe.pretraining.corpus import Series
from tsprobe.pretraining.objectives.base import Loss, Objective, masked_mean, shown_from

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

WEIGHT = 10.0  # of SIGReg, as in the configuration that the authors of LeNEPA publish
DIRECTIONS = 64
KNOTS = 9


class NextLatent(Objective):
    """From each token the embedding of the next patch, both through one projector, in mean squared error.

    SIGReg makes the projected embeddings of each series lie like draws of a standard normal, which is what stands
    between this loss and collapse. It is not asked of the guesses, which are less spread where the future is open;
    so the loss can be compared with the trivial answer, the mean target.
    """

    def loss(self, model: ZooModel, series: Series, rng: torch.Generator) -> Loss:
        assert isinstance(model.head, TokenProjector)
        values, observed, first = shown_from(model, series, rng)
        seen = observed.any(-1)
        embedded: list[Tensor] = []
        handle = model.backbone.embed.register_forward_hook(lambda *a: embedded.append(a[-1]))
        try:
            tokens = model.backbone(values, observed)
        finally:
            handle.remove()
        target, guess = model.head(embedded[0], seen).float(), model.head(tokens, seen).float()  # [N, T, E]
        counts = (seen[:, first:] & seen[:, first - 1 : -1])[..., None].expand_as(target[:, first:])
        error = masked_mean((guess[:, first - 1 : -1] - target[:, first:]).square(), counts)
        spread = sigreg(target, seen, rng)
        with torch.no_grad():
            mean = target[:, first:][counts[..., 0]].mean(0)
            trivial = masked_mean((target[:, first:] - mean).square(), counts)
        return Loss(error + WEIGHT * spread, error, trivial, {"sigreg": spread})


def sigreg(z: Float[Tensor, "N T E"], real: Bool[Tensor, "N T"], rng: torch.Generator) -> Tensor:
    """How far the real tokens of each series are from a standard normal: 0 for infinitely many normal draws.

    Sketched isotropic Gaussian regularisation (LeJEPA, arXiv 2511.08544): along random directions, the Epps-Pulley
    distance between the empirical characteristic function and exp(-t^2 / 2), with that weight, for t from -3 to 3.
    """
    way = torch.randn(z.shape[-1], DIRECTIONS, generator=rng, device=z.device)
    t = torch.linspace(0, 3, KNOTS, device=z.device)
    normal = torch.exp(-0.5 * t**2)
    weight = torch.full_like(t, 2 * 3 / (KNOTS - 1)) * normal  # trapezoids, twice: the integrand is even
    weight[0], weight[-1] = weight[0] / 2, weight[-1] / 2
    angle = (z @ nn.functional.normalize(way, dim=0))[..., None] * t  # [N, T, directions, knots]
    share = (real / real.sum(1, keepdim=True).clamp(min=1)).to(z.dtype)
    cosine, sine = (torch.einsum("nt,ntdk->ndk", share, f) for f in (angle.cos(), angle.sin()))
    return (((cosine - normal).square() + sine.square()) @ weight).mean()
