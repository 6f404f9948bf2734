"""Labels carried from the nearest annotated training tokens to test tokens, with nothing trained.

Label propagation as Caron et al. (2021, DINO, §4.2) do it on DAVIS: each token takes the labels of the k tokens that
are most similar, weighted by the softmax of cosine similarity over a temperature. Here the annotated tokens are those
of the training series, at the steps that are asked about, and other series are what is labelled. It is `knn` but for
the weights, by which a neighbour counts for less the farther off it is. The strength is k; ties go to the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from tsprobe.errors import SpecError
from tsprobe.metrics import Metric
from tsprobe.probes import base, knn

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TEMPERATURE = 0.1  # of cosine similarities, as in DINO's evaluation on DAVIS


def fit_predict(
    x: Float[Tensor, "G N D"],
    target: base.Target,
    x_test: Float[Tensor, "G M D"],
    folds: Int[Tensor, " N"],
    metric: Metric,
    *,
    strengths: Sequence[float] | None = None,
) -> base.Readout:
    """Label propagation of every group, on standardised features as all probes have them.

    Predictions are probabilities of the classes; the default grid is that of `knn`. Raises as `knn` does, and
    SpecError for targets that are not classes.
    """
    if target.kind != "classification":
        raise SpecError(f"correspondence carries classes, not {target.kind} targets; take knn")
    return knn.by_neighbours(x, target, x_test, folds, metric, strengths, _carried)


def _carried(similarity: Tensor, y: Tensor, known: Tensor, ks: Tensor, mean: Tensor) -> Float[Tensor, "g A m K"]:
    near, index = similarity.topk(int(ks.max()), dim=2)  # [g, m, k], nearest first
    weights = ((near - near[..., :1]) / TEMPERATURE).exp()
    carried = (y[index] * weights[..., None]).cumsum(2)[:, :, ks - 1]
    return (carried / weights.cumsum(2)[:, :, ks - 1, None]).movedim(2, 1)
