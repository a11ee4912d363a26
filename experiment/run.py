"""Run or resume an experiment: a Python file with train(output_dir=".", ...) -> dict.

    python -m experiment.run my_experiment.py lr=3e-4 --name RUN

The parameters are those of train(). Exit status: 0 finished, 2 a mistake in the command, 100 the
experiment failed, 101 stopped early (the same command resumes it).
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import reprlib
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO, cast

from experiment import logger, preemption
from job.arguments import report, run
from job.compatibility import JOB, experiment_mismatch
from job.exit_status import ExitStatus, UserError
from job.files import DISK_ERRNOS, describe_os_error
from job.format import describe_result
from job.paths import CHECKOUT, VolumePaths
from job.run_record import (
    EndReason,
    RunRecord,
    RunStatus,
    invalid_run_name,
    is_run_name,
    launch_metadata,
    read_record,
)
from job.run_session import RunRefused, RunSession
from job.signature import FUNCTION, ExperimentError, Value, read_signature

PACKAGES = ("model", "inference", "corpus", "job", "runner", "serving")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = ArgumentParser(
        prog="python -m experiment.run",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="the Python file")
    parser.add_argument("words", nargs="*", metavar="key=value", help="parameters of its train()")
    parser.add_argument("--name", metavar="RUN", help="name of the run (default: the file's name)")
    parser.add_argument("--json", action="store_true", help="print the run's record as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run(_main, parser.parse_intermixed_args(argv))


def _main(arguments: Namespace) -> ExitStatus:
    preemption.STOP.may_interrupt = False
    preemption.listen()
    path = arguments.file.absolute()
    signature = read_signature(path)
    values = signature.values(arguments.words)
    parameters = signature.complete(values)
    name = arguments.name or path.stem
    if not is_run_name(name):
        raise ExperimentError(invalid_run_name(name))
    locations = VolumePaths.current()
    locations.set_defaults()
    folder = locations.run(name).absolute()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = read_record(folder)
    if record is not None:
        difference = experiment_mismatch(record, path.name, parameters)
        if difference:
            raise RunRefused(difference)
        if record.status == RunStatus.FINISHED:
            _show_finished(folder, record, digest, arguments.json)
            return ExitStatus.DONE
    session = RunSession(folder, None, JOB, list(arguments.words))
    file = {"path": arguments.file.as_posix(), "sha256": digest}
    session.progress(force=True, arguments=parameters, file=file)
    steps = parameters.get("max_steps", parameters.get("steps"))
    launched = launch_metadata().get("experiment") or {}
    session.start_trackers(launched.get("trackers") or {}, report)
    logger.activate(session, steps if isinstance(steps, int) else 0)
    log = folder / "log.txt"
    with (
        LoggedStream(sys.stderr if arguments.json else sys.stdout, log) as out,
        LoggedStream(sys.stderr, log) as err,
        redirect_stdout(cast(TextIO, out)),
        redirect_stderr(cast(TextIO, err)),
    ):
        status = _train(session, path, values)
    if arguments.json and status == ExitStatus.DONE:
        print((folder / "run.json").read_text(encoding="utf-8"), end="")
    return status


def _train(session: RunSession, path: Path, parameters: Mapping[str, Value]) -> ExitStatus:
    """Call train() of the file and record how the attempt ended."""
    verb = "resumes" if len(session.record.attempts) > 1 else "starts"
    values = " ".join(f"{key}={value}" for key, value in parameters.items())
    report(f"run '{session.folder.name}' {verb}: {path.name} {values}".rstrip())
    try:
        with preemption.interruptible():
            os.chdir(path.parent)
            train = load_train(path)
            returned = train(output_dir=str(session.folder), **parameters)
    except KeyboardInterrupt:
        return _stop(session)
    except SystemExit as end:
        if end.code not in (None, 0):
            return _fail(session, f"the file called sys.exit({end.code!r})")
        returned = None
    except BaseException as error:
        if isinstance(error, UserError) or (
            isinstance(error, OSError) and error.errno in DISK_ERRNOS
        ):
            return _fail(session, describe_os_error(error))
        _print_traceback(error, path)
        return _fail(session, f"{type(error).__name__}: {error}")
    if preemption.STOP.was_reported:
        return _stop(session)
    session.record.result = as_result(returned)
    if not _end(session, RunStatus.FINISHED, EndReason.FINISHED):
        return ExitStatus.JOB_FAILED
    report(f"run '{session.folder.name}' finished: {describe_result(session.record.result)}")
    return ExitStatus.DONE


def load_train(path: Path) -> Callable[..., Any]:
    """Import the file under its own name, its folder first on the path; return its ``train``."""
    _unload_shadowed_packages(path.parent)
    sys.path[:] = [str(path.parent), *(entry for entry in sys.path if entry != str(path.parent))]
    sys.argv = [str(path)]
    name = path.stem if path.stem not in sys.modules else f"experiment_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look the module up by name
    spec.loader.exec_module(module)
    train: Callable[..., Any] = getattr(module, FUNCTION)
    return train


def _unload_shadowed_packages(folder: Path) -> None:
    """Let the user's file import its own model.py or job/ instead of this project's packages."""
    if folder == CHECKOUT:
        return
    shadowed = {
        name for name in PACKAGES if (folder / f"{name}.py").exists() or (folder / name).is_dir()
    }
    if not shadowed:
        return
    # Import the library's parts while the names still refer to this project's packages.
    for part in ("checkpoint", "logger"):
        import_module(f"experiment.{part}")
    for name in [*sys.modules]:
        if name.partition(".")[0] in shadowed:
            del sys.modules[name]


def _stop(session: RunSession) -> ExitStatus:
    stop = preemption.STOP
    reason = stop.signal.name if stop.signal is not None else "interrupted"
    when = "" if stop.is_polled else " before the file called should_stop()"
    report(f"stopped by {reason}{when}; run the same command to resume")
    _end(session, RunStatus.UNFINISHED, reason)
    return ExitStatus.UNFINISHED


def _fail(session: RunSession, reason: str) -> ExitStatus:
    report(f"error: the experiment failed: {reason}")
    _end(session, RunStatus.FAILED, reason)
    return ExitStatus.JOB_FAILED


def _end(session: RunSession, status: RunStatus, reason: str) -> bool:
    """Record the end of the attempt; return False if it cannot be written."""
    try:
        session.end(status, reason)
    except OSError as error:
        label = "warning" if status == RunStatus.FAILED else "error"  # the failure was the error
        report(f"{label}: the end of the run is not recorded: {describe_os_error(error)}")
        return False
    return True


def _print_traceback(error: BaseException, path: Path) -> None:
    """Print the traceback from the user's file on, without the frames of this library above it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace or error.__traceback__)


