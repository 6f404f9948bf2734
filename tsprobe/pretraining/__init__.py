"""How the zoo was made: one backbone, several objectives, one corpus, one schedule.

Read `spec.py` (what a run is), `corpus.py` (what it sees), `objectives/` (what differs), `train.py` (the loop).
"""

from tsprobe.pretraining.record import ship
from tsprobe.pretraining.spec import PretrainSpec, read_pretrain_spec
from tsprobe.pretraining.train import pretrain

__all__ = ["PretrainSpec", "pretrain", "read_pretrain_spec", "ship"]
