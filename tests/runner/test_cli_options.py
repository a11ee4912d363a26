"""Empty and invalid option values, renamed options, and GPU names of other providers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from job.run_record import RunStatus
from runner.errors import RunnerError
from runner.pricing.gpus import parse_gpus
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


@pytest.mark.parametrize(
    "line", ["shell --gpu H100 --idle 0", "shell --idle -5", "shell --idle 0.01"]
)
def test_shell_without_a_time_limit_is_refused(line: str, type_: Callable[[str], Result]) -> None:
    refused = type_(f"runner {line}")
    assert (refused.exit_code, "--idle" in refused.stderr, "x>=0.02" in refused.stderr) == (
        2,
        True,
        True,
    )


def test_negative_interval_is_refused(type_: Callable[[str], Result]) -> None:
    refused = type_("runner pull checkpoints warm --watch --interval -1")
    assert (refused.exit_code, "--interval" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("H100x8", "H100:8"),
        ("8xH100", "H100:8"),
        ("h100-2", "H100:2"),
        ("A100-80GBx4", "A100-80GB:4"),
        ("A10x8", "A10"),  # one machine has 4 of them
        ("H1000", "H100"),
    ],
)
def test_gpu_names_of_other_providers_get_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(RunnerError) as refused:
        parse_gpus(typed)
    assert refused.value.message.endswith(f"; did you mean '{meant}'?")


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
