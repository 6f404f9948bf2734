"""The driver: `python -m tests.fuzz [TARGET ...] --seconds N --out FOLDER`, from the repository's root (Linux).

Each target runs for N seconds of processor time in a process of its own. atheris chooses what to change further by the
branches that a try reaches in our code; half of the changes are its own and half are those of `mutate.py`. Under the
folder, `TARGET/corpus` holds what it has found worth changing (a later run goes on from there), `TARGET/findings` the
smallest file for each place that broke, and `tries.json` the count of tries, seconds and findings of all runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EVERY = 200  # tries between two notes of the count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all where none is named")
    parser.add_argument("--seconds", type=float, default=60, help="of processor time for each target")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--list", action="store_true", help="name the targets and end")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return _fuzz(asked.targets[0], asked.seconds, asked.out)
    names = asked.targets or _all()
    if asked.list:
        print("\n".join(names))
        return 0
    return int(sum(_run(name, asked.seconds, asked.out) for name in names) > 0)


def _all() -> list[str]:
    """Asked of a process of its own: this one waits for the others, and should take no memory meanwhile."""
    code = "from tests.fuzz.targets import TARGETS; print(*TARGETS)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def _run(name: str, seconds: float, out: Path) -> int:
    """One target in a process of its own; the number of places that broke."""
    home = out / name
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", name, "--inside", "--seconds", str(seconds), "--out", str(out)]
    with (home / "log.txt").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    about = json.loads((home / "last.json").read_text()) if (home / "last.json").exists() else {"places": {}}
    if code:
        about["places"][f"the process ended with {code}; see {home / 'log.txt'}"] = ""
    table = json.loads((out / "tries.json").read_text()) if (out / "tries.json").exists() else {}
    before = table.setdefault(name, {"tries": 0, "seconds": 0.0, "places": {}})
    before["tries"] += about.get("tries", 0)
    before["seconds"] = round(before["seconds"] + about.get("seconds", 0), 1)
    before["places"] |= about["places"]
    (out / "tries.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{name}: {about.get('tries', 0)} tries, {about.get('seconds', 0):.0f} s, {len(about['places'])} findings")
    for place, what in about["places"].items():
        print(f"  {place}: {what}")
    sys.stdout.flush()
    return len(about["places"])


def _fuzz(name: str, seconds: float, out: Path) -> int:
    """Never returns: libFuzzer ends the process."""
    import atheris

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    scratch = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    home = out / name
    (home / "corpus").mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["tsprobe", "vision"]):
        from .harness import attempt
        from .mutate import folder_mutated, mutated
        from .targets import TARGETS

        target = TARGETS[name]
        for content in target.valid(scratch):  # read once here, so that what is imported late is watched too
            (home / "corpus" / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
            if (broken := attempt(target, content, scratch / "x")) is not None:
                print(f"a valid file breaks: {broken}")
    note = _Notes(home, target.ending, seconds)

    def change(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(content, most)
        changed = folder_mutated(content, rng) if target.ending == ".folder" else mutated(target.ending, content, rng)
        return changed[:most]

    def one(content: bytes) -> None:
        note.add(content, attempt(target, content, scratch / "x"))

    options = ["-max_len=65536", "-timeout=120", "-rss_limit_mb=8000", f"-artifact_prefix={home}/"]
    atheris.Setup([sys.argv[0], *options, str(home / "corpus")], one, custom_mutator=change)
    note.begin()
    atheris.Fuzz()
    return 0


class _Notes:
    """Counts tries, keeps the smallest file of each place that broke, and ends the process when its time is over."""

    def __init__(self, home: Path, ending: str, seconds: float) -> None:
        self._home, self._ending, self._seconds = home, ending, seconds
        self._tries, self._begin = 0, 0.0
        self._smallest: dict[str, tuple[int, str]] = {}

    def begin(self) -> None:
        self._begin = time.process_time()
        (self._home / "findings").mkdir(exist_ok=True)
        self._write()

    def add(self, content: bytes, finding: Any) -> None:
        self._tries += 1
        if finding is not None and len(content) < self._smallest.get(finding.place, (1 << 60, ""))[0]:
            self._smallest[finding.place] = len(content), finding.what
            file = hashlib.sha256(finding.place.encode()).hexdigest()[:12] + self._ending
            (self._home / "findings" / file).write_bytes(content)
            print(f"{file}: {finding}", flush=True)
        if self._tries % EVERY == 0 or finding is not None:
            self._write()
        if time.process_time() - self._begin > self._seconds:
            self._write()
            os._exit(0)

    def _write(self) -> None:
        about = {
            "tries": self._tries,
            "seconds": round(time.process_time() - self._begin, 1),
            "places": {place: what for place, (_, what) in self._smallest.items()},
        }
        (self._home / "last.json").write_text(json.dumps(about))


if __name__ == "__main__":
    sys.exit(main())
