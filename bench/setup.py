"""What all contenders share: the recipe, the same tokens, a folder to work in, the machine."""

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

from bench.process import watch
from bench.results import Results
from corpus.meta import dataset_meta
from corpus.shards import TokenStream
from corpus.tokenizers import from_meta
from job.arguments import add_device, find_recipe
from job.memory import micro_batch_size
from job.paths import CHECKOUT, VolumePaths
from job.recipe import Recipe, load
from model.device import fitting_micro_batch, pick_device

# Less than this left of the budget, and nothing is started that nobody knows more of. On a GPU a run begins with a minute
# of starting and compiling.
ENOUGH_SECONDS = {"cuda": 60.0, "mps": 20.0, "cpu": 20.0}


@dataclass(frozen=True)
class Setup:
    """``words``: recipe and overrides as the trainer is given them. ``peers``: contender → checkout, if it has one."""

    words: tuple[str, ...]
    recipe: Recipe
    device: str
    work: Path
    volumes: VolumePaths
    peers: dict[str, str]
    results: Results
    cold: bool = True  # nothing compiled was there when the bench began

    def with_overrides(self, *overrides: str) -> Setup:
        """The same with further overrides."""
        words = (*self.words, *overrides)
        return replace(self, words=words, recipe=load(words[0], words[1:]))

    @property
    def environ(self) -> dict[str, str]:
        """Volumes and caches of the bench; tiktoken's files from where they are, if the environment says so."""
        # Behind ours: packages that the machine lacks may have been brought along.
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        environ = {**self.volumes.environment(), "PYTHONPATH": path}
        if "TIKTOKEN_CACHE_DIR" in os.environ:
            del environ["TIKTOKEN_CACHE_DIR"]
        return environ

    @property
    def dataset(self) -> Path:
        """The folder of the tokens."""
        return self.volumes.dataset(self.recipe.data.dataset)

    def micro_batch(self, asked: int | None) -> int:
        """``asked``, or the recipe's, as a divisor of the sequences of a step."""
        most = asked or fitting_micro_batch(self.recipe, pick_device(self.device, 0), 1)
        return micro_batch_size(self.recipe.sequences_per_step, most)

    def stream(self, split: str) -> TokenStream:
        """The tokens of `train` or `val`."""
        return TokenStream(self.dataset, "train" if split == "train" else "val")

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer, unpadded."""
        return from_meta(dataset_meta(self.dataset).tokenizer).vocab_size

    def python(self, name: str, *words: str, cwd: Path = CHECKOUT) -> tuple[str, float]:
        """Run Python to its end: its output and wall seconds."""
        log = self.work / f"{name}.log"
        seconds = watch([sys.executable, *words], cwd, self.environ, log, self.results.left())
        return log.read_text(errors="replace"), seconds

    def has_time(self, what: str, needs: float | None = None) -> bool:
        """Whether the budget allows to start ``what``, which ``needs`` so many seconds; says so if not."""
        if self.results.left() > (needs or ENOUGH_SECONDS[self.device]):
            return True
        self.results.say(f"{what} is left out: the budget is spent")
        return False


def add_arguments(parser: ArgumentParser) -> None:
    """The options of every bench that trains."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE, key=value",
        help="by default gpt2_124m on a GPU, else shakespeare_char_cpu",
    )
    add_device(parser)
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="nanogpt=CHECKOUT, nanochat=CHECKOUT or hf; may be given several times",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="train on this text (.txt or .txt.xz)"
    )
    parser.add_argument(
        "--only", metavar="A,B", help="these contenders only: ours, nanogpt, nanochat, hf"
    )


@contextmanager
def setup(arguments: Namespace, results: Results, *more: str) -> Iterator[Setup]:
    """Read the recipe with overrides ``more`` before the user's, and prepare its tokens in a temporary folder.

    What is compiled is kept in CACHE_PATH where that is set, for the next call.
    """
    device = pick_device(arguments.device, 0).type
    names = [word for word in arguments.words if "=" not in word]
    recipe = find_recipe(
        names[0] if names else "gpt2_124m" if device == "cuda" else "shakespeare_char_cpu"
    )
    overrides = [*more, *(word for word in arguments.words if "=" in word)]
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        work = Path(folder)
        volumes = VolumePaths.under(work)
        if "CACHE_PATH" in os.environ:
            volumes = replace(volumes, cache=VolumePaths.current().cache)
        cold = not volumes.cache.exists() or not any(volumes.cache.iterdir())
        if arguments.text is not None:
            text = work / "text.txt"
            raw = arguments.text.read_bytes()
            text.write_bytes(lzma.decompress(raw) if arguments.text.suffix == ".xz" else raw)
            overrides += ["data.dataset=bench", f"data.source={text}", "data.split=tail"]
        else:
            volumes = replace(volumes, data=VolumePaths.current().data)
        words = (str(recipe), *overrides)
        peers = dict(peer.partition("=")[::2] for peer in arguments.peer)
        made = Setup(words, load(recipe, overrides), device, work, volumes, peers, results, cold)
        results.say(f"preparing {made.recipe.data.dataset}")
        made.python("prepare", "-m", "corpus.prepare", *words)
        yield made
