"""Files that somebody made to do harm: each is refused in one line, and nothing in it is run."""

from __future__ import annotations

import itertools
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tsprobe.embed import read_series
from tsprobe.encoders import hub, load_encoder, pickles
from tsprobe.errors import DataError, EncoderError, SpecError
from tsprobe.files import read_arrays
from tsprobe.study.spec import read_spec
from tsprobe.tasks import load_task


class Touch:
    """Unpickled, it leaves a file behind: the sign that code was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _touch, (str(self.path),)


def _touch(path: str) -> None:
    Path(path).touch()


def test_a_sign_of_harm_would_be_seen(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "run")))
    assert (tmp_path / "run").exists()


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "more": Touch(tmp_path / "run")}, tmp_path / "model.pt")
    with pytest.raises(EncoderError, match=r"model\.pt"):
        pickles.read_pickle(tmp_path / "model.pt", "toy")
    assert not (tmp_path / "run").exists()


def test_a_weights_file_that_is_a_pickle_is_no_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    shipped = Path(hub.__file__).parents[1] / "zoo" / "jepa" / "config.json"
    (folder / "config.json").write_text(shipped.read_text())
    torch.save(Touch(tmp_path / "run"), folder / "model.safetensors")
    with pytest.raises(EncoderError, match="not a whole safetensors file"):
        load_encoder(f"zoo:{folder}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system", "!!python/object/new:tuple"]
)
def test_a_config_builds_no_objects(tmp_path: Path, tag: str) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(f"encoders: [zoo/jepa]\ntasks: {tag} [{tmp_path / 'run'}]\n")
    with pytest.raises(SpecError, match="not plain YAML"):
        read_spec(config)
    assert not (tmp_path / "run").exists()


def test_arrays_with_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([Touch(tmp_path / "run")], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_arrays(tmp_path / "a.npz")
    assert not (tmp_path / "run").exists()


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path, zeros = tmp_path / "bomb.npz", bytes(1 << 24)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as entry,
    ):
        for _ in range(65):
            entry.write(zeros)
    assert path.stat().st_size < 6e6
    with pytest.raises(ValueError, match=r"unpacks to 1\.1 GB"):
        read_arrays(path)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.zeros(1000))
    found = read_arrays(tmp_path / "a.npz")
    assert found["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["y"].shape == (1000,)


def test_no_code_of_a_model_folder_is_asked_for() -> None:
    for package in ("tsprobe", "vision"):
        for file in (Path(hub.__file__).parents[2] / package).rglob("*.py"):
            assert "trust_remote_code=True" not in file.read_text(), file
            assert '"trust_remote_code": True' not in file.read_text(), file


def test_a_checkpoint_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path, zeros = tmp_path / "model.pt", bytes(1 << 24)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("model/data/0", "w") as entry,
    ):
        for _ in range(65):
            entry.write(zeros)
    with pytest.raises(EncoderError, match=r"unpacks to 1\.1 GB"):
        pickles.read_pickle(path, "toy")


def test_a_table_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """Runs of equal values take no room in Parquet: two billion of them a few kilobytes."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    part = pa.table({"a": pa.array(np.zeros(1 << 20))})
    with pq.ParquetWriter(tmp_path / "a.parquet", part.schema) as writer:
        for _ in range(200):
            writer.write_table(part)
    with pytest.raises(DataError, match=r"unpacks to 1\.7 GB"):
        read_series(tmp_path / "a.parquet")


def test_an_array_longer_than_its_file_is_refused_before_it_is_made(tmp_path: Path) -> None:
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2)}\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))
    with pytest.raises(DataError, match=r"shape \(1000000000000, 2\), and has 64 bytes"):
        read_series(tmp_path / "a.npy")


def test_a_number_that_ends_pandas_is_read(tmp_path: Path) -> None:
    """The reader of numbers of pandas 2 ends the process at an exponent of ten digits (pandas issue 63089)."""
    (tmp_path / "a.csv").write_text("1,2\n3,0.1e390209561022\n")
    with pytest.raises(DataError, match="not numbers"):
        read_series(tmp_path / "a.csv")


@pytest.mark.parametrize("inside", [False, True])
def test_no_code_of_the_hub_is_run_for_attention(tmp_path: Path, inside: bool) -> None:
    """transformers takes the name of a repository there, and runs what it finds in it."""
    code = {"attn_implementation": "someone/kernel"}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": code} if inside else code))
    with pytest.raises(EncoderError, match="asks for code from elsewhere"):
        hub.read_config(tmp_path, "toy")


def test_how_attention_is_computed_is_no_part_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"d_model": 8, "_attn_implementation": "sdpa"}')
    assert hub.read_config(tmp_path, "toy") == {"d_model": 8}


def test_an_encoder_cannot_be_its_own_base(tmp_path: Path) -> None:
    config = {"model_type": "tsprobe-aligned", "recipe": "x", "trained_on": "x", "scaled": False}
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "base": f"aligned:{tmp_path / base}"}))
    with pytest.raises(EncoderError, match="names itself"):
        load_encoder(f"aligned:{tmp_path / 'a'}")


def test_aliases_of_aliases_are_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]" for below, name in itertools.pairwise("abcdefghij")]
    (tmp_path / "study.yaml").write_text("\n".join(lines))
    with pytest.raises(SpecError, match="more than 100000 values"):
        read_spec(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text("tasks: &a [*a]\n")
    with pytest.raises(SpecError, match="an alias stands within"):
        read_spec(tmp_path / "study.yaml")


def test_a_message_quotes_no_more_than_can_be_read() -> None:
    said = str(SpecError("no such thing: " + "x" * 100_000 + " (there are a, b)"))
    assert len(said) <= 2000
    assert said.startswith("no such thing: x")
    assert said.endswith("(there are a, b)")


@pytest.mark.parametrize("name", ["a/../" + "x" * 300, "zoo:\0", "zoo:~nobody-at-all/x"])
def test_names_that_can_be_no_path_are_refused(name: str) -> None:
    with pytest.raises(EncoderError, match="names no encoder"):
        load_encoder(name)
    with pytest.raises(SpecError, match="names no task"):
        load_task(name)