def _show_finished(folder: Path, record: RunRecord, digest: str, as_json: bool) -> None:
    report(f"run '{folder.name}' is already finished: {describe_result(record.result)}")
    if record.file.get("sha256") not in (None, digest):
        report("the file has changed since then; this is the result of the old version")
    report(f"to run it again, choose a different name: --name {folder.name}-2")
    if as_json:
        print((folder / "run.json").read_text(encoding="utf-8"), end="")


MAX_TEXT_CHARS = 200  # of a value that is kept as text
MAX_DEPTH = 50  # of nested values in a result


def as_result(returned: object) -> dict[str, Any]:
    """Return the result for the record, warning about values that JSON lacks."""
    if returned is None:
        return {}
    if isinstance(returned, Mapping):
        return {str(key): _json_value(value, str(key)) for key, value in returned.items()}
    report(f"warning: train() returned {type(returned).__name__}, not a dict; saved as 'result'")
    return {"result": _json_value(returned, "result")}


def _json_value(value: object, key: str, depth: int = 0) -> Any:
    if hasattr(value, "item") and getattr(value, "size", None) is not None and _is_single(value):
        value = value.item()  # of torch and numpy
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no nan and no inf
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > MAX_DEPTH:  # it may contain itself
        report(
            f"warning: '{key[:MAX_TEXT_CHARS]}' of the result is nested too deeply, saved as text"
        )
        return reprlib.repr(value)
    depth += 1
    if isinstance(value, Mapping):
        return {
            str(name): _json_value(part, f"{key}.{name}", depth) for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_json_value(part, key, depth) for part in value]
    if hasattr(value, "tolist"):
        return _json_value(value.tolist(), key, depth)
    report(f"warning: '{key}' of the result is a {type(value).__name__}, saved as text")
    return repr(value)[:MAX_TEXT_CHARS]


def _is_single(value: Any) -> bool:
    count = value.numel() if hasattr(value, "numel") else value.size
    return bool(count == 1)


class LoggedStream(TextIOBase):
    """A text stream that also appends each line, with its time in UTC, to a log file.

    The log is written as far as possible: a full disk must not end the training.
    """

    def __init__(self, stream: TextIO, log: Path) -> None:
        self.stream = stream
        self._file = log.open("ab", buffering=0)  # buffered text would fail once more on close
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a read-only property in the base too
        return self.stream.encoding

    def write(self, text: str) -> int:
        """Write ``text`` to the stream, and its complete lines to the log."""
        self.stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._append(line)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def close(self) -> None:
        """Log a last line without a newline, and close the log; the stream stays open."""
        if self._line:
            self._append(self._line)
            self._line = ""
        self.flush()
        self._file.close()

    def _append(self, line: str) -> None:
        # A progress bar returns to the start of its line: log its last state only.
        shown = line.rstrip("\r").rpartition("\r")[2]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        # On a full disk the next checkpoint or metric fails and says so. A logging handler of the
        # user's may still write after the log is closed (ValueError).
        with suppress(OSError, ValueError):
            self._file.write(f"{stamp} {shown}\n".encode(errors="backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
