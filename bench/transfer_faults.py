"""Pushes and pulls a corpus while calls fail, connections are cut and processes are killed, and looks at
every file after every process.

    python -m bench.transfer_faults                                             # 1 GB, 2,000 files, 200 faults
    python -m bench.transfer_faults --megabytes 40 --files 200 --faults 40      # half a minute

Half of the faults strike the push, half the pull: a call that is UNAVAILABLE, is carried out and its answer
lost, whose connection is cut, or that is refused for good; a block of which a 503 or half comes; a process
that is killed with SIGKILL.
Against the stand-in for Modal under tests/, through the real client. Exit 0: no file was ever corrupt, every
transfer that ended badly named what was missing, and both came to an end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.modal_standin import ModalStandin

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "bench-"
# What strikes, and how. PERMISSION_DENIED is not worth asking again: that file has to be named as missing.
PUSH = [
    ("VolumePutFiles2", "UNAVAILABLE"),
    ("VolumePutFiles2", "lost"),
    ("BlockPut", "503"),
    ("BlockPut", "cut"),
    ("VolumePutFiles2", "PERMISSION_DENIED"),
]
PULL = [
    ("VolumeGetFile2", "UNAVAILABLE"),
    ("VolumeGetFile2", "disconnect"),
    ("BlockGet", "503"),
    ("BlockGet", "cut"),
    ("VolumeGetFile2", "PERMISSION_DENIED"),
]
KILLS = 0.1  # of all faults
SETTLED = (
    11.0  # seconds after which a file's time says whether it changed; runner/transfer/journal.py
)


@dataclass
class Result:
    """What was seen. ``processes``: how many it took; ``corrupt`` must stay empty."""

    processes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    faults_fired: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    ended_incomplete: int = 0
    unnamed: list[str] = field(default_factory=list)  # missing, and not said to be
    corrupt: list[str] = field(default_factory=list)
    looks: int = 0
    unchanged_transfers: int = -1

    @property
    def is_sound(self) -> bool:
        """Whether all that was promised held."""
        return not self.corrupt and not self.unnamed and self.unchanged_transfers == 0


class Bench:
    """One corpus on its way there and back."""

    def __init__(
        self, folder: Path, size: int, files: int, faults: int, seed: int, wait: bool = True
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.wait = wait  # for the files' times to say something; a test sets them back instead
        self.result = Result()
        self.checkout = folder / "checkout"
        (self.checkout / "job").mkdir(parents=True)
        (self.checkout / "job" / "paths.py").touch()
        (self.checkout / "docker-compose.yml").write_text("services: {}\n")
        self.corpus = folder / "corpus"
        self.sums = write_corpus(self.corpus, size, files, self.random)
        self.standin = ModalStandin(folder / "state")

    def run(self) -> Result:
        """All of it."""
        with self.standin as modal:
            self.environ = {
                **os.environ,
                **modal.environ,
                "GPT_RUNNER_VOLUMES": PREFIX,
                "PYTHONPATH": str(ROOT),
            }
            self.go("push", ["push", "data", str(self.corpus)], PUSH)
            there = modal.volume_path(f"{PREFIX}data") / "corpus"
            self.look(there, whole=True)
            if self.wait:
                time.sleep(SETTLED)
            for path in () if self.wait else there.rglob("*"):
                os.utime(path, (time.time() - SETTLED,) * 2)
            self.go("pull", ["pull", "data"], PULL)
            here = self.checkout / "volumes/data/corpus"
            self.look(here, whole=True)
            before = len(modal.http_requests())
            started = time.monotonic()
            again = self.start(["pull", "data"])
            if again.wait() != 0:
                self.result.unnamed.append("the pull of what is unchanged failed")
            self.result.seconds["unchanged"] = time.monotonic() - started
            self.result.unchanged_transfers = len(modal.http_requests()) - before
            if modal.errors():
                raise RuntimeError(modal.errors()[0])
        return self.result

    def go(self, direction: str, words: list[str], kinds: list[tuple[str, str]]) -> None:
        """Type the same line until it ends with 0; some of the processes are killed."""
        result, modal = self.result, self.standin
        share = self.faults // 2
        kills = max(1, round(share * KILLS)) if share else 0
        calls = self.result_calls(direction)
        modal.clear_faults()
        for number in range(share - kills):
            on, fault = kinds[number % len(kinds)]
            modal.inject(on, fault, times=1, after=self.random.randrange(calls[on]))
        killed = processes = 0
        seconds = 0.0
        while True:
            began = time.monotonic()
            process = self.start(words)
            processes += 1
            is_killed = killed < kills and self.kill_when_it_works(process, kills)
            killed += is_killed
            out, errors = process.communicate()
            seconds += time.monotonic() - began
            self.look_at(direction)
            if process.returncode == 0:
                break
            if not is_killed:
                self.check_missing(direction, process.returncode, out, errors)
            if processes > 20 + 2 * kills:
                raise RuntimeError(f"{direction} does not come to an end: {errors[-2000:]}")
        result.processes[direction], result.seconds[direction] = processes, seconds
        result.faults_fired[direction], result.kills[direction] = modal.faults_fired(), killed

    def result_calls(self, direction: str) -> dict[str, int]:
        """How many requests of a kind there are at least, so that each fault finds one to strike."""
        files = len(self.sums)
        size = sum(size for size, _ in self.sums.values())
        batches = max(files // 64, size // (64 << 20)) + 1
        return {
            "VolumePutFiles2": batches,
            "BlockPut": files,
            "VolumeGetFile2": files,
            "BlockGet": files,
        }

    def kill_when_it_works(self, process: subprocess.Popen[str], kills: int) -> bool:
        """SIGKILL, after so many blocks at random; False where it ended before."""
        modal = self.standin
        goal = len(modal.http_requests()) + self.random.randrange(
            1, max(2, len(self.sums) // (kills + 1))
        )
        while len(modal.http_requests()) < goal:
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        return True

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """``runner`` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *words, "--json"],
            cwd=self.checkout,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def look_at(self, direction: str) -> None:
        """Every file that has its name is the right one."""
        if direction == "push":
            self.look(self.standin.volume_path(f"{PREFIX}data") / "corpus")
        else:
            self.look(self.checkout / "volumes/data/corpus")

    def look(self, folder: Path, whole: bool = False) -> None:
        """Hash what is in ``folder``; with ``whole`` all must be there."""
        self.result.looks += 1
        for name, expected in self.sums.items():
            path = folder / name
            if not path.exists():
                if whole:
                    self.result.unnamed.append(f"{name} is missing in the end")
            elif (path.stat().st_size, sha256(path)) != expected:
                self.result.corrupt.append(str(path))
        known = {*self.sums}
        for path in folder.rglob("*") if folder.exists() else ():
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in known and not path.name.startswith("."):
                self.result.corrupt.append(f"{path} was never there")

    def check_missing(self, direction: str, code: int, out: str, errors: str) -> None:
        """A process that ended with 1 has to have named every file that is missing."""
        self.result.ended_incomplete += 1
        if code != 1:
            raise RuntimeError(f"{direction} ended {code}: {errors[-3000:]}")
        try:
            named = {item["path"] for item in json.loads(out)["missing"]}
        except ValueError:
            if "error: " not in errors:
                self.result.unnamed.append(f"{direction} ended 1 without a word")
            return
        there = (
            self.standin.volume_path(f"{PREFIX}data")
            if direction == "push"
            else self.checkout / "volumes/data"
        )
        lost = {f"corpus/{name}" for name in self.sums if not (there / "corpus" / name).exists()}
        self.result.unnamed += sorted(lost - named)


def write_corpus(
    folder: Path, size: int, files: int, rng: random.Random
) -> dict[str, tuple[int, str]]:
    """Files of many sizes, some of several blocks, some empty, some that end in zeros: bytes and SHA-256."""
    weights = [rng.paretovariate(1.2) for _ in range(files)]
    weights = [min(weight, sum(weights) * 0.05) for weight in weights]
    total = sum(weights)
    sums = {}
    for number, weight in enumerate(weights):
        length = 0 if number % 97 == 5 else int(size * weight / total)
        content = rng.randbytes(length)
        if number % 50 == 7:
            content = content[: length * 2 // 3].ljust(length, b"\0")
        name = f"part_{number % 17:02d}/{number:05d}.bin"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sums[name] = (length, hashlib.sha256(content).hexdigest())
    return sums


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="of 1,000,000 bytes")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="transfer_faults_") as folder:
        bench = Bench(
            Path(folder), given.megabytes * 1_000_000, given.files, given.faults, given.seed
        )
        result = bench.run()
    print(json.dumps({**vars(given), **vars(result), "sound": result.is_sound}, indent=2))
    return 0 if result.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
