"""Pooling on the CPU by one loop in C, compiled on first use.

Plain C through ctypes, because it is the lightest way to one read: two seconds of compilation, any C compiler, no
header of torch or Python and so no binary interface to keep in step. The other ways cost more: a torch extension needs
a C++ compiler, ninja and minutes of headers, and a rebuild for every torch; numba does not turn the loop into full
vectors and takes two and a half reads; `torch.compile` takes over two reads and six seconds or more on the first call
of every shape. With OpenMP the loop runs on the threads that torch itself uses.

The library lies in the user's cache folder under a key of source, flags, compiler and processor. Where anything fails
(no compiler, no place to write, a wrong result of the check that follows loading) there is no native path, `state()`
says why, and pooling goes on in torch. `TSPROBE_NATIVE=0` switches the path off.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SOURCE = Path(__file__).with_name("pool.c")
# No -ffast-math: NaN and infinities must be seen. The two flags only free the compiler of errno and floating traps.
_COMMON = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
FLAGS = (  # tried in turn: Apple's compiler has no OpenMP, some have no -march=native
    (*_COMMON, "-march=native", "-fopenmp"),
    (*_COMMON, "-mcpu=native", "-fopenmp"),
    (*_COMMON, "-march=native"),
    _COMMON,
)
_CPU = torch.device("cpu")
_log = logging.getLogger(__name__)


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "mask", "share", "total", "out", "weight", "kinds")),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("rows", "tokens", "width", "x_row", "x_token", "mask_row", "mask_token"),
                *("segments", "slots", "cls"),
            )
        ),
        ("dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class Native(NamedTuple):
    """The compiled loop, or none and the reason."""

    function: Callable[..., int] | None
    detail: str


@functools.cache
def state() -> Native:
    """The compiled loop of this process; compiles it on the first call. Never raises."""
    if os.environ.get("TSPROBE_NATIVE") == "0":
        return Native(None, "switched off by TSPROBE_NATIVE=0")
    try:
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "cc", "gcc", "clang"))), None)
        if compiler is None:
            return _without("no C compiler (cc, gcc or clang) was found")
        reason = ""
        for flags in FLAGS:
            path = _folder() / f"pool-{_key(compiler, flags)}.so"
            function = _load(path) if path.exists() else None
            if function is None:  # not there yet, or damaged
                reason = _compile(compiler, flags, path)
                function = None if reason else _load(path)
            if function is not None:
                return Native(function, f"{Path(compiler).name} {' '.join(flags[len(_COMMON) :])}".strip())
        return _without(reason or f"what {compiler} makes cannot be loaded or gives wrong results")
    except (OSError, subprocess.SubprocessError) as error:
        return _without(str(error))


def serves(x: Tensor) -> bool:
    """Whether the loop can read `x` as it lies: on the CPU, of a type it knows, last dimension contiguous."""
    return (
        x.is_cpu
        and x.layout == torch.strided
        and x.dtype in DTYPES
        and (x.stride(2) == 1 or x.shape[2] == 1)
        and state().function is not None
    )


class Prepared(NamedTuple):
    """All that calls on tokens of one shape, type and mask have in common; kept alive here is what `job` points to."""

    job: _Job
    shape: tuple[int, int, int]  # R, P, D
    held: tuple[object, ...]

    def pool(self, x: Float[Tensor, "R T D"]) -> tuple[Float[Tensor, "R P D"], Float[Tensor, "R P"]]:
        """Slots and their weights in float32. `x` must be of the shape, strides and type that were prepared for."""
        function = state().function
        assert function is not None
        out = torch.empty(self.shape, dtype=torch.float32, device=_CPU)
        weight = torch.empty(self.shape[:2], dtype=torch.float32, device=_CPU)
        if function(self.job, x.data_ptr(), out.data_ptr(), weight.data_ptr(), torch.get_num_threads()):
            raise MemoryError("no memory for the accumulators of pooling by segments")
        return out, weight


def prepare(
    x: Float[Tensor, "R T D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    kinds: Sequence[int],
    cls: int,
) -> Prepared:
    """Slots of the given kinds (numbers of `Kind`), for tokens such as `x`; `serves(x)` must hold."""
    rows, tokens, width = x.shape
    total = None
    if share is not None:
        share = share.to(torch.float32).contiguous()
        total = share.sum(1)
    numbers = (ctypes.c_int32 * len(kinds))(*kinds)
    job = _Job(
        *(None, mask.data_ptr(), _address(share), _address(total), None, None, ctypes.addressof(numbers)),
        *(rows, tokens, width, *x.stride()[:2], *mask.stride()),
        *(0 if share is None else share.shape[2], len(kinds), cls, DTYPES[x.dtype], 0),
    )
    return Prepared(job, (rows, len(kinds), width), (mask, share, total, numbers))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def pool(
    x: Float[Tensor, "R T D"],
    mask: Bool[Tensor, "R T"],
    share: Float[Tensor, "R T K"] | None,
    kinds: Sequence[int],
    cls: int,
) -> Float[Tensor, "R P D"]:
    """Slots of the given kinds (numbers of `Kind`) in float32; `serves(x)` must hold."""
    return prepare(x, mask, share, kinds, cls).pool(x)[0]


def _without(reason: str) -> Native:
    _log.warning("pooling on the CPU runs in torch, some four times slower than the compiled loop: %s", reason)
    return Native(None, reason)


def _folder() -> Path:
    """The cache folder, made if need be; one of this process's own where the user's cannot be written."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsprobe" / "native"
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(home, os.W_OK) and (not hasattr(os, "getuid") or home.stat().st_uid == os.getuid()):
            return home  # code that another user could have put there is not loaded
    return _own_folder()


