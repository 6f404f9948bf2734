"""Videos in shards of the PE Video Dataset's format, as miniatures, whole and broken."""

from __future__ import annotations

import io
import json
import tarfile
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from fuzz.films import encoded

import tsprobe.tasks as found_tasks
from tsprobe.errors import DataError, MissingPackageError, SpecError
from tsprobe.tasks import load_task
from vision.images import to_images
from vision.tasks import pvd, video


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    point = EntryPoint("pvd", "vision.tasks.pvd:load_pvd", "tsprobe.tasks")
    monkeypatch.setattr(found_tasks, "entry_points", lambda group: [point])


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shard(path, clips):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in clips:
            add(tar, name, content if isinstance(content, bytes) else json.dumps(content).encode())


def said(i):
    captions = {"human_caption": f"clip {i} moves", "model_caption": f"thing {i}"}
    return {"video_id": i, **captions, "category": f"kind {i % 2}"}


def members(numbers):
    return [pair for i in numbers for pair in ((f"{i}.json", said(i)), (f"{i}.mp4", bytes([i])))]


@pytest.fixture
def decoder(monkeypatch):
    """Stands in for PyAV: a video is its number, frame f of it has the brightness 10 number + f."""

    def decode(content, count, size, where):
        frames = (10 * content[0] + np.arange(count)).astype(np.uint8)
        return np.broadcast_to(frames[:, None, None, None], (count, 3, size, size))

    monkeypatch.setattr(video, "library", lambda purpose: None)
    monkeypatch.setattr(video, "decode", decode)


@pytest.fixture
def dataset(tmp_path, decoder):
    shard(tmp_path / "train/000000.tar", members(range(4)))
    shard(tmp_path / "train/000001.tar", [("note.txt", b"-"), *members(range(4, 7))])
    shard(tmp_path / "test/000000.tar", members(range(10, 14)))
    return tmp_path


def test_clips_are_sheets_with_their_captions(dataset):
    task = load_task(f"pvd/{dataset}?size=8&ask=caption")
    assert (task.train.n, task.test.n, task.kind) == (7, 4, "caption")
    assert [q.answer for q in task.questions_train] == [(f"clip {i} moves",) for i in range(7)]
    sheets = (to_images(task.train.stack()) * 255).round()
    assert sheets.shape == (7, 3, 16, 16)
    for k, (row, column) in enumerate(((0, 0), (0, 8), (8, 0), (8, 8))):  # in the order of reading
        assert (sheets[:, :, row : row + 8, column : column + 8] == 10 * np.arange(7)[:, None, None, None] + k).all()
    of_models = load_task(f"pvd/{dataset}?size=8&ask=caption&text=model&n_train=3")
    assert of_models.train.n == 3
    assert of_models.questions_test[0].answer == ("thing 10",)


def test_captions_are_chosen_from_those_of_the_split(dataset):
    task = load_task(f"pvd/{dataset}?size=8")
    for questions, known in ((task.questions_train, range(7)), (task.questions_test, range(10, 14))):
        for question, i in zip(questions, known, strict=True):
            assert question.answer == f"clip {i} moves"
            assert len(set(question.choices)) == 4
            assert set(question.choices) <= {f"clip {k} moves" for k in known}
    places = [q.choices.index(q.answer) for q in task.questions_train]
    assert len(set(places)) > 1
    kinds = load_task(f"pvd/{dataset}?size=8&ask=category&frames=1")
    assert kinds.labels == ("kind 0", "kind 1")
    assert kinds.train.lengths[0] == 64


