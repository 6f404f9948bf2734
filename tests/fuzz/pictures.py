"""Targets: folders of pictures in the formats of real data, shards of clips, and single files of pictures.

Data lies two folders down, and beside each folder on the way lies a picture of one colour that no data has: whoever
shows it has followed a path out of the folder.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tsprobe.errors import TsprobeError
from tsprobe.tasks import load_task

from .checkpoints import Files, folder_target
from .films import encoded
from .harness import Target

_IN = "in/data/"
_OUTSIDE = (255, 0, 255)
_SIDE = 32  # pixels of a side: the fewest that a generated scene has


@cache
def _exported() -> Files:
    """Generated scenes in six formats, as `python -m vision.world.export` writes them."""
    from vision.world.export import export

    with tempfile.TemporaryDirectory() as place:
        export(Path(place), train=4, val=4, size=_SIDE)
        return {str(f.relative_to(place)): f.read_bytes() for f in sorted(Path(place).rglob("*")) if f.is_file()}


def _of(form: str, keep: str = "") -> Files:
    return {
        _IN + name.partition("/")[2]: content
        for name, content in _exported().items()
        if name.startswith(f"{form}/") and re.search(keep, name)
    }


def _scene(number: int) -> Any:
    """A picture of the exported ones."""
    from PIL import Image

    names = [name for name in _exported() if name.startswith("coco/") and name.endswith(".jpg")]
    return Image.open(io.BytesIO(_exported()[names[number % len(names)]])).convert("RGB")


def _as(picture: Any, ending: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, ending, **how)
    return buffer.getvalue()


def _imagefolder() -> Files:
    endings = ("png", "jpeg", "bmp", "tiff")
    return {
        f"{_IN}{split}/{label}/{i}.{endings[2 * j + i]}": _as(_scene(2 * j + i), endings[2 * j + i])
        for split in ("train", "val") for j, label in enumerate(("a", "b")) for i in range(2)
    }  # fmt: skip


def _kinds() -> list[bytes]:
    """Other pictures under the name of one: of other modes and formats, and some that no reader should take up."""
    from PIL import Image

    grey, base = Image.new("L", (9, 7), 3), _scene(0)
    pictures = [
        (base.convert("P"), "png"), (base.convert("RGBA"), "png"), (base.convert("LA"), "png"), (grey, "ppm"),
        (base.convert("1"), "png"), (Image.new("I;16", (5, 4), 900), "png"), (Image.new("F", (5, 4)), "tiff"),
        (base.convert("CMYK"), "jpeg"), (base, "webp"), (base, "gif"), (base, "eps"), (base, "pcx"), (base, "tga"),
        (base.convert("LAB"), "tiff"), (Image.new("I", (5, 4), -5), "tiff"), (base, "jpeg2000"),
    ]  # fmt: skip
    found = [_as(picture, ending) for picture, ending in pictures]
    found.append(_as(base.convert("P"), "png", transparency=bytes(range(256))))
    found.append(_as(base, "tiff", compression="tiff_lzw"))
    found.append(_as(base, "jpeg", progressive=True))
    return found


def _ade20k() -> Files:
    names = "Idx\tRatio\tTrain\tVal\tName\n1\t.5\t1\t1\tdisc, plate\n2\t.5\t1\t1\tsquare\n"
    return {**_of("ade20k"), f"{_IN}objectInfo150.txt": names.encode()}


def _refs() -> Files:
    lines = [
        {"file": f"pictures/{i % 3}.png", "phrase": f"the thing {i}", "box": [1.5, i, 10 + i, 12]} for i in range(4)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    pictures = {f"{_IN}pictures/{i}.png": _as(_scene(i), "png") for i in range(3)}
    return {f"{_IN}train.jsonl": text, f"{_IN}test.jsonl": text, **pictures}


def _note(boxes: list[tuple[str, int, int, int, int]]) -> bytes:
    objects = "\n".join(
        f"<object><name>{name}</name><difficult>{i % 2}</difficult>\n<bndbox><xmin>{a}</xmin><ymin>{b}</ymin>\n"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for i, (name, a, b, c, d) in enumerate(boxes)
    )
    size = f"<size><width>{_SIDE}</width>\n<height>{_SIDE}</height></size>"
    return f'<?xml version="1.0"?>\n<annotation>{size}\n{objects}\n</annotation>\n'.encode()


_BOXES = [("cat", 2, 3, 14, 15), ("dog", 5, 5, 30, 31), ("cat", 17, 18, 28, 30)]


def _voc() -> Files:
    names = [f"p{i}" for i in range(4)]
    files = {f"{_IN}JPEGImages/{name}.jpg": _as(_scene(i), "jpeg") for i, name in enumerate(names)}
    files |= {f"{_IN}Annotations/{name}.xml": _note(_BOXES) for name in names}
    return files | {
        f"{_IN}ImageSets/Main/train.txt": b"p0\np1\n", f"{_IN}ImageSets/Main/val.txt": b"p2 1\np3 -1\n"
    }  # fmt: skip


def _trees() -> Files:
    return {f"{_IN}{name}.png": _as(_scene(i), "png") for i, name in enumerate("ab")} | {
        f"{_IN}{name}.xml": _note(_BOXES) for name in "ab"
    }


def _stereo() -> Files:
    from PIL import Image

    rng = np.random.default_rng(0)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, rng.random((_SIDE, _SIDE), np.float32) + 1)
    return {
        f"{_IN}motorcycle_left.png": _as(_scene(0), "png"), f"{_IN}motorcycle_disp.npz": arrays.getvalue(),
        f"{_IN}aloeL.jpg": _as(_scene(1), "jpeg"),
        f"{_IN}aloeGT.png": _as(Image.fromarray(rng.integers(1, 200, (_SIDE, _SIDE)).astype(np.uint8)), "png"),
    }  # fmt: skip


def _stamps() -> Files:
    found: Files = {}
    for i in range(42):
        where = f"{_IN}{'ab'[i % 2]}/{i}"
        cut = _scene(i).resize((8, 8)).convert("RGBA")
        cut.putalpha(200)
        found |= {f"{where}.png": _as(cut, "png"), f"{where}.txt": f"a thing {i}\nen.utf8=-\n".encode()}
    return found


def _fashion() -> Files:
    rng = np.random.default_rng(0)
    found: Files = {}
    for part, n in (("train", 20), ("t10k", 10)):
        pixels = struct.pack(">4I", 0x803, n, 4, 4) + rng.integers(0, 256, n * 16).astype(np.uint8).tobytes()
        labels = struct.pack(">2I", 0x801, n) + (np.arange(n) % 10).astype(np.uint8).tobytes()
        found[f"{_IN}{part}-images-idx3-ubyte.gz"] = gzip.compress(pixels, mtime=0)
        found[f"{_IN}{part}-labels-idx1-ubyte"] = labels
    return found


def _shard(numbers: range, form: int, video: Callable[[int], bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for i in numbers:
            about = {"human_caption": f"clip {i} moves", "model_caption": f"thing {i}", "category": f"kind {i % 2}"}
            for name, content in ((f"{i}.json", json.dumps(about).encode()), (f"{i}.mp4", video(i))):
                member = tarfile.TarInfo(name if i else "a" * 120 + name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _shards() -> Files:
    one = lambda i: bytes([i])  # noqa: E731
    return {
        f"{_IN}train/0.tar": _shard(range(6), tarfile.PAX_FORMAT, one),
        f"{_IN}test/0.tar": _shard(range(6), tarfile.GNU_FORMAT, one),
    }


def _look(task: Any) -> Any:
    """Read what a study reads first: pictures and targets of the first and of the last row of each split."""
    assert task.metric
    assert task.labels is not None
    for panel in (task.train, task.test):
        for x in panel.take([0, panel.n - 1]).stack():
            assert np.isfinite(x).all()
            shown = x.reshape(3, -1).T
            assert not (shown == np.array(_OUTSIDE, np.float32) / 255).all(), "a picture outside of the folder is shown"
    asked = task.asked
    for part in ("train", "test"):
        y = getattr(task, f"y_{part}", None)
        assert y is None or len(y) == getattr(task, part).n
        _ = asked and getattr(asked, part)
    return task


def every(read: Callable[[Any], Any], ways: Iterable[Any]) -> list[Any]:
    """Read in each of these ways; if one was refused, so is the whole, after all of them."""
    found, refused = [], []
    for way in ways:
        try:
            found.append(read(way))
        except TsprobeError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return found


def _put_outside(folder: Path) -> None:
    from PIL import Image

    content = _as(Image.new("RGB", (4, 4), _OUTSIDE).convert("P"), "png")  # a picture, and a map of numbers
    for where in (folder, folder / "in"):
        (where / "outside").write_bytes(content)
        (where / "x").mkdir(exist_ok=True)
        for i in range(5):
            (where / "x" / f"{i}.png").write_bytes(content)


def _reads(*names: str, variables: tuple[str, ...] = ()) -> Callable[[Path], Any]:
    """Each of these tasks, `{}` standing for the folder; what one of them refuses, another may read."""

    def read(folder: Path) -> Any:
        _put_outside(folder)
        place = str(folder / _IN.rstrip("/"))
        with patch.dict(os.environ, dict.fromkeys(variables, place)):
            return every(lambda name: _look(load_task(name.format(place))), names)

    return read


def _read_shards(folder: Path) -> Any:
    """Without the videos, which stand for themselves."""
    from vision.tasks import video

    def decode(content: bytes, count: int, size: int, where: str) -> Any:
        return np.full((count, 3, size, size), len(content) % 200, np.uint8)

    with patch.object(video, "decode", decode), patch.object(video, "library", lambda purpose: None):
        return _reads("pvd/{}?size=8&ask=category", "pvd/{}?size=8", "pvd/{}/train/0.tar?size=8&ask=caption")(folder)


def _movie(frames: int) -> bytes:
    return encoded([np.asarray(_scene(i)) for i in range(frames)], rate=5)


def _read_movie(_: Path, content: bytes) -> Any:
    from vision.tasks import video

    return video.decode(content, 4, 16, "x.tar: x.mp4")


def _read_picture(folder: Path, content: bytes) -> Any:
    """One file, in each of the ways that pictures are read."""
    from vision.tasks import files

    path = folder / "x.png"
    path.write_bytes(content)
    ways = (lambda p: files.read(p, 16), lambda p: files.read_cut_out(p, 16), files.read_map, files.sides)
    return every(lambda read: read(path), ways)


_QUERIES = (
    "coco?ask=segmentation&size=16&grid=4", "coco?ask=detection&size=16&n_train=2&n_test=2&seed=1&grid=8",
    "coco?size=16&metric=f1", "nope?size=16", "coco?ask=presence&size=16&shots=2",
)  # fmt: skip


def _read_settings(folder: Path, content: bytes) -> Any:
    """The name of a task of a folder that is as it should be. Large pictures are left out: they take what they take."""
    name = content.decode(errors="replace")
    if re.search(r"size=\W*[\d_]{3,}", name):
        return None
    for each, valid in _of("coco").items():
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(valid)
    return _look(load_task(f"coco/{folder}/in/data{name[4:]}" if name.startswith("coco") else f"coco/{name}"))


def _with(target: Target, name: str, more: Callable[[], list[bytes]]) -> Target:
    """With further contents of one of its files to begin with."""
    contents = lambda folder: [*target.valid(folder), *(f"{_IN}{name}\n".encode() + c for c in more())]  # noqa: E731
    return Target(target.name, target.ending, contents, target.read)


_ASKED = {
    "coco": [f"coco/{{}}?size=16&grid=8&ask={ask}" for ask in ("presence", "segmentation", "detection")],
    "stamps": [f"stamps/{ask}?size=8" for ask in ("category", "segmentation", "caption")],
    "trees": ["trees/crown?tile=16&size=16&grid=4", "trees/crown?tile=16&size=16&grid=4&split=region"],
    "stereo": ["stereo/depth?tiles=4&size=8&grid=4", "stereo/depth?tiles=4&size=8&grid=4&train=motorcycle&test=aloe"],
}

TARGETS = [
    Target("picture", ".png", lambda _: _kinds(), _read_picture),
    Target("picture-settings", ".txt", lambda _: [query.encode() for query in _QUERIES], _read_settings),
    _with(folder_target("imagefolder", _imagefolder, _reads("imagefolder/{}?size=16")), "train/a/0.png", _kinds),
    folder_target("coco", lambda: _of("coco"), _reads(*_ASKED["coco"])),
    folder_target("vqa", lambda: _of("vqa"), _reads("vqa/{}?size=16")),
    _with(folder_target("nyu", lambda: _of("nyu"), _reads("nyu/{}?size=16&grid=4")), "train/depth/00000.png", _kinds),
    folder_target("davis", lambda: _of("davis", "/0000[0-3]|val.txt"), _reads("davis/{}?size=16&grid=8")),
    folder_target("ade20k", _ade20k, _reads("ade20k/{}?size=16&grid=8")),
    folder_target("refs", _refs, _reads("refs/{}?size=16")),
    folder_target("voc", _voc, _reads("voc/{}?size=16&grid=8&ask=detection", "voc/{}?size=16&tile=16")),
    folder_target("trees", _trees, _reads(*_ASKED["trees"], variables=("TSPROBE_TREES",))),
    folder_target("stereo", _stereo, _reads(*_ASKED["stereo"], variables=("TSPROBE_MOTORCYCLE", "TSPROBE_ALOE"))),
    folder_target("stamps", _stamps, _reads(*_ASKED["stamps"], variables=("TSPROBE_STAMPS",))),
    folder_target("fashion", _fashion, _reads("fashion/item?size=8", variables=("TSPROBE_FASHION",))),
    folder_target("pvd", _shards, _read_shards),
]  # fmt: skip
if find_spec("av"):
    TARGETS.append(Target("movie", ".mp4", lambda _: [_movie(6), _movie(2)], _read_movie))
