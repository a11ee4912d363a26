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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

import corpus
from corpus.build import prepare
from corpus.dataset import Meta
from corpus.hub import ensure_weights
from job.arguments import argument_parser, load_recipe, parse, run
from job.exit_status import ExitStatus, RecipeError
from job.paths import VolumePaths
from job.pretrained import FINEWEB
from job.recipe import DataConfig, Recipe

LINE_INTERVAL_S = 5.0  # between lines of progress without a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argument_parser("corpus.prepare", __doc__ or "")
    parser.add_argument(
        "--source",
        metavar="S",
        help="text to use instead of the recipe's: a file, folder, glob or URL",
    )
    parser.add_argument(
        "--shards", type=int, metavar="N", help="training shards to download of a published dataset"
    )
    parser.add_argument(
        "--force", action="store_true", help="prepare again and replace what is there"
    )
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    options = {"source": arguments.source, "shards": arguments.shards}
    arguments.overrides += [
        f"data.{key}={value}" for key, value in options.items() if value is not None
    ]
    if arguments.recipe == FINEWEB:
        if arguments.source or len(arguments.overrides) > (arguments.shards is not None):
            raise RecipeError(
                f"{FINEWEB} takes only --shards; for other settings use a recipe with "
                f"data.source={FINEWEB}"
            )
        recipe, config = (
            None,
            DataConfig(dataset=FINEWEB, source=FINEWEB, shards=arguments.shards or 9),
        )
    else:
        recipe = load_recipe(arguments)
        config = recipe.data
    stop = threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():  # the second time: stop at once; the journal allows it
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    locations = VolumePaths.current()
    folder = locations.dataset(config.dataset)
    with reporter() as report:
        meta = prepare(
            config,
            folder,
            force=arguments.force,
            any_source=not names_source(arguments.overrides),
            thorough=True,
            report=report,
            should_stop=stop.is_set,
        )
        if recipe is not None:
            ensure_weights(recipe, locations, report=report, should_stop=stop.is_set)
    print(
        f"{folder}: {meta.train_tokens:,} training and {meta.val_tokens:,} validation tokens",
        file=sys.stderr,
    )
    if arguments.json:
        print(json.dumps(asdict(meta)))
    return ExitStatus.DONE


def names_source(overrides: Sequence[str]) -> bool:
    """Return if the command line names the text; the recipe's own may be replaced by a copy."""
    return any(
        word.lstrip("-").partition("=")[0] in ("source", "data.source") for word in overrides
    )


def ensure_prepared(
    recipe: Recipe,
    locations: VolumePaths,
    overrides: Sequence[str] = (),
    should_stop: corpus.Stop = corpus.never,
    *,
    resuming: bool = False,
) -> Meta:
    """Prepare the recipe's dataset and the weights it starts from, if they are missing.

    A dataset from another text is accepted if the recipe's is not on this machine and ``overrides``
    do not name it. A run that is ``resuming`` keeps its dataset though the text has changed since.
    Raises DataError if another dataset is there or the text cannot be read.
    """
    with reporter() as report:
        folder = locations.dataset(recipe.data.dataset)
        any_source = not names_source(overrides)
        meta = prepare(
            recipe.data,
            folder,
            any_source=any_source,
            accept_changed_text=resuming,
            report=report,
            should_stop=should_stop,
        )
        ensure_weights(recipe, locations, report=report, should_stop=should_stop)
        return meta


@contextmanager
def reporter() -> Iterator[corpus.Report]:
    """Show progress on stderr: a bar on a terminal, otherwise a line every few seconds."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    last_line = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(event: corpus.Progress | str) -> None:
            nonlocal last_line
            if isinstance(event, str):
                console.print(event, markup=False, soft_wrap=True)
                return
            tokens = f" {event.tokens:,} tokens" if event.tokens else ""
            if console.is_terminal:
                label = event.phase + tokens
                if event.phase not in tasks:
                    tasks[event.phase] = bar.add_task(label)
                bar.update(
                    tasks[event.phase], completed=event.done, total=event.total, description=label
                )
            elif time.monotonic() - last_line > LINE_INTERVAL_S:
                last_line = time.monotonic()
                console.print(
                    f"{event.phase} {event.done / max(1, event.total):.0%}{tokens}", soft_wrap=True
                )

        yield report


if __name__ == "__main__":
    sys.exit(main())
