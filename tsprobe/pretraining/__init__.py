"""How the zoo was made: one backbone, several objectives, one corpus, one schedule.

Read `spec.py` (what a run is), `corpus.py` (what it sees), `objectives/` (what differs), `train.py` (the loop),
`recipes.py` (those of other packages).
"""

from tsprobe.pretraining.recipes import load_run
from tsprobe.pretraining.record import ship
from tsprobe.pretraining.spec import PretrainSpec, read_pretrain_spec
from tsprobe.pretraining.train import fit, pretrain

__all__ = ["PretrainSpec", "fit", "load_run", "pretrain", "read_pretrain_spec", "ship"]
