"""Make the n-th write, fsync, rename, ... of a command fail: one clear message, no data lost.

    python -m tests.harness.disk_faults --count 200 --seed 1
    python -m tests.modal_standin -- python -m tests.harness.disk_faults --transfers 40

Afterwards, the same command on a working disk ends with the bits of an undisturbed one. The
operations fail in libc (disk_fault.c), and so also in safetensors, pyarrow and TensorBoard.
Needs a C compiler and Linux.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.checkout import build_small
from tests.harness.compare import differences
from tests.harness.forked import CommandResult, run
from tests.harness.main import harness_main

SHIM = Path(__file__).with_name("disk_fault.c")
SHIM_VARIABLE = "DISK_FAULT_SHIM"  # path of the library, which is loaded when the process starts
OPERATIONS = ("write", "fsync", "rename", "create", "mkdir", "truncate")  # as in disk_fault.c
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
# A tracker, a log and the heartbeat may lose a line. A sweep does not start another trial.
WRITE_FAILED = (0, 1, 100, 101)


@dataclass(frozen=True)
class Scenario:
    """A command, and the run and dataset that it must produce."""

    name: str
    command: Sequence[str]
    run: str
    first: Sequence[Sequence[str]] = ()  # commands before it, on a working disk
    variables: Mapping[str, str] = field(default_factory=dict)


TRAIN = ("model.train", "tiny.yaml", "max_steps=20", "keep_last=2", "sample_every=7")
SCENARIOS = (
    Scenario("prepare", ("corpus.prepare", "tiny.yaml", "shard_tokens=4000"), "-"),
    Scenario(
        "replace",
        ("corpus.prepare", "tiny.yaml", "shard_tokens=4000", "--force"),
        "-",
        [("corpus.prepare", "tiny.yaml")],
    ),
    Scenario("train", (*TRAIN, "--name", "a"), "a"),
    Scenario(
        "resume",
        (*TRAIN, "--name", "a"),
        "a",
        [(*TRAIN, "--name", "a", "KILLED")],
    ),
    Scenario("experiment", ("experiment.run", "exp.py", "--name", "e"), "e"),
    Scenario(
        "command",
        ("job.user_command.supervisor", "--name", "c", "--folder", ".", "--", "echo", "hello"),
        "c",
    ),
    Scenario(
        "export",
        ("serving.export", "--name", "a", "--output", "data/hf"),
        "a",
        [(*TRAIN, "variant=gpt2", "--name", "a")],
    ),
    Scenario("sweep", ("runner", "sweep", "sweep.yaml", "--name", "s", "-y"), "s-001"),
)

PUSH = ("runner", "push", "checkpoints", "-y", "--all")
TRANSFERS = (
    Scenario(
        "pull",
        ("runner", "pull", "checkpoints", "a", "-y", "--all"),
        "a",
        [(*TRAIN, "--name", "a"), (*PUSH, "checkpoints/a"), ("REMOVE", "checkpoints/a")],
    ),
    Scenario("push", (*PUSH, "checkpoints/b"), "b", [(*TRAIN, "--name", "b")]),
)


class Shim:
    """The library that fails, and how many operations it has seen."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(os.environ[SHIM_VARIABLE])
        self.counter = mmap.mmap(-1, mmap.PAGESIZE)  # shared with forks

    def arm(self, folder: Path, operation: str, nth: int, number: int, sticky: bool) -> None:
        """Make the ``nth`` operation below ``folder`` fail with the error ``number``."""
        address = ctypes.addressof(ctypes.c_int.from_buffer(self.counter))
        self.library.disk_fault_arm(
            os.fsencode(folder),
            OPERATIONS.index(operation),
            nth,
            number,
            int(sticky),
            ctypes.c_void_p(address),
        )

    def take_counts(self) -> dict[str, int]:
        """Return how often each operation was used since the last call."""
        size = 4 * len(OPERATIONS)
        found = memoryview(self.counter[:size]).cast("i").tolist()
        self.counter[:size] = bytes(size)
        return dict(zip(OPERATIONS, found, strict=True))


