"""python -m corpus.prepare [RECIPE] [key=value ...] [--source S]

Prepare the dataset of a recipe: download its text, split it, and write token shards and meta.json
into the data volume. Pretrained weights that the recipe starts from (train.init_from) go into the
cache volume. A dataset that is prepared already is checked, every shard and the text included, and
kept. If interrupted, the same command resumes.

  python -m corpus.prepare shakespeare_char --source input.txt
  python -m corpus.prepare fineweb10B --shards 9
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType

from rich import progress
from rich.console import Console

import corpus
from corpus.build import prepare
from corpus.dataset import Meta
from corpus.hub import ensure_weights
from corpus.verify import Checks
from job.arguments import argument_parser, is_overridden, load_recipe, parse, run
from job.exit_status import ExitStatus, RecipeError
from job.paths import VolumePaths
from job.pretrained import FINEWEB
from job.recipe import DataConfig, Recipe

LINE_INTERVAL_S = 5.0  # between lines of progress without a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argument_parser("corpus.prepare", __doc__ or "")
    source = "text to use instead of the recipe's: a file, folder, glob or URL"
    shards = "training shards to download of a published dataset"
    parser.add_argument("--source", metavar="S", help=source)
    parser.add_argument("--shards", type=int, metavar="N", help=shards)
    force = "prepare again and replace the existing dataset"
    parser.add_argument("--force", action="store_true", help=force)
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    options = {"source": arguments.source, "shards": arguments.shards}
    arguments.overrides += [
        f"data.{k}={value}" for k, value in options.items() if value is not None
    ]
    recipe = None
    if arguments.recipe != FINEWEB:
        recipe = load_recipe(arguments)
        config = recipe.data
    elif arguments.source or len(arguments.overrides) > (arguments.shards is not None):
        advice = f"for other settings use a recipe with data.source={FINEWEB}"
        raise RecipeError(f"{FINEWEB} takes only --shards; {advice}")
    else:
        config = DataConfig(dataset=FINEWEB, source=FINEWEB, shards=arguments.shards or 9)
    stop = threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():  # the second time: stop at once; the journal allows it
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    locations = VolumePaths.current()
    folder = locations.dataset(config.dataset)
    checks = Checks(any_source=not is_overridden("data.source", arguments.overrides), thorough=True)
    with reporter(stop.is_set) as monitor:
        meta = prepare(config, folder, checks, monitor, force=arguments.force)
        if recipe is not None:
            ensure_weights(recipe, meta.tokenizer, locations, monitor)
    counts = f"{meta.train_tokens:,} training and {meta.val_tokens:,} validation tokens"
    print(f"{folder}: {counts}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(asdict(meta)))
    return ExitStatus.DONE


def ensure_prepared(
    recipe: Recipe,
    locations: VolumePaths,
    overrides: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    *,
    resuming: bool = False,
) -> Meta:
    """Prepare the recipe's dataset and the weights it starts from, if they are missing.

    A dataset from a different text is accepted if the recipe's is missing and ``overrides``
    do not name it. A run that is ``resuming`` keeps its dataset though the text has changed since.
    """
    checks = Checks(any_source=not is_overridden("data.source", overrides), changed_text=resuming)
    with reporter(should_stop) as monitor:
        folder = locations.dataset(recipe.data.dataset)
        meta = prepare(recipe.data, folder, checks, monitor)
        ensure_weights(recipe, meta.tokenizer, locations, monitor)
        return meta


@contextmanager
def reporter(should_stop: Callable[[], bool]) -> Iterator[corpus.Monitor]:
    """Show progress on stderr: a bar on a terminal, otherwise a line every few seconds."""
    console = Console(stderr=True, highlight=False)
    kinds = (progress.BarColumn, progress.TaskProgressColumn, progress.TimeRemainingColumn)
    columns = [progress.TextColumn("{task.description}"), *(kind() for kind in kinds)]
    is_terminal, last_line = console.is_terminal, time.monotonic()
    tasks: dict[str, progress.TaskID] = {}

    def report(event: corpus.Progress | str) -> None:
        nonlocal last_line
        if isinstance(event, str):
            console.print(event, markup=False, soft_wrap=True)
            return
        tokens, done = f" {event.tokens:,} tokens" if event.tokens else "", event.done
        if is_terminal:
            label = event.phase + tokens
            if event.phase not in tasks:
                tasks[event.phase] = bar.add_task(label)
            bar.update(tasks[event.phase], completed=done, total=event.total, description=label)
        elif time.monotonic() - last_line > LINE_INTERVAL_S:
            last_line = time.monotonic()
            console.print(f"{event.phase} {done / max(1, event.total):.0%}{tokens}", soft_wrap=True)

    with progress.Progress(
        *columns, console=console, transient=True, disable=not is_terminal
    ) as bar:
        yield corpus.Monitor(report, should_stop)


if __name__ == "__main__":
    sys.exit(main())
