"""The atlas: studies and alignments of many encoders, and what they say together.

Three questions: can alignment keep everything that is of use, which label-free diagnostics point at the right layer,
and which pretraining objectives hide features? Studies and alignments are run as `tsprobe run` and `tsprobe align` do;
here their folders become tables, figures and one document, whose conclusions follow from intervals by rule.
"""

from tsprobe.atlas.run import Atlas, run_atlas
from tsprobe.atlas.spec import AtlasSpec, read_atlas_spec

__all__ = ["Atlas", "AtlasSpec", "read_atlas_spec", "run_atlas"]
