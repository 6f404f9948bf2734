"""The generated world as files in the formats of real data: to try a config before the real folders are at hand.

`python -m vision.world.export DIR` writes, each for its source of tasks (`vision.tasks`),

| below DIR | format |
|---|---|
| imagefolder/ | ImageFolder: `train/SHAPE/*.png`, `val/SHAPE/*.png` |
| coco/ | COCO: `annotations/instances_*.json` with boxes and outlines, `train2017/`, `val2017/` |
| nyu/ | NYU depth: `rgb/*.jpg` and `depth/*.png` in thousandths |
| davis/ | DAVIS 2017: `JPEGImages/480p/CLIP/*.jpg`, `Annotations/480p/CLIP/*.png`, `ImageSets/2017/val.txt` |
| vqa/ | VQA v2: `*_questions.json`, `*_annotations.json` with ten answers each, and pictures |
| ade20k/ | ADE20k: `images/training/*.jpg`, `annotations/training/*.png`, and the same for `validation` |
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision.world.clips import clips
from vision.world.scenes import Scenes, scenes
from vision.world.shapes import SHAPES
from vision.world.words import questions

if TYPE_CHECKING:
    from jaxtyping import Integer

FORMATS = ("imagefolder", "coco", "nyu", "davis", "vqa", "ade20k")
_PARTS = (("train", 0), ("val", 1))


def export(folder: Path, *, train: int = 64, val: int = 32, size: int = 224, seed: int = 0) -> None:
    """Write all formats: `train` and `val` pictures (a quarter as many clips, of 8 frames) of `size` pixels a side.

    Raises as `scenes` does.
    """
    for part, is_val in _PARTS:
        n = val if is_val else train
        many = scenes(n, size=size, seed=(4, seed, is_val))
        _imagefolder(folder / "imagefolder" / part, scenes(n, size=size, seed=(3, seed, is_val), objects=(1, 1)))
        _coco(folder / "coco", f"{part}2017", many)
        _nyu(folder / "nyu" / part, many)
        _vqa(folder / "vqa", f"{part}2014", many, seed)
        _ade20k(folder / "ade20k", "validation" if is_val else "training", many)
    _davis(folder / "davis", max(val // 4, 2), size, seed)


def _imagefolder(folder: Path, found: Scenes) -> None:
    for i, shape in enumerate(found.plan.shape[:, 0]):
        _picture(folder / SHAPES[shape] / f"{i:05}.png", found.images[i])


def _coco(folder: Path, part: str, found: Scenes) -> None:
    annotations: list[dict[str, Any]] = []
    for i in range(found.n):
        _picture(folder / part / f"{i:012}.jpg", found.images[i])
        for k in np.flatnonzero(found.area[i] > 0).tolist():
            left, top, right, bottom = found.boxes[i, k].tolist()
            annotations.append({
                "id": len(annotations) + 1, "image_id": i, "category_id": int(found.plan.shape[i, k]) + 1, "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top], "area": int(found.area[i, k]),
                "segmentation": [_outline(found.instance[i] == k + 1)],
            })  # fmt: skip
    _json(folder / "annotations" / f"instances_{part}.json", {
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "width": found.size, "height": found.size}
                   for i in range(found.n)],
        "categories": [{"id": i + 1, "name": shape} for i, shape in enumerate(SHAPES)],
        "annotations": annotations,
    })  # fmt: skip


def _outline(mask: np.ndarray) -> list[int]:
    """A polygon around what lies between the first and the last pixel of each row."""
    rows = np.flatnonzero(mask.any(1))
    first, last = mask[rows].argmax(1), mask.shape[1] - mask[rows, ::-1].argmax(1)
    ends: Iterable[tuple[Integer[np.ndarray, " R"], int]] = ((first, 1), (last, -1))
    return [v for x, way in ends for p in zip(x[::way].tolist(), (rows + 0.5)[::way].tolist(), strict=True) for v in p]


def _nyu(folder: Path, found: Scenes) -> None:
    for i in range(found.n):
        _picture(folder / "rgb" / f"{i:05}.jpg", found.images[i])
        _map(folder / "depth" / f"{i:05}.png", (1000 * found.depth[i]).round().astype(np.uint16))


def _davis(folder: Path, n: int, size: int, seed: int) -> None:
    found = clips(n, size=size, seed=(5, seed))
    masks = found.frames.instance.reshape(n, found.length, size, size)
    names = [f"clip-{i}" for i in range(n) if masks[i, 0].any()]
    for name in names:
        i = int(name.partition("-")[2])
        for t in range(found.length):
            _picture(folder / "JPEGImages/480p" / name / f"{t:05}.jpg", found.images[i, t])
            _map(folder / "Annotations/480p" / name / f"{t:05}.png", masks[i, t])
    file = folder / "ImageSets/2017/val.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(names) + "\n")


def _vqa(folder: Path, part: str, found: Scenes, seed: int) -> None:
    asked = questions(found, choices=False, seed=seed)
    for i in range(found.n):
        _picture(folder / part / f"COCO_{part}_{i:012}.jpg", found.images[i])
    rows = [{"question_id": i, "image_id": i, "question": one.question} for i, one in enumerate(asked)]
    _json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {"questions": rows})
    answers = [{
        "question_id": i, "image_id": i, "multiple_choice_answer": one.answer,
        "answers": [{"answer": one.answer, "answer_id": j} for j in range(10)],
    } for i, one in enumerate(asked)]  # fmt: skip
    _json(folder / f"v2_mscoco_{part}_annotations.json", {"annotations": answers})


def _ade20k(folder: Path, part: str, found: Scenes) -> None:
    for i in range(found.n):
        name = f"ADE_{part[:5]}_{i:08}"
        _picture(folder / "images" / part / f"{name}.jpg", found.images[i])
        _map(folder / "annotations" / part / f"{name}.png", (found.classes[i] + 1).astype(np.uint8))  # 0: other


def _picture(path: Path, image: np.ndarray) -> None:
    _map(path, np.ascontiguousarray(image.transpose(1, 2, 0)), quality=95)


def _map(path: Path, array: np.ndarray, **how: Any) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **how)


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Write the generated world in the formats of real data.")
    parser.add_argument("folder", type=Path)
    for name, default in (("train", 64), ("val", 32), ("size", 224), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    export(given.pop("folder"), **given)
