"""What a look at a long run costs: bytes read, requests to Modal, memory.

    python -m bench.looking [--steps 100000]

A run of so many steps lies on a volume of the stand-in for Modal, then it logs ten steps more.
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

from runner.runs.history import Reader
from runner.target import LocalVolume, RunInfo, VolumeEntry, VolumeFiles
from runner.targets.modal.volume import modal_name, open_files, open_volume
from tests.modal_standin import ModalStandin
from tests.runner.fake_run import metrics

STATE = RunInfo("long", "train", "cloud", "running", alive=True)


class Counted:
    """Files, and the bytes that were read of them."""

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


class Place:
    """As much of a target as a reader asks for."""

    def __init__(self, files: VolumeFiles) -> None:
        self.counted = Counted(files)

    def files(self, volume: str) -> Counted:
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
        write(folder, steps)
        for name, files in (
            ("a folder of this machine", LocalVolume(folder.parent)),
            ("a volume on the stand-in", open_files("checkpoints", os.environ)),
        ):
            place = Place(files)
            reader = Reader("long", place)
            looked(f"{name}, first look", place, modal, reader.look_at_all)
            with (folder / "metrics.jsonl").open("a") as file:
                lines = metrics(steps + 10, evaluate_every=1000).splitlines(keepends=True)[-10:]
                file.writelines(lines)
            looked(f"{name}, ten steps later", place, modal, reader.look)
        tracemalloc.start()
        reader = Reader("long", Place(LocalVolume(folder.parent)))
        reader.look_at_all()
        print(f"memory held: {tracemalloc.get_traced_memory()[0] / 1e6:.1f} MB")


def write(folder: Path, steps: int) -> None:
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "step_00000001.txt").write_text("def f")
    (folder / "metrics.jsonl").write_text(metrics(steps, evaluate_every=1000))
    (folder / "log.txt").write_text("step\n" * steps)
    (folder / "run.json").write_text(json.dumps({"name": "long"}))
    (folder / "recipe.yaml").write_text("train: {lr: 0.001}\n")


def looked(what: str, place: Place, modal: ModalStandin, look: Callable[[], object]) -> None:
    """Look, and print what that took."""
    place.counted.bytes = 0
    before, blocks = Counter(names(modal)), len(modal.http_requests())
    began = time.perf_counter()
    look()
    seconds = time.perf_counter() - began
    asked = Counter(names(modal)) - before
    asked["block over HTTP"] = len(modal.http_requests()) - blocks
    print(f"{what}: {place.counted.bytes:,} bytes, {dict(+asked)}, {seconds:.2f} s")


def names(modal: ModalStandin) -> list[str]:
    """The requests so far, by name."""
    return [request.rpc for request in modal.recorded() if request.rpc.startswith("Volume")]


if __name__ == "__main__":
    main()
