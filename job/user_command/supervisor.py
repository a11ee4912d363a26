"""Any command in any folder as a run: with a record, a heartbeat, a log, and an end that says what it was.

    python -P -m job.user_command.supervisor --name nanoGPT-train --folder ../nanoGPT -- python train.py --max_iters=100

The command knows nothing of all that. It gets the volumes in its variables and ``OUT_DIR``, the run's folder; what
it prints goes on to where this process prints and into log.txt; a signal that asks this process to stop is
passed on, and the run is then unfinished, however the command ends. This needs the standard library alone:
what the user installs beside us must not break it.
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
from job.user_command.resume_args import begun, resume_path, words_to_resume


def parser() -> ArgumentParser:
    """The words before ``--``."""
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
        help="PATH of the folder lies at PLACE",
    )
    parser.add_argument(
        "--kept", action="append", default=[], metavar="PLACE", help="lies there already: mounted"
    )
    parser.add_argument(
        "--seeds", type=Path, metavar="DIR", help="what the folder brings of its kept paths"
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
        help="stdout is the run's record; what it prints is on stderr",
    )
    return parser


def run(given: Namespace, command: Sequence[str]) -> int:
    """Run it to its end; the exit status. Raises UserError for what a person can mend."""
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
        checkpoint = _last_whole(given, folder, out)
        since = begun(session.record, command)
        if checkpoint is not None and since < math.inf:
            checkpoint.restore(since)
        places = [*(item.place for item in kept), out]
        added = words_to_resume(given.resume_with, given.resume_if, folder, places, since, out)
        if added:
            print(f"runner: going on, with {shlex.join(added)}", file=sys.stderr, flush=True)
        session.progress(force=True)
        hold = checkpoint.wait_for_write if checkpoint else None
        data = sys.stderr.buffer if given.json else None
        process = start([*command, *added], folder, given.name, out, early, hold, data)
    except BaseException as error:
        session.end(RunStatus.FAILED, str(error) or type(error).__name__)
        raise

    def look() -> None:
        session.is_alive()
        if checkpoint is not None:
            checkpoint.look()

    code = process.wait(look)
    for item in kept:
        item.hand_on(session.attempt.started)
    status = _end(session, process, code)
    if given.json:
        print((out / "run.json").read_text(), end="", flush=True)
    return status


def _last_whole(given: Namespace, folder: Path, out: Path) -> CheckpointBackup | None:
    """For one file alone: of those that a glob finds, the one before the newest is there as well."""
    if not given.resume_if or any(sign in given.resume_if for sign in "*?["):
        return None
    return CheckpointBackup(resume_path(given.resume_if, folder, out), out)


def _end(session: RunSession, process: CommandProcess, code: int) -> int:
    """Note how it ended. Asked to stop, a command is unfinished also where it ended with 0: many save and
    leave like that, and one that was done anyway is soon done again."""
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
        parser().error("what is to be run stands behind --")
    at = words.index("--")
    try:
        return run(parser().parse_args(words[:at]), words[at + 1 :])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, UserError) else ExitStatus.ERROR


if __name__ == "__main__":
    sys.exit(main())
