"""python -m bench kills [--times 100] [--seed N] [--out results.json]

A tiny run on the CPU is killed with SIGKILL again and again, at random moments: while its data is prepared, in
its steps, while a checkpoint is written, between a checkpoint's rename and the move of `latest`, at its end. Each
time it is started again, until it ends; then its weights, its optimizer, the losses of all its steps and its
shards must be, bit for bit, those of a run that nobody killed. Then the next run, in turn plain, with
dropout and with Muon, until there were enough kills.

The processes and the signals are real. Starts are cheap because a fork server has imported torch.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.moments import RUN, Moment, random_moment, what_it_left
from bench.results import Results
from job.paths import VolumePaths

PRELOADED = [
    "model.train",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "safetensors.torch",
    "plotext",
    "corpus.prepare",
]
LOOK_SECONDS = 0.0002  # between two looks at the folder, while a moment is waited for
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "dropout": ("dropout=0.1", "variant=gpt2", "dtype=float32"),
    "muon": ("optimizer=muon",),
}
RECIPE = """
model: {variant: modern, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32}
data: {dataset: tiny, source: SOURCE, tokenizer: chars, split: tail, shard_tokens: 20000}
train: {max_steps: 60, global_batch_tokens: 256, micro_batch: 8, lr: 3e-3, warmup_steps: 5, eval_every: 20,
  eval_tokens: 1024, checkpoint_every: 6, log_every: 3, keep_last: 2}
sample: {prompt: "the ", max_new_tokens: 20}
"""


@dataclass
class Outcome:
    """What was seen. ``differences`` must stay empty."""

    kills: int = 0
    runs: int = 0
    attempts: int = 0
    found: Counter[str] = field(default_factory=Counter)  # what a kill left on the disk
    differences: list[str] = field(default_factory=list)


def train(root: str, overrides: tuple[str, ...]) -> None:
    """In the forked process: what `python -m model.train` does."""
    log = os.open(f"{root}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(VolumePaths.under(Path(root)).environment())
    from model.train import main

    os._exit(_flushed(main([f"{root}/../tiny.yaml", *overrides, "--name", RUN])))


def _flushed(code: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class Kills:
    """The runs of one call, below ``folder``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.outcome = Outcome()
        # Forked children take these over; one thread each, as the networks are too small for two.
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
        """Runs until ``times`` kills were done; each is compared with its unbroken twin."""
        twins = {name: self.unbroken(name, overrides) for name, overrides in VARIANTS.items()}
        while self.outcome.kills < times:
            name = list(VARIANTS)[self.outcome.runs % len(VARIANTS)]
            root = self.folder / f"run{self.outcome.runs}"
            twin, seconds = twins[name]
            self.one_run(root, VARIANTS[name], times, seconds)
            self.outcome.runs += 1
            self.outcome.differences += [
                f"{root.name} ({name}): {d}" for d in differences(twin, root)
            ]
        return self.outcome

    def unbroken(self, name: str, overrides: tuple[str, ...]) -> tuple[Path, float]:
        """Train without a kill: where, and how many seconds it took."""
        root = self.folder / f"unbroken_{name}"
        self.finish(
            self.start(root, overrides), root
        )  # the first one waits for the fork server as well
        again = self.folder / f"unbroken_again_{name}"
        started = time.monotonic()
        self.finish(self.start(again, overrides), again)
        seconds = time.monotonic() - started
        self.outcome.differences += [
            f"two unbroken runs ({name}) differ: {d}" for d in differences(root, again)
        ]
        return root, seconds

    def one_run(self, root: Path, overrides: tuple[str, ...], times: int, seconds: float) -> None:
        """Start a run again and again, kill it while there are kills left, and let it come to its end."""
        volumes = VolumePaths.under(root)
        while True:
            strike = (
                random_moment(self.random, volumes, seconds) if self.outcome.kills < times else None
            )
            process = self.start(root, overrides)
            self.outcome.attempts += 1
            if strike is not None and self.comes(strike, volumes, process):
                process.kill()
                process.join()
                if process.exitcode == -9:
                    self.outcome.kills += 1
                    self.outcome.found[what_it_left(volumes)] += 1
                    continue
            self.finish(process, root)
            return

    def comes(self, strike: Moment, volumes: VolumePaths, process: BaseProcess) -> bool:
        """Wait for the moment; False where the process ended before it came."""
        if strike.sign is not None:
            before, times = strike.sign(volumes), 0
            while times < strike.nth:
                now = strike.sign(volumes)
                times += bool(now) and now != before  # it came, or another one did
                before = now
                if process.exitcode is not None:
                    return False
                time.sleep(LOOK_SECONDS)
        process.join(strike.later)
        return process.exitcode is None

    def start(self, root: Path, overrides: tuple[str, ...]) -> BaseProcess:
        """An attempt in a process of its own."""
        root.mkdir(exist_ok=True)
        process = self.context.Process(target=train, args=(str(root), overrides))
        process.start()
        return process

    def finish(self, process: BaseProcess, root: Path) -> None:
        """Wait for its end, which must be a good one."""
        process.join()
        if process.exitcode != 0:
            log = (root / "log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{root.name}: an attempt ended with {process.exitcode}:\n{log}")


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same, bit for bit, in two volumes' finished runs and their data."""
    different = [name for name, (a, b) in _pairs(_files(one), _files(other)) if a != b]
    for step, (a, b) in _pairs(_curve(one), _curve(other)):
        if a != b:
            different.append(f"step {step}: {a} and {b}")
    return different


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    return [(key, (one.get(key), other.get(key))) for key in sorted({*one, *other})]


def _files(root: Path) -> dict[str, bytes]:
    """Shards, weights and optimizer, by name."""
    volumes = VolumePaths.under(root)
    run = volumes.run(RUN)
    newest = run / (run / "latest").read_text().strip()
    files = [
        *volumes.dataset("tiny").glob("*.bin"),
        *newest.glob("*.safetensors"),
        *run.glob("samples/*.txt"),
    ]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def _curve(root: Path) -> dict[str, list[Any]]:
    """Loss, gradient norm and rate of each step and loss of each evaluation; a step that is there twice shows."""
    from job.metrics import read_metrics

    curve: dict[str, list[Any]] = {}
    for line in read_metrics(VolumePaths.under(root).run(RUN) / "metrics.jsonl"):
        if line["kind"] != "checkpoint":
            values = [line.get(key) for key in ("tokens", "loss", "grad_norm", "lr")]
            curve.setdefault(f"{line['kind']} {line['step']:06d}", []).append(values)
    return curve


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--times", type=int, default=100, help="kills")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the moments; a random one by default"
    )


def main(arguments: Namespace, results: Results) -> int:
    """The entry: 0 where every run ended as its unbroken twin."""
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 16)
    results.say(f"seed {seed}")
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    outcome = Kills(folder, seed).kill(arguments.times)
    if outcome.differences:
        results.say(f"what differs is kept in {folder}")
    else:
        shutil.rmtree(folder)
    results.add(
        "kills",
        seed=seed,
        kills=outcome.kills,
        runs=outcome.runs,
        attempts=outcome.attempts,
        found=dict(sorted(outcome.found.items())),
        differences=outcome.differences[:20],
        seconds=round(time.monotonic() - started, 1),
    )
    return 1 if outcome.differences else 0
