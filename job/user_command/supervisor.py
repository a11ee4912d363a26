"""Run any command in any folder as a run, with a record, a heartbeat, a log and an end status.

    python -P -m job.user_command.supervisor --name train --folder ../nanoGPT -- python train.py

The command gets the volumes as variables and ``OUT_DIR``, the run's folder. Its output goes to this
process's streams and to log.txt. A signal that asks this process to stop is forwarded, and the run
is then unfinished, whatever the command's exit status. Needs only the standard library: packages
that the user installs must not break it.
"""

from __future__ import annotations

import math
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from job.exit_status import ExitStatus, UserError
from job.paths import VolumePaths
from job.run_record import RunStatus
from job.run_session import RunSession
from job.user_command.checkpoint_backup import CheckpointBackup
from job.user_command.persisted_paths import PersistedPath, ensure_writable, link_to_volume
from job.user_command.process import CommandProcess, catch_signals, start
from job.user_command.resume_args import resume_path, series_start, words_to_resume


def parser() -> ArgumentParser:
    """Return the parser for the arguments before ``--``."""
    parser = ArgumentParser(
        prog="python -m job.user_command.supervisor",
        usage="%(prog)s [options] -- COMMAND [WORD ...]",
    )
    parser.add_argument("--name", required=True, help="the run")
    parser.add_argument("--folder", required=True, type=Path, help="where the command runs")
    parser.add_argument(
        "--persist",
        action="append",
        default=[],
        metavar="PATH=PLACE",
        help="store PATH of the folder at PLACE",
    )
    parser.add_argument(
        "--kept",
        action="append",
        default=[],
        metavar="PLACE",
        help="a PLACE that is already mounted",
    )
    parser.add_argument(
        "--seeds", type=Path, metavar="DIR", help="the folder's own files of its persisted paths"
    )
    parser.add_argument(
        "--copy", type=Path, metavar="DIR", help="copy the folder there if it is read-only"
    )
    parser.add_argument(
        "--resume-with", default="", metavar="WORDS", help="added in later attempts"
    )
    parser.add_argument("--resume-if", metavar="PATH", help="... if there is such a file")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the run's record to stdout, the command's output to stderr",
    )
    return parser


def run(given: Namespace, command: Sequence[str]) -> int:
    """Run the command to its end and return its exit status. Raises UserError."""
    early = catch_signals()
    here = VolumePaths.current()
    here.set_defaults()
    out = here.run(given.name)
    folder = ensure_writable(given.folder, given.copy)
    session = RunSession(out, None, "command", [])
    try:
        session.record.command = list(command)
        kept = [link_to_volume(folder, word, given.seeds) for word in given.persist]
        kept += [PersistedPath(Path(word)) for word in given.kept]
        checkpoint = _checkpoint_backup(given, folder, out)
        since = series_start(session.record, command)
        if checkpoint is not None and since < math.inf:
            checkpoint.restore(since)
        places = [*(item.place for item in kept), out]
        added = words_to_resume(given.resume_with, given.resume_if, folder, places, since, out)
        if added:
            print(f"runner: resuming with {shlex.join(added)}", file=sys.stderr, flush=True)
        session.progress(force=True)
        hold = checkpoint.wait_for_write if checkpoint else None
        data = sys.stderr.buffer if given.json else None
        process = start([*command, *added], folder, given.name, out, early, hold, data)
    except BaseException as error:
        session.end(RunStatus.FAILED, str(error) or type(error).__name__)
        raise

    def poll() -> None:
        session.touch()
        if checkpoint is not None:
            checkpoint.poll()

    code = process.wait(poll)
    for item in kept:
        item.sync_back(session.attempt.started)
    status = _end(session, process, code)
    if given.json:
        print((out / "run.json").read_text(encoding="utf-8"), end="", flush=True)
    return status


def _checkpoint_backup(given: Namespace, folder: Path, out: Path) -> CheckpointBackup | None:
    """Return the backup of the --resume-if file.

    None for a glob, which has older checkpoints too.
    """
    if not given.resume_if or any(sign in given.resume_if for sign in "*?["):
        return None
    return CheckpointBackup(resume_path(given.resume_if, folder, out), out)


def _end(session: RunSession, process: CommandProcess, code: int) -> int:
    """Record the end. A command that was asked to stop is unfinished even if it exits with 0.

    Many programs save and exit like that; a command that was done is quickly done again.
    """
    session.record.result = {"exit_status": code}
    if process.asked is not None:
        session.end(RunStatus.UNFINISHED, process.asked.name)
        return ExitStatus.UNFINISHED
    if code == 0:
        session.end(RunStatus.FINISHED, "finished")
    elif code == ExitStatus.UNFINISHED:
        session.end(RunStatus.UNFINISHED, f"exit status {code}")
    else:
        session.end(RunStatus.FAILED, f"exit status {code}")
    return code


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
