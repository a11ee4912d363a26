"""Command-line parsing, error lines, and exit statuses shared by the modules that run in a job."""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NoReturn, TextIO, cast

from job.exit_status import ExitStatus, Interrupted, RecipeError, UserError
from job.files import describe_os_error
from job.format import did_you_mean
from job.paths import CONFIGS
from job.recipe import Recipe, load

DEVICES = ("cuda", "mps", "cpu")


def find_recipe(name: str) -> Path:
    """Return the path of the recipe ``name``: a path, or a name in configs/. Raises RecipeError."""
    for path in (Path(name), CONFIGS / f"{name}.yaml", CONFIGS / name):
        if path.is_file():
            return path
    names = sorted(
        path.stem
        for path in CONFIGS.glob("*.yaml")
        if "\ntrain:" in path.read_text(encoding="utf-8")
    )
    hint = did_you_mean(Path(name).stem, names)
    raise RecipeError(f"unknown recipe '{name}'{hint}; use one of {', '.join(names)}, or a path")


def argument_parser(module: str, description: str) -> ArgumentParser:
    """Return a parser with RECIPE, overrides, --json and --debug; a command adds its own."""
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
        help="a recipe (default: quickstart) and overrides",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_device(parser: ArgumentParser) -> None:
    """Add the option --device."""
    parser.add_argument("--device", choices=DEVICES, help="default: the best available")


def run_parser(command: str, description: str) -> ArgumentParser:
    """Return the parser of a command that reads a run: --name, --device and overrides."""
    parser = argument_parser(f"serving.{command}", description)
    parser.add_argument("--name", metavar="RUN", help="default: the newest run")
    add_device(parser)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> Namespace:
    """Parse ``argv``; the result has ``recipe`` (name or path) and ``overrides`` (``lr=1e-3``)."""
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    words = [*arguments.words, *(word for word in unknown if "=" in word)]
    names = [word for word in words if "=" not in word]
    if strange := [word for word in unknown if "=" not in word] or names[1:]:
        is_option = strange[0].startswith("--")
        hint = f"; to set a key of the recipe, use {strange[0]}=VALUE" if is_option else ""
        parser.error(f"unknown argument '{strange[0]}'{hint}")
    arguments.recipe = names[0] if names else "quickstart"
    arguments.overrides = [word for word in words if "=" in word]
    return arguments


def is_overridden(key: str, overrides: Sequence[str]) -> bool:
    """Return True if ``overrides`` set ``key`` (section.name), in full or by its last part."""
    keys = {word.lstrip("-").partition("=")[0] for word in overrides}
    return not keys.isdisjoint((key, key.rpartition(".")[2]))


def load_recipe(arguments: Namespace) -> Recipe:
    """Load the recipe that ``parse`` found, with its overrides."""
    recipe = load(find_recipe(arguments.recipe), arguments.overrides)
    if recipe.adjusted and os.environ.get("RANK", "0") == "0":
        report(f"note: {recipe.adjusted}")
    return recipe


def run(command: Callable[[Namespace], ExitStatus], arguments: Namespace) -> int:
    """Run ``command`` and return its exit status; an error is a line, with --debug a traceback."""
    _open_missing_descriptors()
    stdout, stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    with redirect_stdout(cast(TextIO, stdout)), redirect_stderr(cast(TextIO, stderr)):
        status = _run(command, arguments)
        stdout.flush()
        if stdout.lost_output and status == ExitStatus.DONE:
            report(f"error: stdout: {stdout.lost_output}; some output is lost")
            status = ExitStatus.ERROR
        stderr.flush()
    return status


def _run(command: Callable[[Namespace], ExitStatus], arguments: Namespace) -> ExitStatus:
    try:
        return command(arguments)
    except (UserError, OSError) as error:
        if arguments.debug:
            raise
        report(f"error: {describe_os_error(error)}")
        return error.status if isinstance(error, UserError) else ExitStatus.ERROR
    except Interrupted:
        report("interrupted; run the same command to resume")
        return ExitStatus.UNFINISHED
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        # Return, so that ``leave`` ends the process: Python's own exit would wait for the other
        # processes, which wait for this one.
        traceback.print_exc()
        return ExitStatus.ERROR


def leave(status: int) -> NoReturn:
    """Exit the process.

    One of several processes skips Python's clean-up: gloo's threads may release a last tensor
    during it, which aborts the process (2 of 45 runs on a busy machine), and torchrun reports a
    failure.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    gc.freeze()  # otherwise the exit searches all of torch's objects for garbage: 0.4 to 0.9 s
    sys.exit(status)


def report(text: str) -> None:
    """Print a message to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


class SafeStream:
    """A standard stream whose writes never fail.

    A closed pipe or terminal, a full disk under a redirected output, or a narrow encoding must not
    end training. ``lost_output`` is the reason if output was lost that somebody may still read.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # Python has no stream for a descriptor that was closed at start, as `>&-` leaves it.
        self._stream = stream or _open_null()
        self.lost_output = ""

    def write(self, text: str) -> int:
        """Write ``text``; escape the characters that the encoding lacks."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            encoded = text.encode(error.encoding, "backslashreplace")
            return self.write(encoded.decode(error.encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._disconnect(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._disconnect(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _disconnect(self, error: OSError | ValueError) -> None:
        """Send buffered and later text to the null device: Python's last flush would fail too."""
        if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO):
            self.lost_output = self.lost_output or (error.strerror or str(error)).lower()
        with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self._stream.fileno())
            return
        self._stream = _open_null()


def _open_null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _open_missing_descriptors() -> None:
    """Point closed standard descriptors to the null device, before a file gets their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
