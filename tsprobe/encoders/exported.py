"""An encoder as a graph that runs without its Python code: `torch.export`, for AOTInductor, ExecuTorch and the like.

What is exported is the pass from prepared inputs to what the network gives; of one that was truncated where it runs
alone, the tokens `[R, T, D]` of the layer. `Encoder.prepare` stays in front of it: it masks, scales, and cuts patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from tsprobe.errors import EncoderError
from tsprobe.types import Batch, Inputs

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tsprobe.encoders.base import Encoder

_ROWS = 2  # of the trial: one row would be taken for a constant


class _Pass(nn.Module):
    """The network, called as the encoder calls it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.module, self._run = encoder.module, encoder.run

    def forward(self, kwargs: dict[str, Any]) -> Any:
        return self._run(Inputs(kwargs, {}, 1))


def export(encoder: Encoder, batch: Batch | None = None) -> ExportedProgram:
    """A program of `encoder.prepare(batch).kwargs`, a dict, for series as long as those of the batch, and any number of
    rows where the network takes any. Without a batch, of short series.

    Raises `EncoderError` for an encoder that ends where its network cannot, and for a network that torch cannot trace.
    """
    if encoder.cut is not None and not encoder.cut.runs_alone:
        raise EncoderError(f"{encoder.name}: the network does not run to {encoder.cut.layer} and end there")
    given = encoder.trial_batch() if batch is None else batch
    if len(given.lengths) < _ROWS:
        parts = (given.values, given.observed, given.lengths)
        given = Batch(*(part.expand(_ROWS, *part.shape[1:]) for part in parts))
    kwargs = encoder.prepare(given).kwargs
    shapes = tree_map(lambda value: {0: Dim.AUTO} if isinstance(value, torch.Tensor) and value.ndim else None, kwargs)
    with torch.no_grad():
        try:
            return torch.export.export(_Pass(encoder), (kwargs,), dynamic_shapes=(shapes,))
        except Exception as error:
            raise EncoderError(f"{encoder.name} cannot be exported: {str(error).splitlines()[0]}") from error
