"""How an encoder in a worker process and the process that studies it speak to one another, over a pipe each way.

A message is two lengths, a head in JSON and a body in Arrow's stream format, which may be empty. Two things travel as
bodies: a panel of series on the way there, and blocks of pooled features on the way back. Nothing is pickled.

| asked, with | answered by |
|---|---|
| load: name, options | the encoder described |
| untrained: encoder, seed; to: encoder, device | the encoder described |
| check: encoder, settings | end |
| stream: encoder, reading, layers, and a panel | any number of progress (windows) and block, then end |
| next or stop, after each block | |

A mistake is answered with its kind and its message in place of anything else.
"""

from __future__ import annotations

import itertools
import json
import struct
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tsprobe.data.panel import Panel

if TYPE_CHECKING:
    import pyarrow as pa

_LENGTHS = struct.Struct("<IQ")


def send(pipe: IO[bytes], head: dict[str, Any], body: Any = b"") -> None:
    """Write one message."""
    text = json.dumps(head).encode()
    pipe.write(_LENGTHS.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read one message. Raises `EOFError` where the other side has ended."""
    heads, bodies = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    return json.loads(_exactly(pipe, heads)), _exactly(pipe, bodies)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)  # the pipes are buffered: less comes back at the end only
    if len(content) < size:
        raise EOFError
    return content


def pack_panel(panel: Panel, done: np.ndarray) -> Any:
    """A row a series: its values, channel after channel, and whether it is `done` [N] and need not be read."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum([s.size for s in panel.series])])
    values = np.concatenate([s.ravel() for s in panel.series])
    series = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
    return _write({"series": series, "done": pa.array(done)}, {"channels": [panel.channels]})


def unpack_panel(body: bytes) -> tuple[Panel, np.ndarray]:
    batch, shapes = _read(body)
    (channels,) = shapes["channels"]
    series = batch.column("series")
    values, offsets = series.values.to_numpy(), series.offsets.to_numpy()
    cut = (values[a:b].reshape(channels, -1) for a, b in itertools.pairwise(offsets))
    return Panel(tuple(cut)), batch.column("done").to_numpy(zero_copy_only=False)


def pack_block(index: np.ndarray, arrays: dict[str, np.ndarray]) -> Any:
    """A row a series: its position in the panel, and for each layer its features `[P, D]` as one list."""
    import pyarrow as pa

    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array[0].size)
        for name, array in arrays.items()
    }
    shapes = {name: list(array.shape[1:]) for name, array in arrays.items()}
    return _write({"index": pa.array(index), **{f"layer {name}": c for name, c in columns.items()}}, shapes)


def unpack_block(body: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    batch, shapes = _read(body)
    arrays = {
        name: batch.column(f"layer {name}").flatten().to_numpy().reshape(batch.num_rows, *shape)
        for name, shape in shapes.items()
    }
    return batch.column("index").to_numpy(), arrays


def _write(columns: dict[str, Any], shapes: dict[str, list[int]]) -> Any:
    import pyarrow as pa

    batch = pa.record_batch(columns).replace_schema_metadata({"shapes": json.dumps(shapes)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _read(body: bytes) -> tuple[pa.RecordBatch, dict[str, list[int]]]:
    import pyarrow as pa

    with pa.ipc.open_stream(body) as reader:
        batch = reader.read_next_batch()
    return batch, json.loads(batch.schema.metadata[b"shapes"])
