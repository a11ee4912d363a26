"""docs/cli.md matches the commands, and every command has an example."""

from __future__ import annotations

import re

import click
import pytest

from docs.cli_reference import PAGE, page
from runner.cli import main
from runner.jobs import JOBS

ROOT_CONTEXT = click.Context(main)
NAMES = main.list_commands(ROOT_CONTEXT)


def test_page_matches_the_commands() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_an_example(name: str) -> None:
    text = main.get_command(ROOT_CONTEXT, name).help
    assert re.search(rf"^ *(echo ')?.*runner {name}\b", text, re.MULTILINE), "no example"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_help_text(name: str) -> None:
    command = main.get_command(ROOT_CONTEXT, name)
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


@pytest.mark.parametrize("name", NAMES)
def test_help_has_no_formatting_marks_or_folded_examples(name: str) -> None:
    command = main.get_command(ROOT_CONTEXT, name)
    text = command.get_help(click.Context(command, info_name=name, terminal_width=80))
    assert "\b" not in text
    assert not any(line.strip() == "" and line for line in text.splitlines())
    assert not re.search(r"^ *[^` ].*[:,;)] runner (host|local|cloud) --", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["host", "local", "cloud"])
def test_every_job_is_listed_and_has_an_example(name: str) -> None:
    group = main.get_command(ROOT_CONTEXT, name)
    text = group.get_help(click.Context(group, info_name=f"runner {name}"))
    for job in (*JOBS, "run", "pipeline", "command"):
        if (name, job) == ("cloud", "chat"):  # chat needs a local terminal
            assert job not in group.commands
            continue
        assert f"\n  {job} " in text
        assert f"runner {name} " in group.commands[job].help


@pytest.mark.parametrize("name", ["host", "local", "cloud"])
def test_help_of_a_job_has_only_its_options(name: str) -> None:
    group = main.get_command(ROOT_CONTEXT, name)
    sample = {option for p in group.commands["sample"].params for option in p.opts}
    assert "--device" in sample
    assert not sample & {"--source", "--shards", "--force", "--output", "--persist", "--param"}


def test_lines_fit_a_terminal() -> None:
    assert (
        max(map(len, page().partition("## runner\n")[2].partition("## Exit codes")[0].splitlines()))
        <= 100
    )
