"""python -m corpus.prepare [RECIPE] [key=value ...] [--source S]

Makes the dataset of a recipe: downloads its text, splits it, and writes shards of tokens and meta.json into the
data volume; published weights that the recipe begins with (train.init_from) go into the cache volume. What is there
already is left alone. Interrupted, it goes on when the same is typed again.

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
from corpus.hub import ensure_weights
from corpus.meta import Meta
from job.arguments import argument_parser, load_recipe, parse, run
from job.exit_status import ExitStatus
from job.paths import VolumePaths
from job.pretrained import FINEWEB
from job.recipe import DataConfig, Recipe, RecipeError

LINE_SECONDS = 5.0  # between lines of progress off a terminal


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser("corpus.prepare", __doc__ or "")
    parser.add_argument(
        "--source", metavar="S", help="text: a file, folder, glob or URL, instead of the recipe's"
    )
    parser.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="training shards to download, of a published dataset",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace what was prepared with other settings"
    )
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    typed = {"source": arguments.source, "shards": arguments.shards}
    arguments.overrides += [
        f"data.{key}={value}" for key, value in typed.items() if value is not None
    ]
    if arguments.recipe == FINEWEB:
        if arguments.source or len(arguments.overrides) > (arguments.shards is not None):
            raise RecipeError(
                f"{FINEWEB} takes --shards alone; a recipe with data.source={FINEWEB} takes the rest"
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
        if stop.is_set():  # the second time: at once; the journal bears it
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    locations = VolumePaths.current()
    folder = locations.dataset(config.dataset)
    options = {"force": arguments.force, "any_source": not names_source(arguments.overrides)}
    with reporter() as report:
        meta = prepare(config, folder, report=report, should_stop=stop.is_set, **options)
        if recipe is not None:
            ensure_weights(recipe, locations, report=report, should_stop=stop.is_set)
    said = f"{folder}: {meta.train_tokens:,} training and {meta.val_tokens:,} validation tokens"
    print(said, file=sys.stderr)
    if arguments.json:
        print(json.dumps(asdict(meta)))
    return ExitStatus.DONE


def names_source(overrides: Sequence[str]) -> bool:
    """Whether a text was asked for, and not just that of the recipe, of which a copy from elsewhere will do."""
    return any(
        word.lstrip("-").partition("=")[0] in ("source", "data.source") for word in overrides
    )


def ensure_prepared(
    recipe: Recipe,
    locations: VolumePaths,
    overrides: Sequence[str] = (),
    should_stop: corpus.Stop = corpus.never,
) -> Meta:
    """The recipe's dataset, prepared first where it is missing, and published weights that it begins with. Made from
    another text than the recipe's the dataset will do, but not where ``overrides`` name the text.

    DataError where another dataset is there or the text can't be had; Interrupted where ``should_stop``.
    """
    with reporter() as report:
        folder = locations.dataset(recipe.data.dataset)
        any_source = not names_source(overrides)
        meta = prepare(
            recipe.data, folder, any_source=any_source, report=report, should_stop=should_stop
        )
        ensure_weights(recipe, locations, report=report, should_stop=should_stop)
        return meta


@contextmanager
def reporter() -> Iterator[corpus.Report]:
    """Progress on stderr: a bar on a terminal; elsewhere a line every few seconds."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    told = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(event: corpus.Progress | str) -> None:
            nonlocal told
            if isinstance(event, str):
                console.print(event, markup=False, soft_wrap=True)
                return
            tokens = f" {event.tokens:,} tokens" if event.tokens else ""
            if console.is_terminal:
                what = event.phase + tokens
                if event.phase not in tasks:
                    tasks[event.phase] = bar.add_task(what)
                bar.update(
                    tasks[event.phase], completed=event.done, total=event.total, description=what
                )
            elif time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                console.print(
                    f"{event.phase} {event.done / max(1, event.total):.0%}{tokens}", soft_wrap=True
                )

        yield report


if __name__ == "__main__":
    sys.exit(main())
