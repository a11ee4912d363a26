"""Measure what reading a long run's metrics costs: bytes, requests to Modal, memory.

    python -m tests.runner.runs.read_cost [--steps 100000]

Writes a run of that many steps to a volume of the stand-in for Modal, reads it, appends ten steps
and reads again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from job.run_record import RunStatus
from runner.runs.history import HistoryReader
from runner.target import LocalVolume, RunInfo, VolumeEntry, VolumeFiles
from runner.targets.modal.volume import ModalVolumeFiles, modal_name, open_volume
from tests.modal_standin import ModalStandin
from tests.runner.fake_run import metrics

STATE = RunInfo("long", "train", "cloud", RunStatus.RUNNING, alive=True)


class CountingFiles:
    """Volume files that count the bytes read from them."""

    def __init__(self, files: VolumeFiles) -> None:
        self.inner = files
        self.bytes = 0

    def size(self, path: str) -> int | None:
        return self.inner.size(path)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        text = self.inner.read(path, start, length)
        self.bytes += len(text)
        return text

    def entries(self, path: str = "") -> Iterator[VolumeEntry]:
        return self.inner.entries(path)


class FakeTarget:
    """The part of a target that a reader uses."""

    def __init__(self, files: VolumeFiles) -> None:
        self.counted = CountingFiles(files)

    def files(self, volume: str) -> CountingFiles:
        return self.counted

    def state(self, run: str) -> RunInfo:
        return STATE

    def output(self, run: str, lines: int) -> list[str]:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as state, ModalStandin(state) as modal, modal.active():
        open_volume("checkpoints", os.environ)
        folder = modal.volume_path(modal_name("checkpoints", os.environ)) / "long"
        write_run(folder, steps)
        for name, files in (
            ("local folder", LocalVolume(folder.parent)),
            ("volume of the stand-in", ModalVolumeFiles("checkpoints")),
        ):
            target = FakeTarget(files)
            reader = HistoryReader("long", target)
            report(f"{name}, first read", target, modal, reader.poll_fully)
            with (folder / "metrics.jsonl").open("a") as file:
                lines = metrics(steps + 10, evaluate_every=1000).splitlines(keepends=True)[-10:]
                file.writelines(lines)
            report(f"{name}, ten steps later", target, modal, reader.poll)
        tracemalloc.start()
        reader = HistoryReader("long", FakeTarget(LocalVolume(folder.parent)))
        reader.poll_fully()
        print(f"memory held: {tracemalloc.get_traced_memory()[0] / 1e6:.1f} MB")


def write_run(folder: Path, steps: int) -> None:
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "step_00000001.txt").write_text("def f")
    (folder / "metrics.jsonl").write_text(metrics(steps, evaluate_every=1000))
    (folder / "log.txt").write_text("step\n" * steps)
    (folder / "run.json").write_text(json.dumps({"name": "long"}))
    (folder / "recipe.yaml").write_text("train: {lr: 0.001}\n")


def report(what: str, target: FakeTarget, modal: ModalStandin, read: Callable[[], object]) -> None:
    """Read once, and print the bytes, requests and seconds."""
    target.counted.bytes = 0
    before, blocks = Counter(names(modal)), len(modal.http_requests())
    started = time.perf_counter()
    read()
    seconds = time.perf_counter() - started
    requests = Counter(names(modal)) - before
    requests["block over HTTP"] = len(modal.http_requests()) - blocks
    print(f"{what}: {target.counted.bytes:,} bytes, {dict(+requests)}, {seconds:.2f} s")


def names(modal: ModalStandin) -> list[str]:
    """Return the names of the volume requests so far."""
    return [request.rpc for request in modal.recorded() if request.rpc.startswith("Volume")]


if __name__ == "__main__":
    main()
