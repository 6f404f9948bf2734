"""A study on a Ray cluster is that of one process, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import clustered
import numpy as np
import pandas as pd
import pytest
import yaml
from clustered import assert_same, sign
from planted import planted_encoder, planted_task
from toys import StepsEncoder

from tsprobe.capture import Reading
from tsprobe.cli import main
from tsprobe.cluster import Cluster, fill, on_cluster
from tsprobe.cluster import session as sessions
from tsprobe.cluster import work as on_worker
from tsprobe.cluster.session import Call, session
from tsprobe.cluster.shards import shards
from tsprobe.cluster.work import Work
from tsprobe.data.panel import as_panel
from tsprobe.errors import ClusterError, SpecError, StorageError
from tsprobe.study import StudySpec, make_spec, run_study
from tsprobe.study.entries import plan_entries
from tsprobe.study.pair import Pair

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parent
K1 = "process/k1?n_train=60&n_test=40&length=64"
LOCAL = Cluster(address="local", shard=100)


def planted(source: str, name: str = "planted") -> dict[str, object]:
    return {"source": f"python:{source}", "name": name, "blocks": "blocks.*", "prepare": "bs", "tokens": 8}


def settings(**others: object) -> dict[str, object]:
    return {
        "name": "small", "encoders": [planted("planted:build")], "tasks": [K1], "controls": ["chance"],
        "poolings": ["mean", "max"], "probes": ["ridge", "knn"], "resamples": 200, "tracking": {"enabled": False},
        "diagnostics": {"tokens": 4},
    } | others  # fmt: skip


def spec(**others: object) -> StudySpec:
    return make_spec(settings(**others))


@pytest.fixture(scope="module", autouse=True)
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of this machine, connected to this process; two workers find the modules of the tests."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(clustered.SIGNS, str(tmp_path_factory.mktemp("signs")))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(os, "cpu_count", lambda: 2)
        before = signal.getsignal(signal.SIGTERM)
        with session(Cluster(address="local")):
            assert signal.getsignal(signal.SIGTERM) is before
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study in one process."""
    return run_study(spec(), tmp_path_factory.mktemp("alone")).folder


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*/*.npz")}


def test_it_gives_what_one_process_gives_and_says_where(alone: Path, tmp_path: Path) -> None:
    study = run_study(spec(), tmp_path, fill=on_cluster(LOCAL))
    assert_same(tmp_path, alone)
    facts = study.provenance["cluster"]
    assert facts["address"] == "local"
    assert facts["nodes"][0]["cpus"] == 2
    assert facts["ran_on"] == dict.fromkeys((f"planted on {K1}", f"baseline/chance on {K1}"), os.uname().nodename)
    assert "cluster" not in json.loads((alone / "provenance.json").read_text())
    assert not (tmp_path / "features").exists()  # they were a worker's
    before = times(tmp_path)
    again = run_study(spec(), tmp_path, fill=on_cluster(LOCAL))
    assert times(tmp_path) == before
    assert again.provenance["cluster"]["ran_on"] == {}


def test_features_of_shards_are_those_of_one_process_to_the_last_digit(alone: Path, tmp_path: Path) -> None:
    run_study(spec(), tmp_path, fill=on_cluster(Cluster(address="local", shard=16)))
    assert_same(tmp_path, alone)
    assert list(tmp_path.glob("features/planted/*.zarr"))  # put together by the driver


def test_large_features_are_probed_where_they_lie(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "SHIPPED", 0)
    study = run_study(spec(), tmp_path, fill=on_cluster(Cluster(address="local", shard=32)))
    assert_same(tmp_path, alone)
    assert study.provenance["cluster"]["ran_on"].keys() == {f"baseline/chance on {K1}"}


def test_a_store_that_was_begun_goes_on(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how, read = Cluster(address="local", shard=16), []
    real = fill._Large._call

    def fails_at_third(self: fill._Large, action: object, *given: object) -> Call:
        if action is on_worker.read_rows:
            read.append(given[0])
            if len(read) == 3:
                return real(self, action, "nowhere", *given[1:])
        return real(self, action, *given)

    monkeypatch.setattr(fill._Large, "_call", fails_at_third)
    with pytest.raises(AttributeError):  # what is no mistake of the user keeps its traceback
        run_study(spec(), tmp_path, fill=on_cluster(how))
    asked = len(read)
    assert asked == 4
    run_study(spec(), tmp_path, fill=on_cluster(how))
    assert 1 <= read[asked:].count("train") < 4
    assert_same(tmp_path, alone)


SUMS = {"probes": ["ridge"], "features": "statistics", "seeds": [0, 1]}


def test_sums_of_shards_give_the_scores_of_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are added in another order than in one pass: float64 rounding, 1e-16 of the products, grows by the
    condition of X'X + strength (here below 1e5) on its way to a prediction. The tables have ten digits."""
    one = run_study(spec(**SUMS), tmp_path / "one")
    monkeypatch.setattr(fill, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(fill, "SHARE", 0)
    found = [run_study(spec(**SUMS), tmp_path / n, fill=on_cluster(Cluster(address="local", shard=16))) for n in "ab"]
    for study in found:
        for table in ("scores", "verdicts", "diagnostics"):
            pd.testing.assert_frame_equal(getattr(study, table), getattr(one, table), rtol=1e-9, atol=1e-12)
        assert not list(study.folder.rglob("*.sums.npz"))
    assert_same(found[0].folder, found[1].folder)  # shards are merged in their order, not in that of arrival
    notes = json.loads(next(found[0].folder.glob("cells/planted/*/details.json")).read_text())["notes"]
    assert notes["train"]["series"] == 60
    assert notes["train"]["forward_seconds"] > 0


