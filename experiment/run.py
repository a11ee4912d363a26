"""Run an experiment, or go on with it: a Python file with train(output_dir=".", ...) -> dict.

    python -m experiment.run my_experiment.py lr=3e-4 --name RUN

Parameters are read from train's signature. Exit status: 0 done, 2 a mistake in the command, 100 an exception
of the file, 101 told to stop (the same command goes on).
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from experiment import current, stopping
from experiment.load import load_train
from experiment.output import Tee
from job.command_line import run, say
from job.exit_status import ExitStatus, UserError
from job.locations import Locations
from job.results import as_result, what_came
from job.runs import RUN_NAME, RunRecord, read_record
from job.same_experiment import JOB, other_experiment
from job.session import RunRefused, Session
from job.signature import ExperimentError, Value, read_signature


def main(argv: Sequence[str] | None = None) -> int:
    """The entry; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m experiment.run",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="the Python file")
    parser.add_argument("words", nargs="*", metavar="key=value", help="parameters of its train()")
    parser.add_argument("--name", metavar="RUN", help="name of the run; the file's by default")
    parser.add_argument("--json", action="store_true", help="print the run's record as JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run(_main, parser.parse_intermixed_args(argv))


def _main(arguments: Namespace) -> ExitStatus:
    stopping.listen()
    path = arguments.file.absolute()
    signature = read_signature(path)
    given = signature.values(arguments.words)
    parameters = signature.complete(given)
    name = arguments.name or path.stem
    if not RUN_NAME.match(name):
        raise ExperimentError(f"'{name}': a run's name is letters, digits, '.', '_' and '-'; give --name")
    locations = Locations.current()
    locations.set_defaults()
    folder = locations.run(name).absolute()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = read_record(folder)
    if record is not None:
        why = other_experiment(record, path.name, parameters)
        if why:
            raise RunRefused(why)
        if record.status == "finished":
            _show_finished(folder, record, digest, arguments.json)
            return ExitStatus.DONE
    session = Session(folder, None, JOB, list(arguments.words))
    steps = parameters.get("max_steps", parameters.get("steps"))
    session.progress(
        force=True,
        arguments=parameters,
        file={"path": arguments.file.as_posix(), "sha256": digest},
    )
    current.begin(session, steps if isinstance(steps, int) else 0)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        talk = Tee(sys.stderr, log)
        data = Tee(sys.stderr if arguments.json else sys.stdout, log)
        with redirect_stdout(data), redirect_stderr(talk):
            try:
                status = _train(session, path, given)
            finally:
                data.finish()
                talk.finish()
    if arguments.json and status == ExitStatus.DONE:
        print((folder / "run.json").read_text(), end="")
    return status


def _train(session: Session, path: Path, given: Mapping[str, Value]) -> ExitStatus:
    """Call the file's train and write down how that ended."""
    name, words = session.folder.name, " ".join(f"{key}={value}" for key, value in given.items())
    say(
        f"run {name} {'goes on' if len(session.record.attempts) > 1 else 'begins'}: {path.name} {words}".rstrip()
    )
    try:
        os.chdir(path.parent)
        train = load_train(path)
        returned = train(output_dir=str(session.folder), **given)
    except KeyboardInterrupt:
        return _stopped(session, "before it asked should_stop()")
    except SystemExit as end:
        if end.code not in (None, 0):
            return _failed(session, f"it called sys.exit({end.code!r})")
        returned = None
    except UserError as error:
        return _failed(session, str(error))
    except BaseException as error:
        _show_traceback(error, path)
        return _failed(session, f"{type(error).__name__}: {error}")
    if stopping.STOP.was_told:
        return _stopped(session, "")
    session.record.result = as_result(returned, say)
    session.end("finished", "finished")
    say(f"run {name} is finished: {what_came(session.record.result)}")
    return ExitStatus.DONE


def _stopped(session: Session, when: str) -> ExitStatus:
    received = stopping.STOP.received
    reason = received.name if received is not None else "interrupted"
    say(f"stopped by {reason}{f' {when}' if when else ''}; the same command goes on")
    session.end("unfinished", reason)
    return ExitStatus.UNFINISHED


def _failed(session: Session, reason: str) -> ExitStatus:
    say(f"failed: {reason}")
    session.end("failed", reason)
    return ExitStatus.JOB_FAILED


def _show_traceback(error: BaseException, path: Path) -> None:
    """From the user's file on: what is above it is ours, and no fault of theirs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace or error.__traceback__)


def _show_finished(folder: Path, record: RunRecord, digest: str, as_json: bool) -> None:
    say(f"run {folder.name} is finished already: {what_came(record.result)}")
    if record.file.get("sha256") not in (None, digest):
        say("the file has changed since; what it does now is another run")
    say(f"run it again under another name: --name {folder.name}-2")
    if as_json:
        print((folder / "run.json").read_text(), end="")


if __name__ == "__main__":
    sys.exit(main())
