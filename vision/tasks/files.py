"""Image files as they lie in folders: which there are, and their pixels.

Images are squashed to a square, since that leaves no object out, and masks and boxes shrink with them; colours by
bilinear interpolation, masks and depths by the nearest pixel. They are taken as stored, without turning by EXIF, as
COCO and ImageNet are annotated.

Of what Pillow reads, formats of pictures alone are read, whatever a file is called: some others start programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tsprobe.data.panel import Panel
from tsprobe.errors import DAMAGE, DataError, MissingPackageError, SpecError, reason
from tsprobe.files import no_path, read_array, refuse_growth
from tsprobe.tasks import options
from vision.images import to_panel

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped, UInt8

    Item = TypeVar("Item")

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PICTURES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # 8 bits a channel
_SMALLEST, _LARGEST = 8, 4096  # pixels a side that may be asked for
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST = 178_956_970  # pixels of a file: what Pillow reads unless another package lifts its bound
_COLOURS, _NUMBERS = 12, 4  # bytes a pixel that are held at once where colours, or numbers, are read


@dataclass(frozen=True)
class Drawn:
    """Settings of all that reads pictures from a folder: pixels a side, how many are drawn (0: all), and the seed."""

    size: int = 224
    n_train: int = 0
    n_test: int = 0
    seed: int = 0


def within(left: float, top: float, right: float, bottom: float, width: int, height: int) -> bool:
    """Whether a box lies in a picture of these sides. Annotators round: it may leave the picture by a pixel."""
    return left >= -1 and top >= -1 and right <= width + 1 and bottom <= height + 1


def a_third(items: Sequence[Item], seed: Any) -> tuple[list[Item], list[Item]]:
    """Where nobody says what is for training: a third, drawn at random, is for the test. Both keep their order."""
    drawn = set(np.random.default_rng(seed).permutation(len(items))[: len(items) // 3].tolist())
    train, test = ([item for i, item in enumerate(items) if (i in drawn) is is_test] for is_test in (False, True))
    return train, test


def folder(name: str, path: str) -> Path:
    """The folder of a task. Raises `DataError` where there is none."""
    there = found(path)
    if there is None or not there.is_dir():
        raise DataError(f"task {name!r}: {path!r} is no folder")
    return there


def found(path: str) -> Path | None:
    """The file or folder of a path, which may begin with `~`; None where there is none."""
    if not path or no_path(path):
        return None
    try:
        return there if (there := Path(path).expanduser()).exists() else None
    except OSError:  # it is too long, or goes through a file
        return None


def below(where: Path, name: Any) -> Path:
    """A file that annotations name, below a folder. Raises `ValueError` for a name that is none, or leads out of it.

    Links are followed: whoever keeps the pictures elsewhere has put them there.
    """
    if not isinstance(name, str) or not name or no_path(name):
        raise ValueError(f"{str(name)[:80]!r} is no name of a file")
    path = PurePath(name)
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{name[:80]!r} leads out of the folder {where.name!r}")
    return where / path


def subfolder(name: str, parent: Path, names: Sequence[str]) -> Path:
    """The first of these that there is. Raises `DataError`."""
    for each in names:
        if (parent / each).is_dir():
            return parent / each
    raise DataError(f"task {name!r}: {parent} has no folder {' or '.join(names)}")


def pictures(where: Path) -> list[Path]:
    """The image files in a folder and below, sorted; hidden ones are left out."""
    return sorted(p for p in where.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))


def asked(source: str, name: str, usual: Any) -> tuple[Any, str, str]:
    """Of `PATH?setting=value`: the settings, which have a `size`, the task's full name, and the path.

    Raises `SpecError` for settings that are none of `usual`, or make no sense.
    """
    path, _, query = name.partition("?")
    settings = options.read_settings(f"{source}/{name}", query, usual)
    full = f"{source}/{path}{options.written(settings, usual)}"
    check_size(full, settings.size)
    return settings, full, path


def check_size(name: str, size: int) -> None:
    if not _SMALLEST <= size <= _LARGEST:
        raise SpecError(f"task {name!r}: size={size}; give {_SMALLEST} to {_LARGEST} pixels a side")


def some(items: Sequence[Item], n: int, seed: tuple[int, ...]) -> list[Item]:
    """n of them, drawn at random, in their order; all where n is 0 or there are fewer."""
    if not 0 < n < len(items):
        return list(items)
    return [items[i] for i in np.sort(np.random.default_rng(seed).permutation(len(items))[:n]).tolist()]


def read(path: Path, size: int) -> UInt8[np.ndarray, "3 H W"]:
    """A picture in red, green and blue, what is transparent on white. Raises `DataError` for a file that is none."""
    from PIL import Image

    small = _rgb(path).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def read_whole(path: Path) -> UInt8[np.ndarray, "3 h w"]:
    """The same at its own size."""
    return np.asarray(_rgb(path)).transpose(2, 0, 1)


def sides(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored; pixels are not read. Raises `DataError` for a file that is no picture."""
    width, height = _open(path, 0).size
    return width, height


