"""MOMENT by its authors' own package, which pins transformers 4.33.3 and numpy 1.25.2 and so cannot live beside ours.

It runs in a worker process with an environment of its own (see `workshop`). `moment:` reads the same checkpoints in
sktime's copy of the code, here; use this family where the authors' very package is wanted, or to compare the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tsprobe.encoders.moment import Moment
from tsprobe.encoders.registry import Card

if TYPE_CHECKING:
    from torch import nn

FAMILY = "momentfm"


class MomentFM(Moment):
    """The encoder of MOMENT as `momentfm.MOMENTPipeline` builds it, one channel a row."""

    family: ClassVar[str] = FAMILY
    card: ClassVar[Card] = Card(
        pattern=f"{FAMILY}:ID_OR_FOLDER",
        objective=Moment.card.objective,
        package=FAMILY,
        requirements=("momentfm==0.1.4",),
        code_licence=Moment.card.code_licence,
        weights_licence=Moment.card.weights_licence,
        final_is=Moment.card.final_is,
        sizes=Moment.card.sizes,
    )

    @staticmethod
    def build(config: dict[str, Any]) -> nn.Module:
        """The model that a `config.json` describes, with new weights."""
        from momentfm import MOMENTPipeline

        ours = {"enable_gradient_checkpointing": False, "task_name": "reconstruction"}
        return MOMENTPipeline({**config, **ours}, model_kwargs={"task_name": "reconstruction"})
