"""Frames of a compressed video that is held in memory, evenly spread over it, by PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprobe.errors import DAMAGE, DataError, MissingPackageError, reason

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

_MOST = 1 << 25  # pixels of a frame: what is called 8K


def moments(frames: int, count: int) -> Int64[np.ndarray, " F"]:
    """`count` frames of a video, from its first to its last; the one in the middle where one is asked for."""
    if count == 1:
        return np.array([(frames - 1) // 2])
    return np.linspace(0, frames - 1, count).round().astype(np.int64)


def decode(content: bytes, count: int, size: int, where: str) -> UInt8[np.ndarray, "F 3 H W"]:
    """`count` frames, squashed to squares of `size` pixels a side.

    The video is gone through twice, first to count its frames, which heads of files do not always tell, so that no
    more than are asked for are held. Raises `DataError`, which names `where`, for what is no video or is cut off, and
    for fewer frames than are asked for, or than two; `MissingPackageError`.
    """
    av = library(where)
    try:
        total, said = _counted(av, content)
        if said > total:
            raise DataError(f"{where}: {total} frames of {said} can be read; the video is cut off")
        if total < max(2, count):
            raise DataError(f"{where}: a video of {total} frame{'s' * (total != 1)}; give at least {max(2, count)}")
        wanted = moments(total, count)
        found: dict[int, np.ndarray] = {}
        with _opened(av, content) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    small = frame.reformat(size, size, format="rgb24", interpolation="AREA")
                    found[i] = small.to_ndarray().transpose(2, 0, 1)
                if i == wanted[-1]:
                    break
    except (av.FFmpegError, *DAMAGE) as error:
        raise DataError(f"{where} is no video that can be read ({reason(error)})") from error
    if lacking := sorted(set(wanted.tolist()) - set(found)):
        raise DataError(f"{where}: frame {lacking[0]} of {total} cannot be read; the video is cut off")
    return np.stack([found[i] for i in wanted.tolist()])


def _opened(av: Any, content: bytes) -> Any:
    """A video of MPEG-4's container, whatever else it looks like: others, such as playlists, name files and addresses
    that FFmpeg goes to. Raises `ValueError` for one of more pixels a frame than can be meant."""
    container = av.open(io.BytesIO(content), format="mp4")
    for stream in container.streams.video:
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > _MOST:
            container.close()
            raise ValueError(f"frames of {width} x {height} pixels")
        stream.codec_context.options = {"max_pixels": str(_MOST)}  # they may grow on the way
    return container


def _counted(av: Any, content: bytes) -> tuple[int, int]:
    """Frames that there are, and that the head of the file tells of (0: it does not)."""
    with _opened(av, content) as container:
        stream = container.streams.video[0]
        return sum(packet.size > 0 for packet in container.demux(stream)), int(stream.frames or 0)


def library(purpose: str) -> Any:
    """PyAV. Raises `MissingPackageError`."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("av", f"reading {purpose}", "video") from error
    return av