def faults(
    folder: Path, count: int, rng: random.Random, scenarios: Sequence[Scenario] = SCENARIOS
) -> Iterator[str]:
    """Yield a description of each disk fault that a command handles wrongly, "" for others."""
    shim = Shim()
    drills = [ScenarioRunner(scenario, folder / scenario.name, shim) for scenario in scenarios]
    for number in range(count):
        yield drills[number % len(drills)].fail_once(rng)


def transfer_faults(folder: Path, count: int, rng: random.Random) -> Iterator[str]:
    """Yield the faults of transfers; they need the stand-in for Modal."""
    return faults(folder, count, rng, TRANSFERS)


class ScenarioRunner:
    """Run one scenario with failing disk operations."""

    def __init__(self, scenario: Scenario, folder: Path, shim: Shim) -> None:
        self.scenario, self.shim = scenario, shim
        self.root, self.before, self.twin = (folder / name for name in ("work", "before", "twin"))
        self.root.mkdir(parents=True)
        build_small(self.root)
        for command in scenario.first:
            self._prepare(command)
        shutil.copytree(self.root, self.before, symlinks=True)
        ended = self._run(OPERATIONS[0], 0, 0, False)
        assert ended.status == 0, ended
        self.counts = shim.take_counts()
        shutil.copytree(self.root, self.twin, symlinks=True)

    def _prepare(self, command: Sequence[str]) -> None:
        from tests.harness.checkout import kill_in_step

        if command[0] == "REMOVE":
            shutil.rmtree(self.root / command[1])
        elif command[-1] == "KILLED":
            kill_in_step(self.root, 15, *command[1:-1])
        else:
            assert run(command, self.root).status == 0

    def _restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.before, self.root, symlinks=True)

    def _run(self, operation: str, nth: int, number: int, sticky: bool) -> CommandResult:
        return run(
            self.scenario.command,
            self.root,
            before=lambda: self.shim.arm(self.root, operation, nth, number, sticky),
        )

    def fail_once(self, rng: random.Random) -> str:
        """Make one operation fail, repeat the command without the fault, and compare."""
        operation = rng.choice([each for each in OPERATIONS if self.counts[each]])
        nth, number = rng.randint(1, self.counts[operation]), rng.choice(ERRORS)
        sticky = rng.random() < 0.5
        what = f"{self.scenario.name}: {operation} {nth} of {self.counts[operation]}, "
        what += f"{errno.errorcode[number]}{' from then on' if sticky else ''}"
        self._restore()
        failed = self._run(operation, nth, number, sticky)
        self.shim.take_counts()
        if fault := failed.fault(WRITE_FAILED) or self._lost():
            return f"{what}: {fault}"
        again = run(self.scenario.command, self.root)
        if again.status != 0 or again.fault():
            return f"{what}: the second start: exit status {again.status}: {again.tail()}"
        found = differences(self.twin, self.root, self.scenario.run, "tiny")
        return f"{what}: {found[:6]}; the failure said {failed.tail()!r}" if found else ""

    def _lost(self) -> str:
        """Name the lost checkpoints; "" if the newest one or a newer one exists."""
        before, now = (
            sorted(path.name for path in root.glob(f"checkpoints/{self.scenario.run}/step_*"))
            for root in (self.before, self.root)
        )
        return f"lost {before}, left {now}" if before and (not now or now[-1] < before[-1]) else ""


def build_shim(folder: Path) -> Path:
    """Compile the library. Raises OSError or CalledProcessError without a C compiler."""
    library = folder / "disk_fault.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def restart_with_shim(module: str) -> None:
    """Run ``module`` again with the library in front of libc, unless it is loaded already."""
    if SHIM_VARIABLE in os.environ:
        return
    library = build_shim(Path(tempfile.mkdtemp(prefix="disk_fault_")))
    variables = {**os.environ, SHIM_VARIABLE: str(library), "LD_PRELOAD": str(library)}
    try:
        status = subprocess.run([sys.executable, "-m", module, *sys.argv[1:]], env=variables)
    finally:
        shutil.rmtree(library.parent)
    sys.exit(status.returncode)


if __name__ == "__main__":
    restart_with_shim("tests.harness.disk_faults")
    sys.exit(harness_main(__doc__, count=faults, transfers=transfer_faults))