@functools.cache
def _own_folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tsprobe-native-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _key(compiler: str, flags: Sequence[str]) -> str:
    """Machines may share a home folder: code for one processor must not be run on another."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=30, check=False).stdout
    parts = (SOURCE.read_bytes(), " ".join(flags).encode(), version, sys.platform.encode(), _processor())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> bytes:
    info = Path("/proc/cpuinfo")
    lines = info.read_bytes().splitlines() if info.exists() else []
    kinds = {line for line in lines if line.startswith((b"model name", b"flags", b"Features", b"CPU part"))}
    return b"\n".join((platform.machine().encode(), platform.processor().encode(), *sorted(kinds)))


def _compile(compiler: str, flags: Sequence[str], path: Path) -> str:
    """Compile to `path` in one step, so that no other process can load half a library; the error, or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".compiling-", suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *flags, str(SOURCE), "-o", name, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            return f"{compiler}: {(done.stderr.strip().splitlines() or ['failed'])[0]}"
        Path(name).replace(path)
        return ""
    finally:
        Path(name).unlink(missing_ok=True)


def _load(path: Path) -> Callable[..., int] | None:
    """The loop, if it can be loaded and gives a result known beforehand."""
    try:
        function = ctypes.CDLL(str(path)).tsprobe_pool
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.POINTER(_Job), *[ctypes.c_void_p] * 3, ctypes.c_int32), ctypes.c_int
    mask = torch.tensor([[True, True, False]], device=_CPU)
    steps = torch.arange(80, dtype=torch.float32, device=_CPU) % 2 * 16  # dimensions apart, a whole strip and a part
    tokens = torch.tensor([1.0, 3.0, 8.0], device=_CPU)[:, None] + steps
    wanted = torch.tensor([2.0, 3.0, 1.0, 1.0, 1.0, 3.0, 8.0], device=_CPU)[:, None] + steps
    wanted[3] = 1.0  # the deviation
    for dtype in DTYPES:
        x, out, weight = tokens.to(dtype)[None], torch.empty_like(wanted), torch.empty_like(wanted[:, 0])
        prepared = prepare(x, mask, None, range(7), 2)
        failed = function(prepared.job, x.data_ptr(), out.data_ptr(), weight.data_ptr(), 1)
        if failed or not torch.equal(out, wanted) or weight.tolist() != [2.0] * 6 + [1.0]:
            return None
    return function
