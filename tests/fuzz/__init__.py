"""Fuzzing of what reads files: one small target a reader, mutations that know the formats, and a driver.

| file | what |
|---|---|
| `harness.py` | a target, what counts as a finding, and how a try is watched |
| `mutate.py` | changes to a file that leave its outer form whole, so that a reader gets past its first check |
| `rasters.py` | the same for pictures and for shards |
| `series.py`, `configs.py`, `checkpoints.py`, `folders.py`, `pictures.py`, `towers.py` | the targets |
| `corpus/TARGET/` | what once broke a reader; `tests/test_fuzz.py` replays it |
| `__main__.py` | the driver: `python -m tests.fuzz [TARGET ...] --seconds N`, with atheris (extra `fuzz`) |

A file of a folder is written as one text: the file's name, a line feed, and what stands in it.
"""
