"""Real servers on loopback for tests: a process that answers before a deadline, and PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 300  # seconds until a server has to answer on a machine that is busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], ready: Callable[[], bool], log: Path, stop: int = signal.SIGTERM, **how) -> Iterator:
    """The process of a server from when it is `ready` on; its output is in `log`. It ends with all that it started."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **how)
    try:
        until = time.monotonic() + PATIENCE
        while not ready():
            said = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}: {said}"
            assert time.monotonic() < until, f"{command[0]} does not answer: {said}"
            time.sleep(0.5)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stop)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """Ours, with the programs beside this interpreter on the path: MLflow calls uvicorn by its name."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | settings


def answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    return ready


@contextlib.contextmanager
def postgres() -> Iterator[Callable[[str], str]]:
    """A PostgreSQL of its own: a function that makes a database and gives its address. Skips where there is none."""
    psycopg2 = pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("needs PostgreSQL's initdb and postgres on the path")
    who = _plain_user()
    folder = Path(tempfile.mkdtemp(prefix="tsprobe-postgres-", dir="/tmp"))  # which that user can enter
    try:
        if who:
            os.chown(folder, who["user"], who["group"])
        create = ["initdb", "-D", f"{folder}/data", "-U", "tsprobe", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]
        subprocess.run(create, check=True, capture_output=True, cwd="/", **who)
        port = free_port()

        def connect():
            return psycopg2.connect(host="127.0.0.1", port=port, user="tsprobe", dbname="postgres", connect_timeout=5)

        def ready() -> bool:
            try:
                connect().close()
            except psycopg2.OperationalError:
                return False
            return True

        def database(name: str) -> str:
            connection = connect()
            connection.autocommit = True  # a database is made outside of transactions
            with contextlib.closing(connection), connection.cursor() as cursor:
                cursor.execute(f'CREATE DATABASE "{name}"')
            return f"postgresql+psycopg2://tsprobe@127.0.0.1:{port}/{name}"

        command = ["postgres", "-D", f"{folder}/data", "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
        log = Path(tempfile.mkstemp(prefix="tsprobe-postgres-", suffix=".log")[1])
        with running(command, ready, log, signal.SIGINT, cwd="/", **who):  # SIGINT: without waiting for clients
            yield database
        log.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain_user() -> dict:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
