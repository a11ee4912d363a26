"""What the commands inside a job have in common: RECIPE, overrides, errors as one line, exit codes."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NoReturn, TextIO, cast

from job.disk import in_words
from job.exit_status import ExitStatus, Interrupted, UserError
from job.paths import CONFIGS
from job.recipe import Recipe, RecipeError, load

DEVICES = ("cuda", "mps", "cpu")


def find_recipe(name: str) -> Path:
    """The recipe at the path ``name``, or of that name in configs/; RecipeError with a did-you-mean."""
    for path in (Path(name), CONFIGS / f"{name}.yaml", CONFIGS / name):
        if path.is_file():
            return path
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "\ntrain:" in path.read_text())
    close = difflib.get_close_matches(Path(name).stem, names, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    raise RecipeError(f"no recipe '{name}'{guess}; there are {', '.join(names)}, or give a path")


def argument_parser(module: str, description: str) -> ArgumentParser:
    """A parser with RECIPE, overrides, --json and --debug; a command adds its own."""
    parser = ArgumentParser(
        prog=f"python -m {module}",
        usage="%(prog)s [RECIPE] [key=value ...] [options]",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE, key=value",
        help="a recipe (default quickstart) and what differs from it",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_device(parser: ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument("--device", choices=DEVICES, help="the best one there by default")


def parse_run(
    command: str,
    description: str,
    argv: Sequence[str] | None,
    into: bool = False,
    choices: bool = False,
) -> Namespace:
    """The arguments of a command that reads a run: --name, --device, overrides; no recipe of its own."""
    parser = argument_parser(f"model.{command}", description)
    parser.add_argument("--name", metavar="RUN", help="the run; the newest by default")
    add_device(parser)
    if into:
        parser.add_argument(
            "--into", metavar="DIR", help="the run's folder huggingface/ by default"
        )
    if choices:
        parser.add_argument(
            "--choices", metavar="FILE", help="questions of multiple choice, a JSON line each"
        )
    return parse(parser, argv)


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> Namespace:
    """Parse; the result has ``recipe`` (a name or path) and ``overrides`` (``lr=1e-3`` or ``--lr=1e-3``)."""
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    words = [*arguments.words, *(word for word in unknown if "=" in word)]
    names = [word for word in words if "=" not in word]
    if strange := [word for word in unknown if "=" not in word] or names[1:]:
        hint = (
            f"; to set a key of the recipe, write {strange[0]}=VALUE"
            if strange[0].startswith("--")
            else ""
        )
        parser.error(f"what is '{strange[0]}'?{hint}")
    arguments.recipe = names[0] if names else "quickstart"
    arguments.overrides = [word for word in words if "=" in word]
    return arguments


def load_recipe(arguments: Namespace) -> Recipe:
    """The recipe that ``parse`` found, with its overrides."""
    return load(find_recipe(arguments.recipe), arguments.overrides)


def run(command: Callable[[Namespace], ExitStatus], arguments: Namespace) -> int:
    """The exit status of ``command``; a user's mistake is one line on stderr, with --debug a traceback too."""
    stdout = BrokenPipeSafeStdout(sys.stdout)
    try:
        with redirect_stdout(cast(TextIO, stdout)):
            return command(arguments)
    except (RecipeError, UserError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {in_words(error)}", file=sys.stderr)
        if isinstance(error, UserError):
            return error.status
        return ExitStatus.USAGE if isinstance(error, RecipeError) else ExitStatus.ERROR
    except Interrupted:
        print("interrupted; type the same to go on", file=sys.stderr)
        return ExitStatus.UNFINISHED
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        traceback.print_exc()  # and then ``leave``: Python's own end would wait for the other processes, which wait for this
        return ExitStatus.ERROR
    finally:
        stdout.flush()


def leave(status: int) -> NoReturn:
    """End the process. One of several does without Python's own clean-up: gloo's threads may just then let go
    of a last tensor, which aborts the process (2 of 45 runs on a busy machine), and torchrun calls that a failure.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def say(text: str) -> None:
    """Talk, on stderr: stdout is for what a command gives."""
    print(text, file=sys.stderr, flush=True)


class BrokenPipeSafeStdout:
    """``stream``, which never raises BrokenPipeError; all else of it is as it was."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._give_up()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """What Python still holds back, and all that follows, goes to the null device."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
