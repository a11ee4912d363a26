"""Every option that the docs and messages name exists."""

from __future__ import annotations

import re

import click

from runner.cli import main
from runner.home import PACKAGES
from runner.jobs import JOBS
from tests.runner.conftest import ROOT

ROOT_CONTEXT = click.Context(main)
NAMES = {*main.list_commands(ROOT_CONTEXT)}
TARGETS = ("host", "local", "cloud", "remote")
LINE = re.compile(r"\brunner ([a-z]+)\b((?:\\\n|\"[^\"`|\n]*\"|[^`|\"\n])*)")
BARE = re.compile(rf"`({'|'.join(JOBS)}) ([^`\n]*)`")  # `prepare --force`, without a target
SEPARATOR = re.compile(r"\s--(?=\s)")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] + [
    path
    for package in (*PACKAGES, "configs")
    for path in sorted((ROOT / package).rglob("*"))
    if path.suffix in (".py", ".yaml")
]


def options_of(name: str) -> set[str]:
    """Return the options of a command, or of a job as ``host sample``."""
    command_name, _, job = name.partition(" ")
    command = main.get_command(ROOT_CONTEXT, command_name)
    assert command is not None
    if job:
        assert isinstance(command, click.Group)
        command = command.commands[job]
    found = {
        name
        for p in command.params
        if isinstance(p, click.Option)
        for name in (*p.opts, *p.secondary_opts)
    }
    return found | {"--help"}


def command_of(name: str, words: str) -> str:
    """Return ``host sample`` for ``runner host ... sample``; other commands unchanged."""
    if name not in TARGETS:
        return name
    group = main.get_command(ROOT_CONTEXT, name)
    job, _ = group.split_job(words.split())
    return f"{name} {job or 'train'}"


def named_in(text: str) -> list[tuple[str, str]]:
    """Return command and option, for each option in a command line before its --."""
    lines = [
        (found[1], re.sub(r'"[^"]*"', '""', found[2]))
        for found in LINE.finditer(text)
        if found[1] in NAMES
    ]
    lines += [
        (target, f"{found[1]} {found[2]}") for found in BARE.finditer(text) for target in TARGETS
    ]
    return [
        (command_of(name, words), option)
        for name, words in lines
        for option in OPTION.findall(SEPARATOR.split(words)[0])
    ]


def test_every_named_option_exists() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: runner {name} {option}"
        for path in FILES
        for name, option in named_in(path.read_text(encoding="utf-8"))
        if option not in options_of(name)
    ]
    assert missing == []


def test_options_are_found_in_text() -> None:
    text = (
        "type `runner host prepare x --force` or `prepare --shards 9`, "
        "`runner cloud --gpu H100 -- a --b`"
    )
    assert ("host prepare", "--force") in named_in(text)
    assert ("local prepare", "--shards") in named_in(text)
    assert ("cloud command", "--b") not in named_in(text)


def test_examples_with_a_source_name_a_dataset() -> None:
    """`prepare --source` alone would overwrite the dataset of the default recipe."""
    for path in FILES:
        for found in LINE.finditer(path.read_text(encoding="utf-8")):
            words = found[2].split()
            if (
                "prepare" in words
                and "--source" in words
                and words[words.index("prepare") + 1] == "--source"
            ):
                assert "data.dataset=" in found[2], f"{path.relative_to(ROOT)}: {found[0]}"


def test_page_on_sweeps_puts_trials_and_seed_into_the_space() -> None:
    from runner.sweep.config import SweepConfig

    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    assert "`trials: 12` and `seed: 1` under `space`" in page
    space = {"random": {"lr": {"loguniform": [1e-4, 1e-2]}}, "trials": 12, "seed": 1}
    SweepConfig.model_validate(
        {"recipe": "quickstart", "space": space, "metric": "val_loss", "goal": "min"}
    )
