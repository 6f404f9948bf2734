"""Kept features: a Zarr store that is filled block by block, and goes on where a killed process left it.

Layers of equal width share one array `[G, N, P, D]`, so that a store has few files and takes few operations of some
milliseconds each: for small panels it costs what one .npz file does. Rows stand in the order in which series were
read, and `series [N]` names the series of each row (-1: none yet); so whole chunks are written one after the other.

What is written, in this order: the rows of a chunk, then `series`, which makes them count. Zarr replaces files whole;
where the machine itself failed, a chunk that is torn has a wrong checksum, and one that was never written reads as
NaN, which no finished feature is.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.errors import DAMAGE, StorageError, TsprobeError
from tsprobe.files import folder_bytes, lock, refuse_growth
from tsprobe.pooling import Slots

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

    from tsprobe.capture.reading import Block

FORMAT = 1
CHUNK = 4 << 20  # bytes
FLUSH = 5.0  # seconds after which what has been read is written,
SHARE = 20  # and so many times what the last writing took, at least
# what Zarr raises on files that are cut short, changed or gone
_DAMAGE = (FileNotFoundError, NotADirectoryError, *DAMAGE)


class DamagedError(StorageError):
    """What lies there is damaged or not finished, and can be made again."""


class UnfinishedError(DamagedError):
    """A process was stopped while it wrote."""


class StoredArrays(Mapping[str, np.ndarray]):
    """`[N, P, D]` of each layer, read from the disk each time it is asked for. Raises `DamagedError`."""

    def __init__(self, path: Path) -> None:
        with _damage_named(path):
            group = _open(path, "r")
            self.attrs = dict(group.attrs)
            self._places = _places(self.attrs["arrays"])
            self._arrays = {name: group[name] for name in self.attrs["arrays"]}
            self._layers: tuple[str, ...] = tuple(self.attrs["layers"])
            series = group["series"][:]
            if not self.attrs["finished"]:
                raise UnfinishedError(f"{path} is not finished; run again")
            if not np.array_equal(np.sort(series), np.arange(len(series))):
                raise ValueError("not all series are there")
            self._rows = np.argsort(series)  # row of each series
            if set(self._layers) != set(self._places):
                raise ValueError("layers are missing")
            _check_shapes(self._arrays, self.attrs, len(series))
            refuse_growth(self.nbytes, folder_bytes(path))
        self._path = path

    def part(self, layer: str, slots: slice = slice(None)) -> Float32[np.ndarray, "N p D"]:
        """Some slots of a layer; nothing else stays in memory."""
        name, i = self._places[layer]
        with _damage_named(self._path):
            return _finite(self._arrays[name][i, :, slots])[self._rows]

    def width(self, layer: str) -> int:
        return int(self._arrays[self._places[layer][0]].shape[-1])

    @property
    def nbytes(self) -> int:
        return sum(4 * math.prod(array.shape) for array in self._arrays.values())

    def load(self) -> dict[str, np.ndarray]:
        """All of it in memory."""
        with _damage_named(self._path):
            whole = {name: _finite(array[:]) for name, array in self._arrays.items()}
        return {layer: whole[name][i][self._rows] for layer, (name, i) in ((x, self._places[x]) for x in self)}

    def check(self) -> None:
        """Read everything once. Raises `DamagedError`."""
        for layer in self:
            self.part(layer)

    def __getitem__(self, layer: str) -> np.ndarray:
        return self.part(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class FeatureStore:
    """Takes blocks and keeps them under `path`; `done [N]` says which series an earlier process has kept there.

    Use as a context: on the way out, also by an error, what has been taken is written. A store that is damaged, or
    of other layers or poolings, is emptied and begun anew (any, if `fresh`). Raises `StorageError` where the disk
    refuses, where another process writes the same store, and for a folder that holds other things.
    """

    def __init__(
        self, path: Path, n: int, layers: Sequence[str], poolings: Sequence[str], *, fresh: bool = False
    ) -> None:
        self._path, self._n = path, n
        self._asked: dict[str, Any] = {"format": FORMAT, "layers": list(layers), "poolings": list(poolings)}
        self._series = np.full(n, -1)
        self._rows = self._written = 0  # rows taken, and rows that count on disk
        self._group: Any = None
        self._arrays: dict[str, list[str]] = {}  # the layers in each array
        self._tails: dict[str, np.ndarray] = {}  # of each array the chunk that is being filled, [G, rows, P, D]
        self._size = 1  # rows of a chunk
        self._before = 0.0  # seconds that earlier processes spent
        self.forward = 0.0  # of those, in the encoder's forward passes, and of this process
        self._begin = self._flushed = time.perf_counter()
        self._cost = 0.0
        with _refusal_named(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path)
        if self._lock is None:
            raise StorageError(f"{path} is being written by another process; wait for it, or use another folder")
        try:
            if fresh or not self._resumed():
                self._empty()
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> Bool[np.ndarray, " N"]:
        mask = np.zeros(self._n, bool)
        mask[self._series[: self._rows]] = True
        return mask

    @property
    def seconds(self) -> float:
        """Spent on this store, by this process and those before it that were killed."""
        return self._before + time.perf_counter() - self._begin

    def add(self, block: Block) -> None:
        """Take a block. Full chunks are written at once, and the rest every few seconds."""
        if self._group is None:
            self._create(block)
        self.forward += block.forward
        begin = 0
        while begin < len(block.index):
            filled = self._rows % self._size
            take = slice(begin, min(len(block.index), begin + self._size - filled))
            count = take.stop - begin
            for name, layers in self._arrays.items():
                for i, layer in enumerate(layers):
                    self._tails[name][i, filled : filled + count] = block.arrays[layer][take]
            self._series[self._rows : self._rows + count] = block.index[take]
            self._rows, begin = self._rows + count, take.stop
            if self._rows % self._size == 0:
                self.flush()
        if time.perf_counter() - self._flushed > max(FLUSH, SHARE * self._cost):
            self.flush()

    def flush(self) -> None:
        """Write what has been taken, then that it counts."""
        if self._rows == self._written:
            return
        begin = time.perf_counter()
        start = (self._rows - 1) // self._size * self._size
        stop = min(start + self._size, self._n)
        with _refusal_named(self._path):
            for name, tail in self._tails.items():
                tail[:, self._rows - start : stop - start] = np.nan
                self._group[name][:, start:stop] = tail[:, : stop - start]
            self._group["series"][:] = np.where(np.arange(self._n) < self._rows, self._series, -1)
            self._group.update_attributes({"seconds": self.seconds, "forward_seconds": self.forward})
        self._written = self._rows
        self._flushed = time.perf_counter()
        self._cost = self._flushed - begin

    def finish(self, notes: dict[str, Any]) -> None:
        """Write the rest and the notes: the store is whole. Raises `StorageError` if series are missing."""
        self.flush()
        if self._written < self._n:
            raise StorageError(f"{self._path} holds {self._written} of {self._n} series; it cannot be finished")
        with _refusal_named(self._path):
            self._group.update_attributes({"notes": notes, "finished": True})

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if not isinstance(error, StorageError):
                self.flush()
        finally:
            self.close()

    def close(self) -> None:
        """Let others write; what has not been flushed is lost."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _create(self, block: Block) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        shapes = {layer: block.arrays[layer].shape[1:] for layer in self._asked["layers"]}  # (P, D)
        arrays: dict[str, list[str]] = {}
        for layer, (_, width) in shapes.items():
            arrays.setdefault(f"width{width}", []).append(layer)
        chunks = math.ceil(self._n * max(4 * math.prod(shape) for shape in shapes.values()) / CHUNK)
        self._size = math.ceil(self._n / chunks)
        kind: dict[str, Any] = {"compressors": (Crc32cCodec(),)}
        self._arrays = arrays
        attrs = self._asked | {"arrays": arrays, "finished": False, "seconds": 0.0, "forward_seconds": 0.0, "notes": {}}
        with _refusal_named(self._path):
            self._group = zarr.create_group(self._path, attributes=attrs)
            for name, layers in arrays.items():
                slots, width = shapes[layers[0]]
                together = max(1, min(len(layers), CHUNK // (4 * self._size * slots * width)))  # layers of a chunk
                self._group.create_array(
                    name,
                    shape=(len(layers), self._n, slots, width),
                    chunks=(together, self._size, slots, width),
                    dtype="float32",
                    fill_value=math.nan,
                    **kind,
                )
                self._tails[name] = np.empty((len(layers), self._size, slots, width), np.float32)
            self._group.create_array(
                "series", shape=(self._n,), chunks=(self._n,), dtype="int64", fill_value=-1, **kind
            )

    def _resumed(self) -> bool:
        try:
            self._resume()
        except DamagedError:
            return False
        return True

    def _resume(self) -> None:
        with _damage_named(self._path):
            group = _open(self._path, "r+")
            attrs = dict(group.attrs)
            if any(attrs[key] != value for key, value in self._asked.items()) or attrs["finished"]:
                raise ValueError("it holds something else")
            series = group["series"][:]
            rows = int((series >= 0).sum())
            if len(series) != self._n or (series[:rows] < 0).any() or len(set(series[:rows])) != rows:
                raise ValueError("its index is wrong")
            for name in attrs["arrays"]:
                array = group[name]
                self._size = array.chunks[1]
                for i in range(array.shape[0]):
                    _finite(array[i, :rows])
                start = rows // self._size * self._size
                tail = np.empty((array.shape[0], self._size, *array.shape[2:]), np.float32)
                tail[:, : rows - start] = array[:, start:rows]
                self._tails[name] = tail
        for rest in filter(_is_rest, list(self._path.rglob("*"))):
            rest.unlink(missing_ok=True)
        self._group, self._arrays, self._series[:rows] = group, attrs["arrays"], series[:rows]
        self._rows = self._written = rows
        self._before, self.forward = float(attrs["seconds"]), float(attrs["forward_seconds"])

    def _empty(self) -> None:
        self._tails.clear()
        with _refusal_named(self._path):
            children = list(self._path.iterdir())
            for child in children:
                if not (child.name in ("zarr.json", "series") or child.name.startswith("width") or _is_rest(child)):
                    raise StorageError(
                        f"{self._path} holds {child.name}, which is no part of kept features: "
                        "give them a folder of their own"
                    )
            for child in children:  # not the folder itself, which carries the lock
                shutil.rmtree(child) if child.is_dir() else child.unlink()


def _is_rest(path: Path) -> bool:
    """Half a file, as Zarr leaves it in a process that is killed."""
    return path.suffix == ".partial"


def _open(path: Path, mode: str) -> Any:
    import zarr

    return zarr.open_group(path, mode=mode)  # type: ignore[arg-type]


def _places(arrays: dict[str, list[str]]) -> dict[str, tuple[str, int]]:
    """Array and position of each layer."""
    return {layer: (name, i) for name, layers in arrays.items() for i, layer in enumerate(layers)}


def _check_shapes(arrays: dict[str, Any], attrs: dict[str, Any], n: int) -> None:
    """Raise `ValueError` for arrays that are not `[G, N, P, D]` in float32, with the layers and slots that they should
    have."""
    try:
        slots = Slots.parse(tuple(attrs["poolings"]))
    except TsprobeError as error:
        raise ValueError(str(error)) from error
    for name, array in arrays.items():
        due = (len(attrs["arrays"][name]), n, len(slots), array.shape[-1])
        if array.shape != due or array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype} of shape {list(array.shape)}, not of {list(due)}")


def _finite(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():
        raise ValueError("a part was never written")
    return values


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{path} is damaged or not finished ({what[0]}); remove it and run again") from error
    except OSError as error:  # nothing is wrong with the store
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def _refusal_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
