"""A panel: the series of one set, ragged or not, and the one way in for what users already hold.

Values are float32 `[C, S_i]`; whatever is not finite is missing. `as_panel` copies, so a panel never changes under its
fingerprint when the caller goes on to write into their own array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsprobe.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

FORMATS = "give an array [N, C, S], or a list of [C, S] arrays when lengths differ"


@dataclass(frozen=True, eq=False)
class Panel:
    """N series with the same C channels, each float32 `[C, S_i]`; NaN or an infinity marks a missing value.

    Raises `DataError` when there is no series, a series has no step or no channel, channel counts differ, or an
    array is not float32 `[C, S]`; `as_panel` makes such arrays out of most things.
    """

    series: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", tuple(self.series))
        if not self.series:
            raise DataError(f"no series in the set; {FORMATS} with N of at least 1")
        for i, x in enumerate(self.series):
            if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 2:
                raise DataError(f"series {i} is not a float32 array [C, S]; use as_panel() to convert")
            if x.shape[0] != self.channels:
                raise DataError(
                    f"series {i} has {x.shape[0]} channels but series 0 has {self.channels}; "
                    "all series of a set need the same channels"
                )
            if 0 in x.shape:
                what = "no step" if x.shape[1] == 0 else "no channel"
                raise DataError(f"series {i} has {what} (shape {x.shape}); every series needs at least one of each")

    @property
    def n(self) -> int:
        return len(self.series)

    @property
    def channels(self) -> int:
        return self.series[0].shape[0]

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Steps of each series, missing values included."""
        return np.array([x.shape[1] for x in self.series], dtype=np.int64)

    @property
    def ragged(self) -> bool:
        return bool((self.lengths != self.lengths[0]).any())

    @cached_property
    def missing(self) -> int:
        """Number of values that are not finite, over all series and channels."""
        return sum(int(x.size - np.isfinite(x).sum()) for x in self.series)

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.series[i]

    def __repr__(self) -> str:
        low, high = self.lengths.min(), self.lengths.max()
        return f"Panel({self.n} series, {self.channels} channels, {low if low == high else f'{low}-{high}'} steps)"

    def take(self, indices: Iterable[int]) -> Panel:
        """The series at these positions, in this order; the arrays are shared, not copied."""
        return Panel(tuple(self.series[int(i)] for i in indices))

    def stack(self) -> Float32[np.ndarray, "N C S"]:
        """All series as one array `[N, C, S]`. Raises `DataError` when lengths differ."""
        if self.ragged:
            raise DataError(
                f"series lengths differ ({self.lengths.min()} to {self.lengths.max()}): a ragged set has no [N, C, S]"
            )
        return np.stack(self.series)

    def fingerprint(self) -> str:
        """SHA-256 over the shapes and values of all series, in order (hexadecimal; computed once)."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"panel {self.n}".encode())
        for x in self.series:
            digest.update(f"{x.shape}".encode())
            digest.update(np.ascontiguousarray(x).data)
        return digest.hexdigest()


def as_panel(x: Any) -> Panel:
    """Series in any common form as a `Panel`; the values are copied to float32.

    Takes a numpy array or torch tensor `[N, C, S]`, or `[N, S]` for one channel; a sequence of `[C, S]` or `[S]`
    arrays, of any lengths; a pandas frame: wide (rows are series, columns are steps, one channel), sktime's nested
    form (cells are pandas Series) or its multi-index form (index levels instance and time, columns are channels); a
    `Panel`, which comes back as it is. For `(series, label)` pairs see `from_dataset`.

    Raises `DataError` for what cannot be read so: nothing in it, wrong rank, differing channels, text or complex
    values, or a finite value beyond float32.
    """
    if isinstance(x, Panel):
        return x
    if _is_pandas(x):
        return Panel(tuple(_float32(s, f"series {i}") for i, s in enumerate(_from_frame(x))))
    if isinstance(x, torch.Tensor) or (isinstance(x, np.ndarray) and x.dtype != object):
        return Panel(tuple(_from_array(_numpy(x))))
    if isinstance(x, np.ndarray) and x.ndim != 1:
        raise DataError(f"values of type object in an array of shape {x.shape}; {FORMATS} of numbers")
    if isinstance(x, (str, bytes)) or not isinstance(x, (Sequence, np.ndarray)):
        raise DataError(f"cannot read series from a {type(x).__name__}; {FORMATS}")
    return Panel(tuple(_one(item, i) for i, item in enumerate(x)))


def from_dataset(dataset: Any) -> tuple[Panel, np.ndarray]:
    """Series and labels of a torch `Dataset`, or of any iterable of `(series, label)` pairs.

    Each series is `[C, S]` or `[S]`; labels come back as an array `[N]`, or `[N, K]` when each is a vector.

    Raises `DataError` when there is no pair, an item is not a pair, or labels differ in shape.
    """
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        items: Iterable[Any] = (dataset[i] for i in range(len(dataset)))
    else:
        items = dataset
    series, labels = [], []
    for i, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"item {i} of the data set is a {type(item).__name__}, not a pair (series, label)")
        series.append(_one(item[0], i))
        labels.append(_numpy(item[1]))
    if len({y.shape for y in labels}) > 1:
        raise DataError(f"labels differ in shape: {sorted({y.shape for y in labels})}; give one label a series")
    return Panel(tuple(series)), np.array([y.tolist() for y in labels])


def _is_pandas(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "pandas"  # without importing pandas for those who do not use it


def _numpy(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # numpy knows no bfloat16
    return np.asarray(x)


def _float32(x: np.ndarray, where: str) -> np.ndarray:
    """A float32 copy. Raises `DataError` for what is not a real number, or too large to stay one."""
    if x.dtype.kind == "c":
        raise DataError(f"{where}: complex values; give real and imaginary parts as two channels")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: values of type {x.dtype} are not numbers; give floats, NaN where one is missing")
    with np.errstate(over="ignore"):
        y = np.array(x, dtype=np.float32, order="C")
    if x.dtype.itemsize > 4 and x.dtype.kind == "f" and (np.isinf(y) & np.isfinite(x)).any():
        raise DataError(f"{where}: a value lies beyond float32 (3.4e38); rescale the series")
    return y


def _from_array(x: np.ndarray) -> Iterable[np.ndarray]:
    if x.ndim not in (2, 3):
        raise DataError(f"array of shape {x.shape}: {FORMATS}, or [N, S] for one channel")
    y = _float32(x, "array")
    return y if x.ndim == 3 else y[:, None]


def _one(item: Any, i: int) -> np.ndarray:
    """One series `[C, S]` from `[C, S]` or `[S]`."""
    try:
        if isinstance(item, (tuple, list)) and len(item) == 2 and np.ndim(item[1]) == 0 and np.ndim(item[0]) > 0:
            raise DataError(f"item {i} looks like a pair (series, label); read such data with from_dataset()")
        x = _numpy(item)
    except ValueError as error:
        raise DataError(f"series {i}: its channels differ in length; pad them with NaN to one length") from error
    if x.ndim not in (1, 2):
        raise DataError(f"series {i} has shape {x.shape}; each must be [C, S], or [S] for one channel")
    y = _float32(x, f"series {i}")
    return y if y.ndim == 2 else y[None]


def _from_frame(x: Any) -> Iterable[np.ndarray]:
    """The series `[C, S]` of a pandas frame: multi-index, nested or wide."""
    import pandas as pd

    if not isinstance(x, pd.DataFrame):
        raise DataError(f"a pandas {type(x).__name__} is one column; give a DataFrame with one row a series")
    if x.size == 0:
        raise DataError(f"the frame is empty (shape {x.shape}); give one row a series")
    if x.index.nlevels == 2:
        return [_table(group).T for _, group in x.groupby(level=0, sort=False)]
    if x.index.nlevels > 2:
        raise DataError(f"index with {x.index.nlevels} levels; the multi-index form has two: instance and time")
    if isinstance(x.iloc[0, 0], (pd.Series, np.ndarray)):
        return [_nested_row(row, i) for i, row in enumerate(x.itertuples(index=False, name=None))]
    return _table(x)[:, None]


def _table(x: Any) -> np.ndarray:
    """A frame of numbers as float64, pandas' own marks for missing values as NaN."""
    for column, kind in x.dtypes.items():
        if getattr(kind, "kind", "O") not in "biufc":
            raise DataError(f"column {column!r} holds {kind}, not numbers; give numeric columns, NaN for missing")
    return x.to_numpy() if any(k.kind == "c" for k in x.dtypes) else x.to_numpy(dtype=np.float64, na_value=np.nan)


def _nested_row(row: tuple[Any, ...], i: int) -> np.ndarray:
    lengths = sorted({np.size(cell) for cell in row})
    if len(lengths) > 1:
        raise DataError(f"series {i}: its channels differ in length ({lengths}); pad them with NaN to one length")
    return np.stack([np.asarray(cell) for cell in row])
