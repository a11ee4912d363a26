"""Run any command in any folder as a run, with a record, a heartbeat, a log and an end status.

    python -P -m job.user_command.supervisor --name train --folder ../nanoGPT -- python train.py

The command gets the volumes as variables and ``OUT_DIR``, the run's folder. Its output goes to this
process's streams and to log.txt. A signal that asks this process to stop is forwarded, and the run
is then unfinished, whatever the command's exit status. Needs only the standard library: packages
that the user installs must not break it.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.files import read_tail
from job.paths import VolumePaths
from job.run_record import EndReason, RunStatus
from job.run_session import RunSession
from job.user_command import report
from job.user_command.metric_recorder import MetricRecorder, recorded_patterns
from job.user_command.persisted_paths import PersistedPath, ensure_writable, link_to_volume
from job.user_command.process import CommandProcess, catch_signals, start_error, variables
from job.user_command.resume import (
    CheckpointBackup,
    Writers,
    expand_out_dir,
    find_writers,
    resume_arguments,
    resume_path,
    series_start,
)

ERROR_LINE = re.compile(r"(?m)^(?:\[rank\d+\]:\s*)?([\w.]*(?:Error|Exception): .*)")
MISSING_MODULE = re.compile(r"^ModuleNotFoundError: No module named '(\w+)")
LOG_TAIL_BYTES = 1 << 16
MAX_ERROR_LENGTH = 200


def parser() -> ArgumentParser:
    """Return the parser for the arguments before ``--``."""
    parser = ArgumentParser(
        prog="python -m job.user_command.supervisor",
        usage="%(prog)s [options] -- COMMAND [WORD ...]",
    )
    parser.add_argument("--name", required=True, help="name of the run")
    parser.add_argument("--folder", required=True, type=Path, help="folder to run the command in")
    parser.add_argument(
        "--persist",
        action="append",
        default=[],
        metavar="PATH=PLACE",
        help="store PATH of the folder at PLACE",
    )
    parser.add_argument(
        "--mounted",
        action="append",
        default=[],
        metavar="PATH",
        help="PATH of a volume that is already mounted in the folder",
    )
    parser.add_argument(
        "--seeds", type=Path, metavar="DIR", help="folder with the uploaded persisted paths"
    )
    parser.add_argument(
        "--copy", type=Path, metavar="DIR", help="copy the folder to DIR if it is read-only"
    )
    parser.add_argument(
        "--resume-with",
        default="",
        metavar="ARGS",
        help="arguments to add to the command in later attempts",
    )
    parser.add_argument(
        "--resume-if",
        metavar="PATH",
        help="add the --resume-with arguments only if PATH exists",
    )
    parser.add_argument(
        "--interactive", action="store_true", help="keep no record, and become the command"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the run's record to stdout, the command's output to stderr",
    )
    return parser


def run(arguments: Namespace, command: Sequence[str]) -> int:
    """Run the command to its end and return its exit status. Raises UserError."""
    early = catch_signals()
    volumes = VolumePaths.current()
    volumes.set_defaults()
    out = volumes.run(arguments.name)
    folder = ensure_writable(arguments.folder, arguments.copy)
    if arguments.interactive:
        for word in arguments.persist:
            link_to_volume(folder, word, arguments.seeds)
        os.chdir(folder)
        try:
            os.execvpe(command[0], list(command), variables(os.environ, arguments.name, out))
        except OSError as error:
            raise UserError(start_error(command[0], folder, os.environ, error)) from None
    # Only the first of several machines keeps the run's record, log and metrics.
    is_first = os.environ.get("NODE_RANK", "0") == "0"
    place = out if is_first else Path(tempfile.mkdtemp()) / arguments.name
    session = RunSession(place, None, "command", [])
    try:
        session.record.command = list(command)
        persisted = [link_to_volume(folder, word, arguments.seeds) for word in arguments.persist]
        persisted += [PersistedPath(Path(word)) for word in arguments.mounted]
        checkpoint = _checkpoint_backup(arguments, folder, out)
        since = series_start(session.record, command)
        writers = Writers(())
        if arguments.resume_with:
            writers = find_writers(session.record, volumes.checkpoints, arguments.resume_if)
        if checkpoint is not None and since < math.inf:
            checkpoint.restore(since, writers)
        places = [*(item.place for item in persisted), out]
        added = resume_arguments(
            arguments.resume_with, arguments.resume_if, folder, places, since, out, writers
        )
        if added:
            report(f"resuming with {shlex.join(added)}")
        session.progress(force=True)
        hold = checkpoint.wait_for_write if checkpoint else None
        data = sys.stderr.buffer if arguments.json else sys.stdout.buffer
        outside_data = [p.place for p in persisted if not p.place.is_relative_to(volumes.data)]
        metrics = MetricRecorder(session, place, recorded_patterns(), outside_data)
        words = [expand_out_dir(word, out) for word in (*command, *added)]
        environ = variables(os.environ, arguments.name, out)
        watch = metrics.output.add
        process = CommandProcess(words, folder, environ, place, early, hold, data, watch)
    except BaseException as error:
        session.end(RunStatus.FAILED, str(error) or type(error).__name__)
        raise

    def poll() -> None:
        session.touch()
        if checkpoint is not None:
            checkpoint.poll()
        metrics.poll()

    code = process.wait(poll)
    for item in persisted:
        item.sync_back(session.attempt.started)
    metrics.close()
    status = _end(session, process, code, metrics.result(), folder)
    if arguments.json:
        print((place / "run.json").read_text(encoding="utf-8"), end="", flush=True)
    return status


def _checkpoint_backup(arguments: Namespace, folder: Path, out: Path) -> CheckpointBackup | None:
    """Return the backup of the --resume-if file; None for a glob, which has older ones too."""
    if not arguments.resume_if or any(sign in arguments.resume_if for sign in "*?[{"):
        return None
    return CheckpointBackup(resume_path(arguments.resume_if, folder, out), out)


def _end(
    session: RunSession,
    process: CommandProcess,
    code: int,
    metrics: dict[str, float],
    folder: Path,
) -> int:
    """Record the end. A command that was asked to stop is unfinished even if it exits with 0.

    Many programs save and exit like that; a command that had already finished finishes again
    quickly.
    """
    session.record.result = {"exit_status": code, **metrics}
    if process.forwarded is not None:
        session.end(RunStatus.UNFINISHED, process.forwarded.name)
        return ExitStatus.UNFINISHED
    if code == 0:
        session.end(RunStatus.FINISHED, EndReason.FINISHED)
    elif code == ExitStatus.UNFINISHED:
        session.end(RunStatus.UNFINISHED, f"exit status {code}")
    else:
        error = last_error(session.folder / "log.txt")
        if (match := MISSING_MODULE.search(error)) and (folder / match[1]).is_dir():
            error += f"; {match[1]} is in the folder: run `env PYTHONPATH=. COMMAND`"
        session.end(RunStatus.FAILED, f"exit status {code}" + (f": {error}" if error else ""))
    return code


def last_error(log: Path) -> str:
    """Return the last line of a Python traceback; torchrun prints 30 lines of its own after it."""
    lines = ERROR_LINE.findall(read_tail(log, LOG_TAIL_BYTES))
    errors = [line for line in lines if "ChildFailedError" not in line]
    return errors[-1][:MAX_ERROR_LENGTH] if errors else ""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if "--" not in words or words[-1] == "--":
        parser().error("write the command after --")
    at = words.index("--")
    try:
        return run(parser().parse_args(words[:at]), words[at + 1 :])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, UserError) else ExitStatus.ERROR


if __name__ == "__main__":
    sys.exit(main())
