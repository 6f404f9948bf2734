"""Small videos for tests, of MPEG-4's first kind, which every build of FFmpeg writes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np


def encoded(pictures: Sequence[np.ndarray], rate: int = 10) -> bytes:
    """An MP4 file of pictures `[H, W, 3]` of 8 bits, all of one size."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
