"""Files that somebody made to do harm: each is refused in one line, and nothing in it is run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tsprobe.encoders import hub, load_encoder
from tsprobe.errors import EncoderError, SpecError
from tsprobe.files import read_arrays
from tsprobe.study.spec import read_spec


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
        hub.read_pickle(tmp_path / "model.pt", "toy")
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
