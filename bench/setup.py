"""Shared state of the measured trainers: the recipe, its tokens, a work folder and the device."""

from __future__ import annotations

import lzma
import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.process import run_until
from bench.results import Results
from corpus.dataset import TokenStream, dataset_meta
from corpus.tokenizers import from_meta
from job.arguments import add_device, find_recipe
from job.memory import micro_batch_size
from job.paths import CHECKOUT, VolumePaths
from job.recipe import Recipe, load
from model.device import fitting_micro_batch, pick_device

# Start nothing of unknown length with less than this left of the budget. On a GPU a run begins
# with a minute of start-up and compilation.
MIN_START_S = {"cuda": 60.0, "mps": 20.0, "cpu": 20.0}


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
    recipe: Recipe
    device: str
    work: Path
    volumes: VolumePaths
    baselines: dict[str, str]
    results: Results
    is_cold: bool = True

    def with_overrides(self, *overrides: str) -> Setup:
        """Return a copy with further overrides."""
        args = (*self.recipe_args, *overrides)
        return replace(self, recipe_args=args, recipe=load(args[0], args[1:]))

    def with_recipe(self, name: str) -> Setup:
        """Return a copy with another recipe, and the same overrides and tokens."""
        args = (str(find_recipe(name)), *self.recipe_args[1:])
        return replace(self, recipe_args=args, recipe=load(args[0], args[1:]))

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables of the trainers: volumes, caches and import path."""
        # PYTHONPATH may hold packages that this machine lacks; this checkout comes first.
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        environ = {**self.volumes.environment(), "PYTHONPATH": path}
        if "TIKTOKEN_CACHE_DIR" in os.environ:  # the user's vocabulary files
            del environ["TIKTOKEN_CACHE_DIR"]
        return environ

    @property
    def dataset(self) -> Path:
        """Folder of the prepared tokens."""
        return self.volumes.dataset(self.recipe.data.dataset)

    def micro_batch(self, requested: int | None) -> int:
        """Return ``requested``, or the recipe's size, lowered to a divisor of the batch."""
        most = requested or fitting_micro_batch(self.recipe, pick_device(self.device, 0), 1)
        return micro_batch_size(self.recipe.sequences_per_step, most)

    def stream(self, split: str) -> TokenStream:
        """Open the tokens of `train` or `val`."""
        return TokenStream(self.dataset, "train" if split == "train" else "val")

    @property
    def vocab_size(self) -> int:
        """Size of the tokenizer's vocabulary, unpadded."""
        return from_meta(dataset_meta(self.dataset).tokenizer).vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """Vocabulary size rounded up to a multiple of 64, as the trainers pad it."""
        return -(-self.vocab_size // 64) * 64

    def run_python(self, name: str, *args: str, cwd: Path = CHECKOUT) -> tuple[str, float]:
        """Run Python to its end; return its output and wall seconds."""
        log = self.work / f"{name}.log"
        command = [sys.executable, *args]
        seconds = run_until(command, cwd, self.environ, log, self.results.seconds_left())
        return log.read_text(errors="replace"), seconds

    def has_time(self, what: str, needed_seconds: float | None = None) -> bool:
        """Return True if the budget allows to start ``what``; otherwise log that it is skipped."""
        if self.results.seconds_left() > (needed_seconds or MIN_START_S[self.device]):
            return True
        self.results.log(f"skipped {what}: the time budget is spent")
        return False


def add_arguments(parser: ArgumentParser) -> None:
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
    parser.add_argument(
        "--only", metavar="A,B", help="measure only these: ours, nanogpt, nanochat, hf"
    )


@contextmanager
def prepare_setup(arguments: Namespace, results: Results, *defaults: str) -> Iterator[Setup]:
    """Load the recipe and prepare its tokens in a temporary folder.

    ``defaults`` are overrides that the user's own overrides replace. If CACHE_PATH is set, it
    keeps compiled code for the next call.
    """
    device = pick_device(arguments.device, 0).type
    default_recipe = "gpt2_124m" if device == "cuda" else "shakespeare_char_cpu"
    names = [word for word in arguments.words if "=" not in word]
    recipe = find_recipe(names[0] if names else default_recipe)
    overrides = [*defaults, *(word for word in arguments.words if "=" in word)]
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        work = Path(folder)
        volumes = VolumePaths.under(work)
        if "CACHE_PATH" in os.environ:
            volumes = replace(volumes, cache=VolumePaths.current().cache)
        is_cold = not volumes.cache.exists() or not any(volumes.cache.iterdir())
        if arguments.text is not None:
            text = work / "text.txt"
            raw = arguments.text.read_bytes()
            text.write_bytes(lzma.decompress(raw) if arguments.text.suffix == ".xz" else raw)
            overrides += ["data.dataset=bench", f"data.source={text}", "data.split=tail"]
        else:
            volumes = replace(volumes, data=VolumePaths.current().data)
        args = (str(recipe), *overrides)
        baselines = dict(word.partition("=")[::2] for word in arguments.baseline)
        setup = Setup(
            args, load(recipe, overrides), device, work, volumes, baselines, results, is_cold
        )
        results.log(f"preparing {setup.recipe.data.dataset}")
        setup.run_python("prepare", "-m", "corpus.prepare", *args)
        yield setup