def test_merged_sums_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Cluster(address="local", shard=16)
    whole = run_study(spec(**SUMS), tmp_path / "whole", fill=on_cluster(how))
    monkeypatch.setattr(fill, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(fill, "SHARE", 0)
    real, kept, gathered = fill._Large._keep_sums, [], []

    def stops_after_two(self: fill._Large, merged: object, number: int, parts: int) -> None:
        real(self, merged, number, parts)  # type: ignore[arg-type]
        kept.append(number)
        if kept == [1, 2]:
            raise StorageError("stopped")

    monkeypatch.setattr(fill._Large, "_keep_sums", stops_after_two)
    with pytest.raises(StorageError, match="stopped"):
        run_study(spec(**SUMS), tmp_path / "broken", fill=on_cluster(how))
    call = fill._Large._call

    def counted(self: fill._Large, action: object, *given: object) -> Call:
        gathered.append(action)
        return call(self, action, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(fill._Large, "_call", counted)
    study = run_study(spec(**SUMS), tmp_path / "broken", fill=on_cluster(how))
    assert gathered.count(on_worker.gather) == 4 - 2
    assert_same(study.folder, whole.folder)


def test_shards_hold_whole_batches() -> None:
    rng = np.random.default_rng(0)
    panel = as_panel([rng.standard_normal((1, s)) for s in rng.integers(8, 60, 50)])
    parts = shards(StepsEncoder(), panel, Reading(rows=4), 10)
    assert [len(part) for part in parts] == [12, 12, 12, 12, 2]
    order = np.concatenate(parts)
    assert sorted(order) == list(range(50))
    assert (np.diff(panel.lengths[order]) >= 0).all()  # as they are read
    in_windows = shards(StepsEncoder(context=16), panel, Reading(rows=4), 10)
    assert sorted(np.concatenate(in_windows)) == list(range(50))
    assert len(shards(StepsEncoder(), panel, Reading(), 50)) == 1


def test_what_an_encoder_refuses_is_left_out_as_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, tried = Pair.cells, []
    monkeypatch.setattr(Pair, "cells", lambda pair: (tried.append(pair.task.name), cells(pair))[1])
    long = K1.replace("64", "96")
    asked = spec(encoders=["python:clustered:strict"], tasks=[K1, long], controls=[], probes=["ridge"])
    studies = [
        run_study(asked, tmp_path / "one"),
        run_study(asked, tmp_path / "whole", fill=on_cluster(LOCAL)),
        run_study(asked, tmp_path / "parts", fill=on_cluster(Cluster(address="local", shard=20))),
    ]
    for study in studies:
        (left_out,) = study.provenance["left_out"]
        assert left_out["task"] == K1
        assert "needs at least 80" in left_out["reason"]
        assert list(study.scores.task.unique()) == [long]
        assert_same(study.folder, studies[0].folder)
    assert tried == [K1, long, long, long]  # workers have tried the other one, and that is enough


@pytest.mark.parametrize("shard", [100, 48])  # in the middle of a pair, and of a shard
def test_a_worker_that_is_killed_costs_nothing(shard: int, alone: Path, tmp_path: Path) -> None:
    sign("fuse").touch()
    how = Cluster(address="local", shard=shard)
    run_study(spec(encoders=[planted("clustered:fused")]), tmp_path, fill=on_cluster(how))
    assert not sign("fuse").exists()  # it was killed
    assert (tmp_path / "scores.csv").read_bytes() == (alone / "scores.csv").read_bytes()


@pytest.mark.parametrize("shard", [100, 48])
def test_work_that_always_kills_its_worker_is_named_after_all_else_is_done(
    shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "RETRIES", 0)
    asked = spec(encoders=[planted("clustered:fused")])
    sign("bomb").touch()
    try:
        with pytest.raises(
            ClusterError, match=r"1 of the study's parts were lost, the first is planted on .*; what is finished"
        ):
            run_study(asked, tmp_path, fill=on_cluster(Cluster(address="local", shard=shard)))
    finally:
        sign("bomb").unlink()
    kept = times(tmp_path)
    assert {path.parts[-3] for path in kept} == {"baseline_chance-" + next(iter(kept)).parts[-3][-8:]}
    run_study(asked, tmp_path, fill=on_cluster(LOCAL))
    assert kept.items() <= times(tmp_path).items()


def test_a_driver_that_is_killed_goes_on(address: str, tmp_path: Path) -> None:
    asked = settings(encoders=[planted("planted:build"), planted("clustered:gated", "gated")])
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(asked))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tsprobe.cli", "run", str(config), "--out", str(out), "--cluster", address]
    sign("gate").touch()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(times(out)) < 4 + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
        process.kill()
        process.communicate()
        before = times(out)
        assert len(before) == 4 + 2  # those of planted and of chance
    finally:
        sign("gate").unlink()
    study = run_study(make_spec(asked), out, fill=on_cluster(LOCAL))
    assert before.items() <= times(out).items()
    assert set(study.provenance["cluster"]["ran_on"]) <= {f"gated on {K1}", f"baseline/chance on {K1}"}
    assert_same(out, run_study(make_spec(asked), tmp_path / "one").folder)


def test_a_full_disk_is_one_line_and_the_folder_goes_on(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, real = [5], os.fsync  # .owner, spec.yaml, a pair's details, two cells

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"^cannot write .*: No space left on device$"):
            run_study(spec(), tmp_path, fill=on_cluster(LOCAL))
    before = times(tmp_path)
    assert before
    assert not list(tmp_path.rglob(".writing-*"))
    run_study(spec(), tmp_path, fill=on_cluster(LOCAL))
    assert before.items() <= times(tmp_path).items()
    assert_same(tmp_path, alone)


@pytest.fixture(scope="module")
def nothing() -> Work:
    asked = spec()
    return Work("", asked, plan_entries(asked, {})[0], "", "cpu", 1)


def test_results_come_as_they_arrive_or_in_order_and_never_pile_up(nothing: Work) -> None:
    begun = []

    def calls(releases: int) -> Iterator[Call]:
        for number in range(10):
            begun.append(number)
            yield Call(nothing, clustered.first_waits, (number, releases), 0.0, number)

    with session(LOCAL) as cluster:
        for ordered in (False, True):
            sign("go").unlink(missing_ok=True)
            begun.clear()
            found = []
            for call, result in cluster.each(calls(3 if ordered else -1), ordered=ordered):
                found.append(call.about)
                sign("go").touch()
                assert len(begun) - len(found) < sessions.AHEAD * cluster.slots
                assert result.value == call.about
            assert sorted(found) == list(range(10))
            assert (found[0] == 0) == ordered


def test_a_node_that_never_comes_back_ends_the_study(nothing: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    sign("go").unlink(missing_ok=True)
    with session(Cluster(address="local", patience=0)) as cluster:
        monkeypatch.setattr(sessions.Session, "nodes", [])
        with pytest.raises(ClusterError, match=r"no node of this machine with 1 CPUs has been there for 0 s; what is"):
            next(cluster.each([Call(nothing, clustered.first_waits, (0, -1), 0.0)]))


def test_what_no_node_has_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError, match="no node of this machine has 1 CPUs and 1 GPUs; the largest: 2 CPUs and 0 GP"
    ):
        run_study(spec(device="cuda"), tmp_path, fill=on_cluster(LOCAL))
    with pytest.raises(ClusterError, match="no node of this machine has 64 CPUs; the largest: 2 CPUs"):
        run_study(spec(), tmp_path, fill=on_cluster(Cluster(address="local", cpus=64)))


def test_other_weights_on_a_worker_stop_the_study(nothing: Work, tmp_path: Path) -> None:
    task = planted_task()
    pair = Pair(planted_encoder(2), "", task, spec(), tmp_path, None)  # type: ignore[arg-type]
    asked = fill._asked(K1, pair)
    result = on_worker.perform(nothing, on_worker.fill_pairs, (asked,), {})
    assert result.error == ("ClusterError", "planted has other weights here than where the study was started")
    with pytest.raises(ClusterError, match=f"^on {os.uname().nodename}: planted has other weights"):
        fill._value(result)


def test_objects_cannot_be_sent(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a cluster loads encoders and tasks by name"):
        run_study(spec(), tmp_path, encoders={"planted": planted_encoder(2)}, fill=on_cluster(LOCAL))


def said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str]:
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(settings()))
    monkeypatch.setattr(sys, "argv", ["tsprobe", "run", str(config), "--out", str(folder / "out"), *options])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        main()
    assert signal.getsignal(signal.SIGTERM) == before
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--cluster", "127.0.0.1:9"], "no cluster answers at 127.0.0.1:9: Connection refused"),
        (["--cluster", "ray://127.0.0.1:9"], "no cluster answers at ray://127.0.0.1:9: Connection refused"),
        (["--cluster", "lokal"], "'lokal' is no cluster; write local, auto, HOST:PORT or ray://HOST:PORT"),
        (["--cluster", "local", "--shard", "0"], "setting 'shard': Input should be greater than or equal to 1 (got 0)"),
        (["--shard", "9"], "--shard is for studies on a cluster: name one with --cluster"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = said(tmp_path, monkeypatch, capsys, *options)
    assert (code, err) == (2, f"tsprobe: {line}\n")


def test_without_ray_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, err = said(tmp_path, monkeypatch, capsys, "--cluster", "local")
    assert code == 2
    assert err == (
        "tsprobe: a cluster needs the package 'ray', which is not installed: pip install \"tsprobe[cluster]\"\n"
    )
