"""The video data engine: short captions for many clips that nobody described (PE, section 2.2), at small scale.

Read `films.py` (the clips), `captioner.py` (pictures and clips to words), `titles.py` (what a video site would say of
them), `things.py` and `merge.py` (several doubtful sources to one caption), `quality.py` (how true each of them is).
The recipe `vision/video` (`vision.pretraining.video`) puts them in their order, and tunes a tower on what they write.
"""
