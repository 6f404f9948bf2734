"""Targets: files of series and of what is asked about them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsprobe.embed import read_series
from tsprobe.tasks import load_task

from .harness import Target

_STEPS = np.arange(1100)
_WAVE = np.sin(_STEPS / 5) + 0.1 * np.cos(_STEPS)

_TS = """# a comment
@problemName Mine
@timeStamps false
@missing true
@univariate false
@equalLength false
@classLabel true a b
@data
1,2,3:4,5,?:a
2.5,-1e3,0:1,1,1:b
1,2:4,5:a
0,0,0,1:1,2,3,4:b
"""
_TARGETS = """@problemName Mine
@univariate true
@targetLabel true
@data
1,2,3:0.5
2,3,4:-1
4,4,5:?
1,1,2:7
"""


def _ts(folder: Path, content: bytes) -> Any:
    for split in ("TRAIN", "TEST"):
        (folder / f"Mine_{split}.ts").write_bytes(content)
    return load_task(folder / "Mine_TRAIN.ts")


def _ts_train(folder: Path, content: bytes) -> Any:
    (folder / "Mine_TRAIN.ts").write_bytes(content)
    (folder / "Mine_TEST.ts").write_text(_TS)
    return load_task(f"{folder}/Mine_TRAIN.ts")


def _npy(_: Path) -> list[bytes]:
    arrays = (np.ones((2, 3), np.float32), np.zeros((2, 1, 4)), np.arange(6).reshape(2, 3), np.array([[True, False]]))
    return [_saved(array) for array in arrays]


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _csv(_: Path) -> list[bytes]:
    return [b"1,2,3\n4,5,6\n", b"1.5,,nan\n-2e3,0,1\n", b'"1","2"\n3,4\n']


def _parquet(_: Path) -> list[bytes]:
    frames = (pd.DataFrame([[1.0, 2.0], [3.0, None]]), pd.DataFrame({"a": [1, 2], "b": [True, False]}),
              pd.DataFrame({"a": ["x", "y"], "b": pd.to_datetime(["2020", "2021"])}))  # fmt: skip
    found = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.rename(columns=str).to_parquet(buffer)
        found.append(buffer.getvalue())
    return found


def _series(ending: str) -> Any:
    def read(folder: Path, content: bytes) -> Any:
        (folder / f"x{ending}").write_bytes(content)
        return read_series(folder / f"x{ending}")

    return read


def _lines(values: np.ndarray) -> bytes:
    return "\n".join(f"{x:.4g}" for x in values).encode()


def _ucr_anomaly(folder: Path, content: bytes) -> Any:
    file = folder / "001_UCR_Anomaly_mine_600_700_720.txt"
    file.write_bytes(content)
    return load_task(f"ucr-anomaly/{file}")


def _tsb_ad(folder: Path, content: bytes) -> Any:
    file = folder / "001_mine_id_1_tr_600_1st_700.csv"
    file.write_bytes(content)
    return load_task(f"tsb-ad/{file}")


def _tsb_ad_files(_: Path) -> list[bytes]:
    labels = ((_STEPS >= 700) & (_STEPS < 720)).astype(int)
    frame = pd.DataFrame({"a": _WAVE.round(3), "b": (2 * _WAVE).round(3), "Label": labels})
    return [frame.to_csv(index=False).encode()]


def _folder(files: dict[str, bytes], load: str) -> Any:
    """Of a folder one file is as the content says, and the others are as they should be."""

    def read(folder: Path, content: bytes) -> Any:
        name, _, changed = content.partition(b"\n")
        names = sorted(files)
        chosen = name.decode() if name in {n.encode() for n in names} else names[len(content) % len(names)]
        for each, valid in files.items():
            (folder / each).write_bytes(changed if each == chosen else valid)
        return load_task(load.format(folder))

    return read


def whole(files: dict[str, bytes]) -> Any:
    return lambda _: [name.encode() + b"\n" + content for name, content in sorted(files.items())]


_TSSB = {"desc.txt": b"Mine,20,400,800\n", "Mine.txt": _lines(_WAVE)}
_STEP_FILES = {
    "train.csv": b"series,x,y,label,group\n" + b"".join(b"a,%d,.5,u,1\n" % (i % 3) for i in range(8))
    + b"".join(b"b,%d,,w,2\n" % (i % 5) for i in range(8)),
    "test.csv": b"series,x,y,label,group\n" + b"".join(b"c,%d,1,u,1\nc,0,0,w,1\n" % i for i in range(4)),
}  # fmt: skip
_VALUE_FILES = {
    "train.csv": b"series,x,target.a,target.b\n" + b"".join(b"a,1,%d,\nb,1,1,2\n" % i for i in range(1))
    + b"c,1,2,3\nc,1,2,3\n",
    "test.csv": b"series,x,target.a,target.b\nd,1,2,3\nd,2,0,1\n",
}  # fmt: skip


def _questions() -> dict[str, bytes]:
    lines = [
        {"split": split, "series": i, "question": "what is the trend?", "answer": "it rises" if i % 2 else "it falls",
         "choices": ["it rises", "it falls"]}
        for split in ("train", "test") for i in range(4)
    ]  # fmt: skip
    buffer = io.BytesIO()
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    np.savez(buffer, train=x, test=x)
    return {"questions.jsonl": "\n".join(map(json.dumps, lines)).encode(), "series.npz": buffer.getvalue()}


_SPANS = b"""questions.jsonl
{"split": "train", "series": 0, "question": "where?", "answer": [0, 4]}
{"split": "train", "series": 1, "question": "where?", "answer": [2, 6]}
{"split": "test", "series": 0, "question": "where?", "answer": [1, 2]}
"""
_CAPTIONS = b"""questions.jsonl
{"split": "train", "series": 0, "question": "what is it?", "answer": ["a rise", "it rises"]}
{"split": "train", "series": 1, "question": "what is it?", "answer": ["a fall"]}
{"split": "test", "series": 0, "question": "what is it?", "answer": ["a rise"]}
{"split": "test", "series": 1, "question": "what is it?", "answer": ["a fall", "down"]}
"""

TARGETS = [
    Target("ts", ".ts", lambda _: [_TS.encode(), _TARGETS.encode()], _ts),
    Target("ts-train", ".ts", lambda _: [_TS.encode(), _TARGETS.encode()], _ts_train),
    Target("npy", ".npy", _npy, _series(".npy")),
    Target("csv", ".csv", _csv, _series(".csv")),
    Target("parquet", ".parquet", _parquet, _series(".parquet")),
    Target("ucr-anomaly", ".txt", lambda _: [_lines(_WAVE), _lines(_WAVE).replace(b"\n", b" ")], _ucr_anomaly),
    Target("tsb-ad", ".csv", _tsb_ad_files, _tsb_ad),
    Target("tssb", ".folder", whole(_TSSB), _folder(_TSSB, "tssb/{}/Mine")),
    Target("steps-labels", ".folder", whole(_STEP_FILES), _folder(_STEP_FILES, "{}")),
    Target("steps-values", ".folder", whole(_VALUE_FILES), _folder(_VALUE_FILES, "{}")),
    Target(
        "questions", ".folder", lambda f: [*whole(_questions())(f), _SPANS, _CAPTIONS],
        _folder(_questions(), "{}"),
    ),
]  # fmt: skip
