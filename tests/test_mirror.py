"""A study at an address is that of a folder: sent as it comes, fetched where it is gone on with, opened anywhere."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

import tsprobe as tp
from tsprobe.cli import main
from tsprobe.errors import MissingPackageError, SpecError, StorageError
from tsprobe.mirror import Mirror, is_address, placed
from tsprobe.study import Study, make_spec, run_study
from tsprobe.study.pair import Pair
from tsprobe.study.progress import silent

pytestmark = pytest.mark.integration

K1 = "process/k1?n_train=60&n_test=40&length=64"
SETTINGS = {
    "name": "small", "encoders": ["baseline/lags"], "tasks": [K1], "controls": ["chance"], "probes": ["ridge", "knn"],
    "resamples": 200, "tracking": {"enabled": False},
}  # fmt: skip
TABLES = ("scores.csv", "verdicts.csv", "diagnostics.csv", "spec.yaml")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study in a folder."""
    study = run_study(make_spec(SETTINGS), tmp_path_factory.mktemp("alone"))
    study.report(study.folder / "report.html")
    return study.folder


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TSPROBE_CACHE", str(tmp_path / "first"))
    return tmp_path


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    """An object store that speaks S3 on loopback, with the bucket `lab`."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("lab")
        yield
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def address(request: pytest.FixtureRequest) -> str:
    import fsspec

    if request.param == "s3":
        request.getfixturevalue("store")
        return f"s3://lab/studies/{request.function.__name__}"
    fsspec.filesystem("memory").rm("/", recursive=True)
    return "memory://studies/small"


def run(address: str, *, fresh: bool = False, **others: object) -> Path:
    with placed(address, fresh=fresh) as place:
        run_study(make_spec(SETTINGS | others), place.folder, stage=place.told(silent), fresh=fresh)
    return place.folder


def listed(address: str) -> dict[str, bytes]:
    import fsspec

    store, root = fsspec.core.url_to_fs(address)
    store.invalidate_cache()
    return {path.split(root.lstrip("/") + "/", 1)[1]: store.cat_file(path) for path in store.find(root)}


def test_every_file_is_that_of_a_local_run(address: str, alone: Path, tmp_path: Path) -> None:
    with placed(address) as place:
        run_study(make_spec(SETTINGS), place.folder, stage=place.told(silent)).report(place.folder / "report.html")
    assert place.folder.is_relative_to(tmp_path / "first")
    there = listed(address)
    here = {p.relative_to(alone).as_posix() for p in alone.rglob("*") if p.is_file()}
    assert set(there) == {name for name in here if not name.startswith("features/")}
    for name in TABLES:
        assert there[name] == (alone / name).read_bytes()
    for name, content in there.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
        if name.endswith(".npz"):
            first, second = np.load(tmp_path / "copy" / name), np.load(alone / name)
            for array in set(first) - {"meta"}:
                np.testing.assert_array_equal(first[array], second[array])
    trees = [
        xr.open_datatree(top / "study.zarr", engine="zarr", consolidated=False) for top in (tmp_path / "copy", alone)
    ]
    xr.testing.assert_identical(*trees)
    for tree in trees:
        tree.close()
    facts = [json.loads((top / "provenance.json").read_text()) for top in (tmp_path / "copy", alone)]
    for changing in ("finished", "seconds", "share_of_time_not_forward"):
        assert [fact.pop(changing) for fact in facts]
    assert facts[0] == facts[1]
    assert len(there["report.html"]) == pytest.approx((alone / "report.html").stat().st_size, abs=200)


def test_it_is_opened_where_it_lies(address: str, alone: Path) -> None:
    run(address)
    study = Study.open(address)
    pd.testing.assert_frame_equal(study.scores, Study.open(alone).scores)
    assert len(study.tree.leaves) == 2
    folder = study.folder
    del study
    assert not folder.exists()
    with pytest.raises(StorageError, match=r"other is no finished study: scores.csv, .* is missing"):
        Study.open(address + "other")


def test_another_machine_goes_on_from_the_cells_that_are_there(
    address: str, alone: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, computed = Pair._compute, []

    def stops_at_third(self: Pair, *place: object) -> object:
        if len(computed) == 2:
            raise StorageError("stopped")
        computed.append(place)
        return compute(self, *place)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Pair, "_compute", stops_at_third)
        with pytest.raises(StorageError, match="stopped"):
            run(address)
    assert len([name for name in listed(address) if name.endswith(".npz")]) == 2
    assert ".owner" not in listed(address)
    monkeypatch.setenv("TSPROBE_CACHE", str(machine / "second"))
    monkeypatch.setattr(Pair, "_compute", lambda self, *place: (computed.append(place), compute(self, *place))[1])
    run(address)
    assert len(computed) == 4
    for name in TABLES:
        assert listed(address)[name] == (alone / name).read_bytes()
    run(address)
    assert len(computed) == 4


def test_only_what_has_changed_is_sent_and_what_is_gone_is_removed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(address)
    mirror = Mirror(address, folder)
    mirror.begin(fresh=False)
    sent: list[str] = []
    put = mirror._store.put
    monkeypatch.setattr(mirror._store, "put", lambda here, there: (sent.extend(there), put(here, there)))
    mirror.send(("cells", "study.zarr", "scores.csv"))
    assert sent == []
    (folder / "scores.csv").write_text("other\n")
    mirror.send(("scores.csv",))
    assert [name.rpartition("/")[2] for name in sent] == ["scores.csv"]
    assert listed(address)["scores.csv"] == b"other\n"
    assert any(name.startswith("study.zarr/baseline_chance") for name in listed(address))
    run(address, controls=[])
    assert not any(name.startswith("study.zarr/baseline_chance") for name in listed(address))
    assert any(name.startswith("cells/baseline_chance") for name in listed(address))  # for a study that asks for it


def test_fresh_forgets_what_lies_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(address, controls=[])
    import fsspec

    store, root = fsspec.core.url_to_fs(address)
    store.pipe_file(f"{root}/notes.txt", b"of the user")
    compute, computed = Pair._compute, []
    monkeypatch.setattr(Pair, "_compute", lambda self, *place: (computed.append(place), compute(self, *place))[1])
    run(address, controls=[], fresh=True)
    assert len(computed) == 2
    assert listed(address)["notes.txt"] == b"of the user"


def test_the_command_line_sends_and_reports(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    fsspec.filesystem("memory").rm("/", recursive=True)
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.setattr(sys, "argv", ["tsprobe", "run", str(config), "--out", "memory://cli"])
    main_exits(0)
    assert "sent to: memory://cli" in capsys.readouterr().out
    assert listed("memory://cli")["scores.csv"] == (alone / "scores.csv").read_bytes()
    monkeypatch.setattr(sys, "argv", ["tsprobe", "report", "memory://cli", "--out", str(tmp_path / "page.html")])
    main_exits(0)
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_a_study_from_python_is_kept_at_an_address(alone: Path, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").rm("/", recursive=True)
    settings = {name: value for name, value in SETTINGS.items() if name not in ("name", "encoders", "tasks")}
    tp.probe("baseline/lags", K1, out="memory://python", **settings)
    there = listed("memory://python")
    assert there["scores.csv"] == (alone / "scores.csv").read_bytes()
    assert len(there["report.html"]) > 10_000
    assert not list(tmp_path.glob("memory*"))


def main_exits(code: int) -> None:
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code or 0) == code


def test_a_store_that_refuses_is_one_line(store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"^cannot write s3://nowhere/x: The specified bucket does not exist$"):
        run("s3://nowhere/x")
    with pytest.raises(SpecError, match=r"^ftpx://a: Protocol not known: ftpx$"):
        run("ftpx://a")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingPackageError, match=r"^gs://a needs the package 'gcsfs', .*: pip install gcsfs$"):
        run("gs://a")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        MissingPackageError, match=r"'fsspec', which is not installed: pip install \"tsprobe\[cluster\]\""
    ):
        run("memory://a")


def test_a_path_is_no_address(tmp_path: Path) -> None:
    assert is_address("s3://bucket/folder")
    assert not is_address("runs/s3")
    assert not is_address(tmp_path)
    with placed(tmp_path / "a") as place:
        assert place.folder == tmp_path / "a"
