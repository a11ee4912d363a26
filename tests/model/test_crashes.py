"""Kill a run with SIGKILL at random points, and verify that it resumes to the same bits.

    python -m tests.model.test_crashes [--times 100] [--seed N]

A tiny run on the CPU is killed while its data is prepared, in a step, while a checkpoint is
written, between a checkpoint's rename and the move of `latest`, and at its end. Each time it is
started again, until it finishes. Then its shards, weights, optimizer state, sample, record, the
losses of all steps and the names of all files must equal those of an uninterrupted run. The next
run follows, in turn plain, with dropout and with Muon, until --times kills are done.

Processes and signals are real. A fork server that has imported torch makes the starts cheap.
pytest does ten of these kills.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from corpus.dataset import STAGING
from job.paths import VolumePaths
from job.run_record import read_record
from tests.harness.compare import differences

RUN = "killed"
PRELOADED = [
    *("model.train", "torch.utils.tensorboard", "safetensors.torch"),
    *("plotext", "corpus.prepare"),
]
POLL_INTERVAL_S = 0.0002  # while it waits for a kill point
MAX_DELAY_S = 0.003  # between the recognized files and the kill
ANYWHERE_SHARE = 0.4  # of the kills; the others wait for certain files
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "dropout": ("dropout=0.1", "variant=gpt2", "dtype=float32"),
    "muon": ("optimizer=muon",),
}
RECIPE = """
model: {variant: modern, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32}
data: {dataset: tiny, source: SOURCE, tokenizer: chars, split: tail, shard_tokens: 20000}
train: {max_steps: 60, global_batch_tokens: 256, micro_batch: 8, lr: 3e-3, warmup_steps: 5,
  eval_every: 20, eval_tokens: 1024, checkpoint_every: 6, log_every: 3, keep_last: 2}
sample: {prompt: "the ", max_new_tokens: 20}
"""


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    outcome = CrashTest(tmp_path, seed=1).kill(10)  # its first points are in the preparation
    assert outcome.kills == 10
    assert outcome.differences == []
    assert len(outcome.states) >= 3  # the kills hit several states

    # One bit of the weights, one step's loss, and a step logged twice: each is a difference.
    one, other = tmp_path / "twin_plain", tmp_path / "twin_again_plain"
    run = VolumePaths.under(other).run(RUN)
    weights = run / "step_00000060" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace('"loss": ', '"loss": 1')
    metrics.write_text("".join([*lines, lines[1]]))
    found = differences(one, other, RUN, "tiny")
    assert len(found) == 3
    assert "model.safetensors" in found[0]
    assert found[1].startswith("step train 000001")
    assert found[2].startswith("step train 000002")


@dataclass
class Outcome:
    """Counts of one call. ``differences`` must stay empty."""

    kills: int = 0
    runs: int = 0
    attempts: int = 0
    states: Counter[str] = field(default_factory=Counter)  # where the kills hit
    differences: list[str] = field(default_factory=list)


def train(root: str, overrides: tuple[str, ...]) -> None:
    """Do what `python -m model.train` does, in the forked process."""
    log = os.open(f"{root}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(VolumePaths.under(Path(root)).environment())
    from model.train import main

    status = main([f"{root}/../tiny.yaml", *overrides, "--name", RUN])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class CrashTest:
    """Runs below ``folder`` that are killed and compared."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.outcome = Outcome()
        # For the forked children, whose networks are too small for two threads.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run"]
        text = folder / "text.txt"
        text.write_text(
            "\n".join(" ".join(words[(i * j + i) % 10] for j in range(7)) for i in range(3000))
        )
        (folder / "tiny.yaml").write_text(RECIPE.replace("SOURCE", str(text)))

    def kill(self, times: int) -> Outcome:
        """Kill ``times`` times; compare each run with an uninterrupted twin."""
        twins = {name: self.train_twin(name, overrides) for name, overrides in VARIANTS.items()}
        while self.outcome.kills < times:
            name = list(VARIANTS)[self.outcome.runs % len(VARIANTS)]
            root = self.folder / f"run{self.outcome.runs}"
            twin, seconds = twins[name]
            self.crash_run(root, VARIANTS[name], times, seconds)
            self.outcome.runs += 1
            self.outcome.differences += [
                f"{root.name} ({name}): {d}" for d in differences(twin, root, RUN, "tiny")
            ]
        return self.outcome

    def train_twin(self, name: str, overrides: tuple[str, ...]) -> tuple[Path, float]:
        """Train without kills; return the folder and the seconds that it took."""
        root = self.folder / f"twin_{name}"
        self.finish(self.start(root, overrides), root)  # the first run also starts the fork server
        again = self.folder / f"twin_again_{name}"
        started = time.monotonic()
        self.finish(self.start(again, overrides), again)
        seconds = time.monotonic() - started
        self.outcome.differences += [
            f"two uninterrupted runs ({name}) differ: {d}"
            for d in differences(root, again, RUN, "tiny")
        ]
        return root, seconds

    def crash_run(self, root: Path, overrides: tuple[str, ...], times: int, seconds: float) -> None:
        """Start and kill a run while kills are left, then let it finish."""
        volumes = VolumePaths.under(root)
        while True:
            point = None
            if self.outcome.kills < times:
                point = random_kill_point(self.random, volumes, seconds)
            process = self.start(root, overrides)
            self.outcome.attempts += 1
            if point is not None and wait_for(point, volumes, process):
                process.kill()
                process.join()
                if process.exitcode == -9:
                    self.outcome.kills += 1
                    self.outcome.states[describe_state(volumes)] += 1
                    continue
            self.finish(process, root)
            return

    def start(self, root: Path, overrides: tuple[str, ...]) -> BaseProcess:
        """Start an attempt as a process."""
        root.mkdir(exist_ok=True)
        process = self.context.Process(target=train, args=(str(root), overrides))
        process.start()
        return process

    def finish(self, process: BaseProcess, root: Path) -> None:
        """Wait for the process. Raises RuntimeError if it fails."""
        process.join()
        if process.exitcode != 0:
            log = (root / "log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{root.name}: exit status {process.exitcode}:\n{log}")