def _rgb(path: Path) -> Any:
    from PIL import Image

    picture = _colours(path)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _colours(path: Path) -> Any:
    picture = _open(path, _COLOURS)
    if picture.mode not in _PICTURES:
        raise DataError(f"{path} has mode {picture.mode}; give a picture of 8 bits a channel, such as RGB or grey")
    return picture


def read_cut_out(path: Path, size: int) -> tuple[UInt8[np.ndarray, "3 H W"], Float32[np.ndarray, "H W"]]:
    """A picture, and how much of each pixel belongs to it, from 0 to 1. Raises `DataError` for a file that is none."""
    from PIL import Image

    small = _colours(path).convert("RGBA").resize((size, size), Image.Resampling.BILINEAR)
    channels = np.asarray(small).transpose(2, 0, 1)
    return channels[:3], channels[3].astype(np.float32) / 255


def enlarge(image: UInt8[np.ndarray, "3 h w"], size: int) -> UInt8[np.ndarray, "3 H W"]:
    """An image of other sides, by bilinear interpolation."""
    from PIL import Image

    grown = Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(grown).transpose(2, 0, 1)


def read_map(path: Path) -> Shaped[np.ndarray, "h w"]:
    """Numbers of one channel as stored: a mask, a palette's indices, a depth of 16 bits; or an array `.npy`.

    Raises `DataError` for a file that is none of these.
    """
    if path.suffix == ".npy":
        try:
            values = read_array(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({reason(error)})") from error
    else:
        picture = _open(path, _NUMBERS)
        if picture.mode not in ("1", "L", "P", "F") and not picture.mode.startswith("I"):
            raise DataError(f"{path} has mode {picture.mode}; give one channel (grey, palette, or 16 bits)")
        values = np.asarray(picture)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "buif":
        raise DataError(f"{path} has shape {list(values.shape)} of {values.dtype}; give one number a pixel, [H, W]")
    return values


def shrink(values: Shaped[np.ndarray, "h w"], size: int) -> Shaped[np.ndarray, "H W"]:
    """The pixel at the middle of each of `size * size` equal parts."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(np.int64) for n in values.shape)
    return values[np.ix_(rows, columns)]


def panel(name: str, paths: Sequence[Path], size: int, split: str) -> Panel:
    """Pictures as series. Raises `DataError` where there is none."""
    if not paths:
        raise DataError(f"task {name!r}: no {split} picture")
    return Panel(tuple(to_panel(read(p, size)[None])[0] for p in paths))


def _open(path: Path, held: int) -> Any:
    """A picture of which so many bytes a pixel will be held; with 0 its pixels are not read. Raises `DataError`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("pillow", f"reading {path.name}", "vision") from error
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        with Image.open(path, formats=_FORMATS) as picture:
            if held:
                refuse_growth(held * picture.width * picture.height, path.stat().st_size)
                if picture.width * picture.height > _MOST:
                    raise ValueError(f"it has {picture.width} x {picture.height} pixels, too many")
                picture.load()
            return picture
    except (OSError, *DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no readable image ({reason(error)})") from error