def test_a_single_shard_is_split(dataset):
    task = load_task(f"pvd/{dataset}/train?size=8&ask=category")
    assert (task.train.n, task.test.n) == (5, 2)
    one = load_task(f"pvd/{dataset}/train/000000.tar?size=8&ask=category&frames=1")
    assert (one.train.n, one.test.n) == (3, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([*members([1, 2, 3]), ("4.json", said(4))], "000000.tar: 4.json has no mp4"),
        ([*members([1, 2, 3]), ("4.mp4", b"4")], "000000.tar: 4.mp4 has no json"),
        ([*members([1, 2, 3]), *members([3])], "000000.tar: 3.json is there twice"),
        ([*members([1, 2, 3]), ("4.json", {}), ("4.mp4", b"4")], "000000.tar: 4.json has no human_caption"),
        ([*members([1, 2]), ("4.json", {"human_caption": None}), ("4.mp4", b"4")], "4.json has no human_caption"),
        ([*members([1, 2]), ("4.json", {"human_caption": " . "}), ("4.mp4", b"4")], "4.json has no human_caption"),
        ([*members([1, 2]), ("4.json", [1]), ("4.mp4", b"4")], "000000.tar: 4.json holds no object"),
        ([*members([1, 2]), ("4.json", b"{"), ("4.mp4", b"4")], "000000.tar: 4.json cannot be read as json"),
        ([*members([1, 2]), ("4.json", b"\xff\xfe{"), ("4.mp4", b"4")], "000000.tar: 4.json cannot be read as json"),
        ([("note.txt", b"-")], "no clip in"),
        (members([1, 2]), "2 different captions in a split"),
    ],
)
def test_broken_shards_are_refused_by_member(dataset, content, message):
    (dataset / "train/000001.tar").unlink()
    shard(dataset / "train/000000.tar", content)
    with pytest.raises(DataError, match=message) as error:
        load_task(f"pvd/{dataset}?size=8")
    assert "\n" not in str(error.value)


def test_shards_that_are_none_or_cut_off(dataset, tmp_path):
    file = dataset / "test/000000.tar"
    whole = file.read_bytes()
    for content, message in (
        (b"no tar file" * 100, "cannot be read as a tar file"),
        (whole[:700], "000000.tar"),
        (b"", "cannot be read as a tar file"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_task(f"pvd/{dataset}?size=8")
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere"):
        with pytest.raises(DataError, match="is no shard"):
            load_task(f"pvd/{tmp_path}/{path}")
    for query, message in (("frames=5", "square number"), ("ask=title", "choice, caption"), ("frames=0", "frames=0")):
        with pytest.raises(SpecError, match=message):
            load_task(f"pvd/{dataset}?{query}")


def test_names_of_members_lead_nowhere(tmp_path, decoder):
    outside = [(f"../../{i}{end}", content) for i in range(3) for end, content in ((".json", said(i)), (".mp4", b"1"))]
    shard(tmp_path / "s/000000.tar", [*outside, ("/etc/4.json", said(4)), ("/etc/4.mp4", b"4")])
    before = sorted(tmp_path.rglob("*"))
    task = load_task(f"pvd/{tmp_path}/s?size=8&ask=category")
    assert task.train.n + task.test.n == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_moments_are_spread_from_first_to_last():
    assert video.moments(9, 3).tolist() == [0, 4, 8]
    assert video.moments(9, 1).tolist() == [4]
    assert video.moments(4, 4).tolist() == [0, 1, 2, 3]


def test_without_a_decoder_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"tsprobe\[video\]"):
        pvd.load_pvd(str(tmp_path))


def greys(frames):
    return encoded([np.full((32, 32, 3), 20 * k, np.uint8) for k in range(frames)])


def head_first(av, path, content):
    """The same video with its head before its frames, as the web has it: what is cut off is found by decoding alone."""
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return path.read_bytes()


def test_videos_are_decoded_at_their_moments(tmp_path):
    av = pytest.importorskip("av", reason='needs pip install "tsprobe[video]"')
    content = greys(9)
    frames = video.decode(content, 3, 8, "here")
    assert frames.shape == (3, 3, 8, 8)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [0, 80, 160], atol=6)  # mpeg4 loses a little
    for broken, message in (
        (greys(1), "here: a video of 1 frame; give at least 3"),
        (content[: len(content) // 2], "here"),
        (head_first(av, tmp_path / "clip.mp4", content)[:-300], "here: .* cut off"),
        (b"", "here is no video"),
        (b"junk" * 100, "here is no video"),
    ):
        with pytest.raises(DataError, match=message):
            video.decode(broken, 3, 8, "here")
    with pytest.raises(DataError, match="a video of 1 frame; give at least 2"):
        video.decode(greys(1), 1, 8, "here")