Sign = Callable[[VolumePaths], str]  # the name of the file, or ""


@dataclass(frozen=True)
class KillPoint:
    """Kill ``delay`` seconds after ``sign`` appeared ``nth`` times, or after the start if None."""

    sign: Sign | None
    nth: int
    delay: float


def wait_for(point: KillPoint, volumes: VolumePaths, process: BaseProcess) -> bool:
    """Wait for the point; return False if the process ended before it."""
    if point.sign is not None:
        before, times = point.sign(volumes), 0
        while times < point.nth:
            now = point.sign(volumes)
            times += bool(now) and now != before  # the first one, or the next one
            before = now
            if process.exitcode is not None:
                return False
            time.sleep(POLL_INTERVAL_S)
    process.join(point.delay)
    return process.exitcode is None


def checkpoint_partial(volumes: VolumePaths) -> str:
    """Return the checkpoint that is being written."""
    return ",".join(path.name for path in volumes.run(RUN).glob(".partial_step_*"))


def checkpoint_complete(volumes: VolumePaths) -> str:
    """Return the checkpoint that has a manifest but not yet its final name."""
    paths = volumes.run(RUN).glob(".partial_step_*/manifest.json")
    return ",".join(path.parent.name for path in paths)


def checkpoint_renamed(volumes: VolumePaths) -> str:
    """Return the newest checkpoint if `latest` does not name it yet."""
    run = volumes.run(RUN)
    newest = max((path.name for path in run.glob("step_*")), default="")
    latest = run / "latest"
    is_named = latest.exists() and latest.read_text().strip() == newest
    return "" if is_named else newest


def shard_partial(volumes: VolumePaths) -> str:
    """Return the shard that is being written."""
    return ",".join(path.name for path in (volumes.dataset("tiny") / STAGING).glob(".*.part"))


def shards_complete(volumes: VolumePaths) -> str:
    """Return "yes" if the validation shard exists but the dataset is not complete."""
    folder = volumes.dataset("tiny") / STAGING
    return "yes" if any(folder.glob("*val*.bin")) and not (folder / "meta.json").exists() else ""


def dataset_complete(volumes: VolumePaths) -> str:
    """Return "yes" if the dataset is complete but not yet in its final place."""
    return "yes" if (volumes.dataset("tiny") / STAGING / "meta.json").exists() else ""


def sampling(volumes: VolumePaths) -> str:
    """Return "yes" once the last sample is being written."""
    return "yes" if (volumes.run(RUN) / "samples").exists() else ""


REPEATED = (checkpoint_partial, checkpoint_complete, checkpoint_renamed)
DATA_SIGNS: tuple[Sign, ...] = (shard_partial, shards_complete, dataset_complete)
TRAIN_SIGNS: tuple[Sign, ...] = (*REPEATED, checkpoint_partial, sampling)  # partial lasts longest


def random_kill_point(rng: random.Random, volumes: VolumePaths, run_seconds: float) -> KillPoint:
    """Choose one of the points that the run can still reach."""
    delay = rng.random() * MAX_DELAY_S
    has_data = (volumes.dataset("tiny") / "meta.json").exists()
    if rng.random() < ANYWHERE_SHARE:
        return KillPoint(None, 1, rng.random() * run_seconds)
    sign = rng.choice(TRAIN_SIGNS if has_data else DATA_SIGNS)
    return KillPoint(sign, rng.randint(1, 3) if sign in REPEATED else 1, delay)


def describe_state(volumes: VolumePaths) -> str:
    """Tell from the files where a kill hit the run."""
    run = volumes.run(RUN)
    if dataset_complete(volumes):
        return "data complete, not yet in its final place"
    if not (volumes.dataset("tiny") / "meta.json").exists():
        has_started = volumes.dataset("tiny").exists()
        return "data partly prepared" if has_started else "before the first file"
    if checkpoint_complete(volumes):
        return "checkpoint complete, not yet renamed"
    if checkpoint_partial(volumes):
        return "checkpoint partly written"
    if checkpoint_renamed(volumes):
        return "checkpoint renamed, latest not yet moved"
    record = read_record(run)
    if record is not None and record.status == "finished":
        return "run finished, process not yet ended"
    if sampling(volumes):
        return "last sample written, run not yet finished"
    return "between checkpoints" if (run / "latest").exists() else "before the first checkpoint"


def main() -> int:
    """Return 0 if every run equals its uninterrupted twin."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="number of kills (100)")
    parser.add_argument("--seed", type=int, help="seed of the kill points")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.randrange(1 << 16)
    print(f"seed {seed}", file=sys.stderr)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="crash_test_"))
    crash_test = CrashTest(folder, seed)
    outcome = crash_test.outcome
    with suppress(KeyboardInterrupt):  # print the counts so far
        crash_test.kill(given.times)
    if outcome.differences:
        print(f"kept {folder} for inspection", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    print(json.dumps({"seed": seed, **vars(outcome), "seconds": time.monotonic() - started}))
    return 1 if outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main())
