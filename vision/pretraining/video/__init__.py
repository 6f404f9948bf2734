"""The recipe `vision/video`: the video data engine, and a tower of images tuned on clips with its captions.

Read `spec.py` (what a run is), `material.py` (what it sees), `run.py` (its parts, in order), `tuned.py` and
`retrieval.py` (what is trained and measured), `folder.py` (what it leaves).
"""

from vision.pretraining.video.run import VideoRun
from vision.pretraining.video.spec import VideoSpec

__all__ = ["VideoRun", "VideoSpec"]
