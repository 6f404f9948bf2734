"""What alignment minimises: agreement with a frozen layer, and with the segments that steps belong to.

Perception Encoder, section 5.2 (spatial alignment): L = L_core + L_loc over the tokens of an input of which the student
sees a part. L_core is printed there without its minus; its authors confirmed that similarity is to grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

SHARPNESS = 20.0  # t of g(x) = exp(t (x - 1)), on the teacher's side alone


def core(
    student: Float[Tensor, "R T D"], teacher: Float[Tensor, "R T D"], real: Bool[Tensor, "R T"]
) -> Float[Tensor, ""]:
    """Mean over the real tokens of -cos(student, teacher): -1 where they agree."""
    return -F.cosine_similarity(student, teacher, dim=-1)[real].mean()


def locality(
    student: Float[Tensor, "R T D"], membership: Float[Tensor, "R T M"], real: Bool[Tensor, "R T"]
) -> Float[Tensor, ""]:
    """Mean over pairs of real tokens of a series of (cos(student_i, student_j) - g(cos(membership_i, membership_j)))²,
    g(x) = exp(t (x - 1)).

    `membership` says how much of each token lies in each of M segments, as SAM's mask logits do for patches.
    """
    pairs = real[:, :, None] & real[:, None, :]
    s, m = F.normalize(student, dim=-1), F.normalize(membership, dim=-1)
    wanted = (SHARPNESS * (m @ m.mT - 1)).exp()
    return ((s @ s.mT - wanted).square() * pairs).sum() / pairs.sum().clamp(min=1)


def masked_regression(prediction: Float[Tensor, "R K"], target: Float[Tensor, "R K"]) -> Float[Tensor, ""]:
    """Mean squared error over the targets that are known (not NaN)."""
    known = ~target.isnan()
    return ((prediction - torch.where(known, target, 0)).square() * known).sum() / known.sum().clamp(min=1)


def supervised_contrastive(
    vectors: Float[Tensor, "R D"], labels: Float[Tensor, " R"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Khosla et al. (2020), eq. 2: each series against all others of the batch, those of its label being positives."""
    z = F.normalize(vectors, dim=-1)
    other = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(~other, -torch.inf)
    log_share = similarity - similarity.logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels[None]) & other
    count = positive.sum(1)
    some = count > 0
    mean = torch.where(positive, log_share, 0).sum(1)[some] / count[some]
    return -mean.mean() if bool(some.any()) else vectors.sum() * 0
