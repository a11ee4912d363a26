"""Push and pull a corpus under injected faults, and verify every file after every process.

    python -m tests.runner.transfer.test_transfer_faults   # 1 GB, 2,000 files, 200 faults

Half of the faults hit the push, half the pull: calls that fail as UNAVAILABLE, succeed with the
answer lost, lose their connection or are refused; blocks answered with a 503 or cut in half;
processes killed with SIGKILL. Runs against the stand-in for Modal, with the real client. Exit
status 0: no file was ever corrupt, every failed transfer named the missing files, and push and pull
both completed. pytest runs a twenty-fifth of it.
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
from dataclasses import dataclass, field
from pathlib import Path

from job.paths import CHECKOUT
from job.step_folders import sha256
from tests.modal_standin import ModalStandin

PREFIX = "bench-"
# Call and fault. PERMISSION_DENIED is not retried: the transfer must name that file as missing.
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
KILL_SHARE = 0.1  # of all faults
SETTLE_S = 11.0  # later, mtime shows if a file changed


def test_forty_faults_corrupt_no_file_and_every_failure_is_reported(tmp_path: Path) -> None:
    result = TransferTest(tmp_path, size=40_000_000, files=200, faults=40, seed=3, wait=False).run()
    assert result.corrupt == []
    assert result.unnamed == []
    assert result.ended_incomplete >= 1
    assert result.unchanged_transfers == 0
    assert sum(result.faults_fired.values()) + sum(result.kills.values()) >= 36
    assert sum(result.kills.values()) >= 3


@dataclass
class Result:
    """Counts of one call. ``corrupt`` and ``unnamed`` must stay empty."""

    processes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    faults_fired: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    ended_incomplete: int = 0
    unnamed: list[str] = field(default_factory=list)  # missing, but not reported
    corrupt: list[str] = field(default_factory=list)
    verifications: int = 0
    unchanged_transfers: int = -1

    @property
    def is_sound(self) -> bool:
        """True if every guarantee held."""
        return not self.corrupt and not self.unnamed and self.unchanged_transfers == 0


class TransferTest:
    """Push a corpus to a volume of the stand-in and pull it back."""

    def __init__(
        self, folder: Path, size: int, files: int, faults: int, seed: int, wait: bool = True
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.wait = wait  # wait SETTLE_S; a test changes the files' times instead
        self.result = Result()
        self.checkout = folder / "checkout"
        (self.checkout / "job").mkdir(parents=True)
        (self.checkout / "job" / "paths.py").touch()
        (self.checkout / "docker-compose.yml").write_text("services: {}\n")
        self.corpus = folder / "corpus"
        self.sums = write_corpus(self.corpus, size, files, self.random)
        self.standin = ModalStandin(folder / "state")

    def run(self) -> Result:
        """Push, pull, and pull again unchanged."""
        with self.standin as modal:
            self.environ = {
                **os.environ,
                **modal.environ,
                "GPT_RUNNER_VOLUMES": PREFIX,
                "PYTHONPATH": str(CHECKOUT),
            }
            self.transfer("push", ["push", "data", str(self.corpus)], PUSH)
            pushed = modal.volume_path(f"{PREFIX}data") / "corpus"
            self.verify(pushed, complete=True)
            if self.wait:
                time.sleep(SETTLE_S)
            for path in () if self.wait else pushed.rglob("*"):
                os.utime(path, (time.time() - SETTLE_S,) * 2)
            self.transfer("pull", ["pull", "data"], PULL)
            self.verify(self.checkout / "volumes/data/corpus", complete=True)
            before = len(modal.http_requests())
            started = time.monotonic()
            again = self.start(["pull", "data"])
            if again.wait() != 0:
                self.result.unnamed.append("the pull of unchanged files failed")
            self.result.seconds["unchanged"] = time.monotonic() - started
            self.result.unchanged_transfers = len(modal.http_requests()) - before
            if modal.errors():
                raise RuntimeError(modal.errors()[0])
        return self.result

    def transfer(self, direction: str, words: list[str], kinds: list[tuple[str, str]]) -> None:
        """Repeat the command until it succeeds, killing some of its processes."""
        result, modal = self.result, self.standin
        share = self.faults // 2
        kills = max(1, round(share * KILL_SHARE)) if share else 0
        calls = self.min_calls()
        modal.clear_faults()
        for number in range(share - kills):
            on, fault = kinds[number % len(kinds)]
            modal.inject(on, fault, times=1, after=self.random.randrange(calls[on]))
        killed = processes = 0
        seconds = 0.0
        while True:
            started = time.monotonic()
            process = self.start(words)
            processes += 1
            is_killed = killed < kills and self.kill_mid_transfer(process, kills)
            killed += is_killed
            out, errors = process.communicate()
            seconds += time.monotonic() - started
            self.verify_direction(direction)
            if process.returncode == 0:
                break
            if not is_killed:
                self.check_missing(direction, process.returncode, out, errors)
            if processes > 20 + 2 * kills:
                raise RuntimeError(
                    f"{direction} is not complete after {processes} processes: {errors[-2000:]}"
                )
        result.processes[direction], result.seconds[direction] = processes, seconds
        result.faults_fired[direction], result.kills[direction] = modal.faults_fired(), killed

    def min_calls(self) -> dict[str, int]:
        """Return the least number of requests per kind, so that each fault hits one."""
        files = len(self.sums)
        size = sum(size for size, _ in self.sums.values())
        batches = max(files // 64, size // (64 << 20)) + 1
        return {
            "VolumePutFiles2": batches,
            "BlockPut": files,
            "VolumeGetFile2": files,
            "BlockGet": files,
        }

    def kill_mid_transfer(self, process: subprocess.Popen[str], kills: int) -> bool:
        """Kill it after a random number of blocks; return False if it ended before that."""
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
        """Start ``runner`` as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *words, "--json"],
            cwd=self.checkout,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def verify_direction(self, direction: str) -> None:
        """Verify the files that the direction writes."""
        if direction == "push":
            self.verify(self.standin.volume_path(f"{PREFIX}data") / "corpus")
        else:
            self.verify(self.checkout / "volumes/data/corpus")

    def verify(self, folder: Path, complete: bool = False) -> None:
        """Hash the files in ``folder``; with ``complete``, none may be missing."""
        self.result.verifications += 1
        for name, expected in self.sums.items():
            path = folder / name
            if not path.exists():
                if complete:
                    self.result.unnamed.append(f"{name} is missing at the end")
            elif (path.stat().st_size, sha256(path)) != expected:
                self.result.corrupt.append(str(path))
        known = {*self.sums}
        for path in folder.rglob("*") if folder.exists() else ():
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in known and not path.name.startswith("."):
                self.result.corrupt.append(f"{path} was never pushed")

    def check_missing(self, direction: str, code: int, out: str, errors: str) -> None:
        """Check that a failed process named every missing file."""
        self.result.ended_incomplete += 1
        if code != 1:
            raise RuntimeError(f"{direction}: exit status {code}: {errors[-3000:]}")
        try:
            named = {item["path"] for item in json.loads(out)["missing"]}
        except ValueError:
            if "error: " not in errors:
                self.result.unnamed.append(f"{direction} failed without an error message")
            return
        target = (
            self.standin.volume_path(f"{PREFIX}data")
            if direction == "push"
            else self.checkout / "volumes/data"
        )
        lost = {f"corpus/{name}" for name in self.sums if not (target / "corpus" / name).exists()}
        self.result.unnamed += sorted(lost - named)


def write_corpus(
    folder: Path, size: int, files: int, rng: random.Random
) -> dict[str, tuple[int, str]]:
    """Write files of many sizes, some empty or zero-padded; return their sizes and SHA-256."""
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


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="corpus size (1000)")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="transfer_faults_") as folder:
        size = options.megabytes * 1_000_000
        result = TransferTest(Path(folder), size, options.files, options.faults, options.seed).run()
    print(json.dumps({**vars(options), **vars(result), "sound": result.is_sound}, indent=2))
    return 0 if result.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
