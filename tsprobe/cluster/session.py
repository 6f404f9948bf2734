"""A connection to a Ray cluster, and the handing out of work: so much at a time, and again where a worker is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsprobe.cluster.options import Cluster
from tsprobe.cluster.work import Result, Work, perform
from tsprobe.errors import ClusterError, MissingPackageError, first_line

RETRIES = 3  # of work whose worker was killed or whose node went away
AHEAD = 2  # pieces of work that wait for each that can run: none idles, and what has come back does not pile up
TICK = 1.0  # seconds between looks at whether there is still a node that could do what waits
_TIMEOUT = 5.0  # seconds for a cluster's address to answer


@dataclass(frozen=True)
class Call:
    """A piece of work: `action(work, *given)` on a worker with so many GPUs. `about` is for the one who asks."""

    work: Work
    action: Callable[..., Any]
    given: tuple[Any, ...]
    gpus: float
    about: Any = None


@dataclass(frozen=True)
class Lost:
    """Work that no worker came back from, and why, in one line."""

    reason: str


class Session:
    """A cluster that is connected."""

    def __init__(self, options: Cluster) -> None:
        import ray

        self.options = options
        # The process of a GPU's task would end with it, to free the memory: then each shard would load its encoder anew
        self._perform = ray.remote(max_calls=0)(perform)

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """Host, CPUs and GPUs of every node that answers."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        return [
            {"host": node["NodeManagerHostname"], "cpus": node["Resources"].get("CPU", 0.0),
             "gpus": node["Resources"].get("GPU", 0.0)}
            for node in alive
        ]  # fmt: skip

    @property
    def slots(self) -> int:
        """Pieces of work without GPUs that can run at the same time."""
        return max(1, sum(int(node["cpus"] / self.options.cpus) for node in self.nodes))

    def gpus_for(self, device: str) -> float:
        """GPUs of a piece of work with an encoder, for the `device` of a spec."""
        if device == "cpu":
            return 0.0
        if self.options.gpus is not None:
            return self.options.gpus
        return 1.0 if device != "auto" or any(node["gpus"] for node in self.nodes) else 0.0

    def check(self, gpus: float) -> None:
        """Raise ClusterError where no node could run such work."""
        if not self._possible(gpus):
            raise ClusterError(f"no node of {self._name} has {self._wanted(gpus)}; the largest: {self._largest()}")

    def put(self, value: Any) -> Any:
        """Send a value to the cluster once, for many pieces of work."""
        import ray

        return ray.put(value)

    def each(self, calls: Iterable[Call], *, ordered: bool = False) -> Iterator[tuple[Call, Result | Lost]]:
        """What comes of calls, as it arrives, or in their order. Calls are asked for when there is room for them.

        Raises ClusterError where work has waited longer than `patience` for a node that could run it.
        """
        import ray

        numbered, ahead = enumerate(calls), AHEAD * self.slots
        running: dict[Any, int] = {}
        here: dict[int, tuple[Call, Any]] = {}  # begun, and not taken yet
        arrived: set[int] = set()
        turn, more = 0, True
        try:
            while True:
                while more and len(here) < ahead:
                    number, call = next(numbered, (-1, None))
                    if call is None:
                        more = False
                    else:
                        reference = self._start(call)
                        running[reference], here[number] = number, (call, reference)
                if not here:
                    return
                if not (turn in arrived if ordered else arrived):
                    for reference in self._wait(list(running), max(here[n][0].gpus for n in running.values())):
                        arrived.add(running.pop(reference))
                    continue
                number = turn if ordered else min(arrived)
                arrived.remove(number)
                call, reference = here.pop(number)
                turn += 1
                yield call, self._fetch(reference)
        finally:
            for reference in running:
                with suppress(ray.exceptions.RayError):
                    ray.cancel(reference)

    def _start(self, call: Call) -> Any:
        options = {"num_cpus": self.options.cpus, "num_gpus": call.gpus, "max_retries": RETRIES}
        remote = self._perform.options(name=f"tsprobe {call.action.__name__}", **options)
        return remote.remote(call.work, call.action, *call.given)

    def _wait(self, references: list[Any], gpus: float) -> list[Any]:
        import ray

        served = time.monotonic()
        while True:
            ready, _ = ray.wait(references, num_returns=1, timeout=TICK)
            if ready:
                return ready
            if self._possible(gpus):
                served = time.monotonic()
            elif time.monotonic() - served > self.options.patience:
                raise ClusterError(
                    f"no node of {self._name} with {self._wanted(gpus)} has been there for {self.options.patience:.0f} "
                    "s; what is finished is kept, the same command goes on from there"
                )

    def _fetch(self, reference: Any) -> Result | Lost:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError:  # no mistake of the user, and none of the cluster: the bug itself
            raise
        except ray.exceptions.RayError as error:
            return Lost(first_line(error))

    def _possible(self, gpus: float) -> bool:
        return any(node["cpus"] >= self.options.cpus and node["gpus"] >= gpus for node in self.nodes)

    def _wanted(self, gpus: float) -> str:
        return f"{self.options.cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")

    def _largest(self) -> str:
        sizes = [(node["gpus"], node["cpus"]) for node in self.nodes]
        gpus, cpus = max(sizes, default=(0.0, 0.0))
        return f"{cpus:g} CPUs and {gpus:g} GPUs"

    @property
    def _name(self) -> str:
        return "this machine" if self.options.address == "local" else f"the cluster {self.options.address}"


@contextmanager
def session(options: Cluster) -> Iterator[Session]:
    """Connect, or take the connection that this process has already; leave the process as it was.

    Raises ClusterError for an address where no cluster of this version answers, MissingPackageError without ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _own_signals():
        try:
            import ray
        except ImportError as error:
            raise MissingPackageError("ray", "a cluster", "cluster") from error
        _knock(options.address)
        ours, folder = not ray.is_initialized(), None
        if ours:
            folder = _connect(options)
    try:
        yield Session(options)
    finally:
        if ours:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _connect(options: Cluster) -> Path | None:
    """Ray's own folder, where the cluster begins here."""
    import ray

    threads = str(options.threads)
    env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "runtime_env": {"env_vars": env}}
    folder = None
    try:
        if options.address == "local":
            folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: its sockets' names have 107 characters at most
            ray.init(address="local", include_dashboard=False, _temp_dir=str(folder), **quiet)
        else:
            ray.init(address=options.address, **quiet)
    except (OSError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise ClusterError(f"cannot use the cluster {options.address!r}: {first_line(error)}") from error
    return folder


def _knock(address: str) -> None:
    """Raise ClusterError where nobody listens: ray itself would try for a minute, and say so at length."""
    if address in ("local", "auto"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ClusterError(f"{address!r} is no cluster; write local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no cluster answers at {address}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it is imported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
