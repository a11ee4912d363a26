"""Empty and invalid option values, renamed options, and GPU names of other providers."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import Result

from job.run_record import RunStatus
from runner.cli import main
from runner.errors import RunnerError
from runner.planning.gpus import parse_gpus
from runner.target import RunInfo
from tests.runner.fake_target import FakeTarget


@pytest.mark.parametrize(
    "line",
    [
        "cloud --gpu ''",
        "cloud --gpu= quickstart",
        "cloud --max-cost ''",
        "cloud --env ''",
        "host --name ' '",
        "estimate --gpu ''",
        "shell --gpu ''",
        "resume warm --timeout ''",
        "push data x --dest ''",
    ],
)
def test_empty_value_is_refused(line: str, type_: Callable[[str], Result]) -> None:
    refused = type_(f"runner {line}")
    option = next(word for word in line.split() if word.startswith("--")).rstrip("=")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {option} is empty; ")


def test_no_message_shows_the_notification_url(type_: Callable[[str], Result]) -> None:
    expected = "error: --notify: expected an http:// or https:// URL in ASCII\n"
    for url in ("ftp://s3cret", "https://s3cretü"):
        refused = type_(f"runner host --notify {url}")
        assert (refused.exit_code, refused.stderr) == (2, expected)
    # Without a terminal, the message about confirming repeats the command line.
    result = type_("runner cloud --notify https://host/s3cret --max-cost nothing")
    assert result.exit_code == 2
    assert "s3cret" not in result.output + result.stderr
    planned = type_("runner host --notify https://host/s3cret --dry-run")
    assert "s3cret" not in planned.output + planned.stderr


def test_an_unknown_tracker_is_refused(type_: Callable[[str], Result]) -> None:
    for value in ("tensorboard", "wandb="):
        refused = type_(f"runner host --tracker {value}")
        assert refused.exit_code == 2
        assert f"--tracker {value}: expected wandb, mlflow, trackio" in refused.stderr


@pytest.mark.parametrize(
    "line", ["shell --gpu H100 --idle 0", "shell --idle -5", "shell --idle 0.01"]
)
def test_shell_without_a_time_limit_is_refused(line: str, type_: Callable[[str], Result]) -> None:
    refused = type_(f"runner {line}")
    expected = f"error: --idle {line.split()[-1]}: expected a number of at least 0.02\n"
    assert (refused.exit_code, refused.stderr) == (2, expected)


def test_help_shows_no_range(type_: Callable[[str], Result]) -> None:
    for line in ("shell", "serve", "cloud", "pull", "sweep"):
        text = type_(f"runner {line} --help").stdout
        assert "x>" not in text
        assert "<=x" not in text


def test_negative_interval_is_refused(type_: Callable[[str], Result]) -> None:
    refused = type_("runner pull checkpoints warm --watch --interval -1")
    assert (refused.exit_code, "--interval" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("H100x8", "H100:8"),
        ("8xH100", "H100:8"),
        ("h100-2", "H100:2"),
        ("A100-80GBx4", "A100-80GB:4"),
        ("A10x8", "A10"),  # a machine has at most 4
        ("H1000", "H100"),
    ],
)
def test_gpu_names_of_other_providers_get_a_suggestion(text: str, suggestion: str) -> None:
    with pytest.raises(RunnerError) as refused:
        parse_gpus(text)
    assert refused.value.message.endswith(f"; did you mean '{suggestion}'?")


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("resume warm --on host", "--target"),
        ("shell --on cloud", "--target"),
        ("report warm --into x.html", "--output"),
        ("host export --into x", "--output"),
        ("pull data --into x", "--dest"),
        ("push data x --to y", "--dest"),
        ("stop warm --now", "--force"),
        ("host --keep out=data -- ls", "--persist"),
        ("host evaluate --choices x", "--multiple-choice"),
        ("watch --every 1", "--interval"),
    ],
)
def test_old_option_names_the_new_one(line: str, new: str, type_: Callable[[str], Result]) -> None:
    refused = type_(f"runner {line}")
    assert (refused.exit_code, refused.stderr.endswith(f" is now {new}\n")) == (2, True)


def test_old_command_names_the_new_one(type_: Callable[[str], Result]) -> None:
    assert "`runner plan` is now `runner estimate`" in type_("runner plan quickstart").stderr


@pytest.mark.parametrize(
    "command", ["status", "logs", "watch", "report", "stop", "resume --dry-run"]
)
def test_newest_run_is_the_default(
    command: str, type_: Callable[[str], Result], make_run: Callable[..., Path], fake: FakeTarget
) -> None:
    make_run("old", step=5)
    make_run("warm", step=50)
    fake.states = [
        RunInfo("old", "train", "host", RunStatus.UNFINISHED, started=1.0),
        RunInfo("warm", "train", "host", RunStatus.UNFINISHED, started=2.0),
    ]
    assert "run 'warm' (the newest)" in type_(f"runner {command}").stderr


@pytest.mark.parametrize(
    "command", ["status", "logs", "watch", "report", "stop", "resume", "rm -y"]
)
def test_an_empty_name_is_never_the_newest_run(
    command: str, type_: Callable[[str], Result], make_run: Callable[..., Path], fake: FakeTarget
) -> None:
    make_run("warm", step=50)
    fake.states = [RunInfo("warm", "train", "host", RunStatus.RUNNING, alive=True)]
    refused = type_(f"runner {command} ''")
    assert (refused.exit_code, refused.stdout, fake.did) == (2, "", [])
    assert "the run's name is empty; give a name" in refused.stderr


@pytest.mark.parametrize("line", ["host --tag {} --dry-run", "set warm --tag {}"])
def test_a_tag_is_one_printable_line(line: str, type_: Callable[[str], Result]) -> None:
    for tag, shown in (("a\nb", r"'a\nb'"), ("\x1b[31m", r"'\x1b[31m'")):
        refused = type_("runner " + line.format(f"'{tag}'"))
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"error: --tag {shown}: a tag is one line")


def walk(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """Yield the contexts of the command and of the commands below it."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, click.Context(below, context, name))


def test_function_of_each_command_takes_its_parameters() -> None:
    """Click passes them by keyword, so that neither it nor mypy sees a name that differs."""
    for context in walk(main, click.Context(main, info_name="runner")):
        if context.command.callback is None:
            continue
        function = inspect.unwrap(context.command.callback)
        parameters = inspect.signature(function).parameters.values()
        named = {p.name for p in parameters if p.kind != inspect.Parameter.VAR_KEYWORD}
        given = {p.name for p in context.command.params if p.expose_value}
        if len(named) == len(parameters):
            assert given <= named, context.command_path
        assert len(named - given) <= 1, context.command_path  # click.pass_obj or pass_context


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_text_that_the_encoding_lacks_is_escaped(
    spawn: Callable[..., subprocess.Popen[str]], make_run: Callable[..., Path], encoding: str
) -> None:
    make_run("warm", step=50, job="experiment", result={"score": "\ud800 →"})
    process = spawn("status", "warm", PYTHONIOENCODING=encoding)
    out, err = process.communicate()
    assert (process.returncode, "error" in err) == (0, False)
    assert "result    score=" in out
