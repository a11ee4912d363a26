"""Shared state of the measured trainers: the recipe, its tokens, a work folder and the device."""

from __future__ import annotations

import lzma
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bench.results import Results, RunFailed
from corpus.dataset import TokenStream, dataset_meta
from corpus.shards import Split
from corpus.tokenizers import Tokenizer, from_meta
from job.arguments import add_device, find_recipe
from job.memory import micro_batch_size
from job.paths import CHECKOUT, VolumePaths
from job.recipe import Recipe, load
from model.device import fitting_micro_batch, pick_device

POLL_INTERVAL_S = 0.05
# Start nothing of unknown length with less than this left of the budget. On a GPU a run begins
# with a minute of start-up and compilation.
MIN_START_S = {"cuda": 60.0, "mps": 20.0, "cpu": 20.0}


def run_until(
    command: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
    log: Path,
    timeout: float,
    is_done: Callable[[], bool] = lambda: False,
) -> float:
    """Run ``command`` to its end, or kill it once ``is_done()``; return its wall seconds.

    Its output goes to ``log``. Raises RunFailed if it fails or takes longer than ``timeout``.
    """
    started = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # to kill the process and its compilers together
        )
        try:
            while process.poll() is None and not is_done():
                if time.perf_counter() - started > timeout:
                    output = log.read_text(errors="replace")
                    raise RunFailed(f"{log.stem}: still running after {timeout:.0f} s", output)
                time.sleep(POLL_INTERVAL_S)
            seconds = time.perf_counter() - started
        finally:
            status = process.poll()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status not in (None, 0):
        raise RunFailed(f"{log.stem}: exit status {status}", log.read_text(errors="replace"))
    return seconds


@dataclass(frozen=True)
class Task:
    """One training run to measure. ``lr`` None: the trainer's own rate.

    ``val_tokens``: evaluate over so many tokens at the end; -1 for all, None for no evaluation.
    """

    name: str
    steps: int
    micro_batch: int | None = None
    lr: float | None = None
    val_tokens: int | None = None


@dataclass(frozen=True)
class Setup:
    """The shared part of a bench.

    ``recipe_args``: recipe and overrides as passed to the trainer. ``baselines``: name → checkout,
    empty for a baseline that needs none. ``is_cold``: the cache of compiled code was empty.
    """

    recipe_args: tuple[str, ...]
    device: str
    work: Path
    volumes: VolumePaths
    baselines: dict[str, str]
    results: Results
    is_cold: bool = True

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with its overrides."""
        return load(self.recipe_args[0], self.recipe_args[1:])

    def with_overrides(self, *overrides: str) -> Setup:
        """Return a copy with further overrides."""
        return replace(self, recipe_args=(*self.recipe_args, *overrides))

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables of the trainers: volumes, caches and import path."""
        # PYTHONPATH may hold packages that this machine lacks; this checkout comes first.
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        environ = {**self.volumes.environment(), "PYTHONPATH": path}
        if "TIKTOKEN_CACHE_DIR" in os.environ:  # the user's vocabulary files
            del environ["TIKTOKEN_CACHE_DIR"]
        return environ

    def micro_batch(self, requested: int | None) -> int:
        """Return ``requested``, or the recipe's size, lowered to a divisor of the batch."""
        most = requested or fitting_micro_batch(self.recipe, pick_device(self.device, 0), 1)
        return micro_batch_size(self.recipe.sequences_per_step, most)

    @property
    def dataset(self) -> Path:
        """Folder of the prepared tokens."""
        return self.volumes.dataset(self.recipe.data.dataset)

    def stream(self, split: Split) -> TokenStream:
        """Open the tokens of `train` or `val`."""
        return TokenStream(self.dataset, split)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the prepared tokens."""
        return from_meta(dataset_meta(self.dataset).tokenizer)

    def log_file(self, name: str) -> Path:
        """Return the file with the output of the process ``name``."""
        return self.work / f"{name}.log"

    def run_python(
        self,
        name: str,
        *args: str,
        cwd: Path = CHECKOUT,
        is_done: Callable[[], bool] = lambda: False,
        prefix: Sequence[str] = (),
    ) -> tuple[str, float]:
        """Run Python to its end, or until ``is_done()``; return its output and wall seconds."""
        log, command = self.log_file(name), [*prefix, sys.executable, *args]
        seconds = run_until(command, cwd, self.environ, log, self.results.seconds_left(), is_done)
        return log.read_text(errors="replace"), seconds

    def has_time(self, name: str, needed_seconds: float | None = None) -> bool:
        """Return True if the budget allows to start ``name``; otherwise log that it is skipped."""
        if self.results.seconds_left() > (needed_seconds or MIN_START_S[self.device]):
            return True
        self.results.log(f"skipped {name}: the time budget is spent")
        return False


def add_setup_arguments(parser: ArgumentParser) -> None:
    """Add the options of every bench that trains."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE, key=value",
        help="recipe and overrides (default: gpt2_124m on a GPU, otherwise shakespeare_char_cpu)",
    )
    add_device(parser)
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="compare with nanogpt=CHECKOUT, nanochat=CHECKOUT or hf; repeatable",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="train on this .txt or .txt.xz")
    names = "measure only these: ours, nanogpt, nanochat, hf"
    parser.add_argument("--only", metavar="A,B", help=names)


def split_words(args: Sequence[str], default: str) -> tuple[str, list[str]]:
    """Return the path of the recipe that ``args`` name, and the overrides."""
    names = [word for word in args if "=" not in word]
    recipe = find_recipe(names[0] if names else default)
    return str(recipe), [word for word in args if "=" in word]


@contextmanager
def prepare_setup(
    arguments: Namespace, results: Results, *defaults: str, has_one_size: bool = True
) -> Iterator[Setup]:
    """Load the recipe and prepare its tokens in a temporary folder.

    ``defaults`` are overrides that the user's own overrides replace. All steps have one size,
    unless ``has_one_size`` is False: figures per step need it, those of a whole run do not. If
    CACHE_PATH is set, it keeps compiled code for the next call.
    """
    device = pick_device(arguments.device, 0).type
    default_recipe = "gpt2_124m" if device == "cuda" else "shakespeare_char_cpu"
    recipe, overrides = split_words(arguments.words, default_recipe)
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        work = Path(folder)
        volumes = VolumePaths.under(work)
        if "CACHE_PATH" in os.environ:
            volumes = volumes._replace(cache=VolumePaths.current().cache)
        is_cold = not volumes.cache.exists() or not any(volumes.cache.iterdir())
        if arguments.text is not None:
            text = work / "text.txt"
            write_text(arguments.text, text)
            overrides += ["data.dataset=bench", f"data.source={text}", "data.split=tail"]
        else:
            volumes = volumes._replace(data=VolumePaths.current().data)
        sizes = ("batch_schedule=[]",) if has_one_size else ()
        args = (recipe, *sizes, *defaults, *overrides)
        baselines = dict(word.partition("=")[::2] for word in arguments.baseline)
        setup = Setup(args, device, work, volumes, baselines, results, is_cold)
        results.log(f"preparing {setup.recipe.data.dataset}")
        setup.run_python("prepare", "-m", "corpus.prepare", *args)
        yield setup


def write_text(source: Path, path: Path, size: int | None = None) -> None:
    """Write the text of a .txt or .txt.xz, repeated or cut to ``size`` bytes."""
    raw = source.read_bytes()
    text = lzma.decompress(raw) if source.suffix == ".xz" else raw
    size = len(text) if size is None else size
    with path.open("wb") as file:
        for written in range(0, size, len(text)):
            file.write(text[: size - written])
