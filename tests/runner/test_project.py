"""Tests of the commands that install missing packages, and of .env."""

from __future__ import annotations

import shlex
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runner.errors import RunnerError
from runner.project import (
    install_line,
    own_requirement,
    project_name,
    read_dotenv,
    requirements,
    update_dotenv,
)
from tests.runner.conftest import ROOT


@pytest.mark.parametrize("extra", ["report", "train"])
def test_install_command_names_this_python_and_the_packages_but_not_the_project(extra: str) -> None:
    words = shlex.split(install_line(extra))
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    installed = {canonicalize_name(Requirement(word).name) for word in words[4:]}
    assert installed == {canonicalize_name(Requirement(line).name) for line in project[extra]}


def test_platform_marker_stays_with_its_package() -> None:
    (nvidia,) = (line for line in requirements("train") if line.startswith("nvidia"))
    assert str(Requirement(nvidia).marker) == 'sys_platform == "linux"'


def test_installed_versions_satisfy_the_requirements_of_the_runner() -> None:
    modal = Requirement(own_requirement("modal"))
    assert not modal.specifier.contains("1.6.3")
    assert modal.specifier.contains(version("modal"))
    assert own_requirement("no-such-package") == "no-such-package"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("KEY=a\n", "a"),
        ("\ufeffKEY=a\n", "a"),
        ("export KEY = 'a b' # c\n", "a b"),
        ("KEY= # paste yours here\n", ""),
        ("KEY=ab\t# comment\n", "ab"),
        ('KEY="first\nsecond"\n', "first\nsecond"),
        ('KEY="a\\"b\\nc"\n', 'a"b\nc'),
        ("KEY='pa$$word'\n", "pa$$word"),
        ('KEY="b # c" # why\n', "b # c"),
        ("KEY='b' \n", "b"),
        ("KEY = b\n", "b"),
    ],
)
def test_dotenv_is_read_as_compose_reads_it(tmp_path: Path, text: str, value: str) -> None:
    (tmp_path / ".env").write_text(f"# before\n{text}OTHER=1\n", encoding="utf-8")
    if text.startswith("\ufeff"):
        (tmp_path / ".env").write_text(text, encoding="utf-8")
    assert read_dotenv(tmp_path, ["KEY"]) == {"KEY": value}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("s3cret s3cret", "expected NAME=value"),
        ("KEY: value", "expected NAME=value"),
        ("KEY=pa$word", "Compose would expand the $; put the value in single quotes"),
        (r"KEY='a\\b'", "Compose reads a backslash in single quotes differently"),
    ],
)
def test_a_line_that_compose_reads_differently_is_refused(
    tmp_path: Path, line: str, problem: str
) -> None:
    (tmp_path / ".env").write_text(f"A=1\n\n{line}\n")
    with pytest.raises(RunnerError) as caught:
        read_dotenv(tmp_path, ["KEY"])
    assert caught.value.message.startswith(".env:3: ")
    assert problem in caught.value.message


def test_unneeded_line_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER=$HOME/x\nKEY=1\n")
    assert read_dotenv(tmp_path, ["KEY"]) == {"KEY": "1"}


def test_comment_of_a_dotenv_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"# cl\xe9\nA=b\n")
    assert read_dotenv(tmp_path) == {"A": "b"}
    update_dotenv(tmp_path, {"A": "c"})
    assert (tmp_path / ".env").read_bytes() == b"# cl\xe9\nA=c\n"


def test_new_dotenv_is_private(tmp_path: Path) -> None:
    update_dotenv(tmp_path, {"HOST_UID": "1"})
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_checkouts_of_the_same_name_have_different_compose_projects(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "gpt", tmp_path / "b" / "gpt"
    assert project_name(first) != project_name(second)
    assert project_name(first, "mine") == "mine"
    assert project_name(second, project_name(first)) == project_name(second)  # .env was copied
