"""The line that installs what is missing works where it is typed."""

from __future__ import annotations

import shlex
import sys
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from runner.project import install_line, own_requirement, requirements
from tests.runner.conftest import ROOT


@pytest.mark.parametrize("extra", ["report", "train"])
def test_it_names_this_python_and_the_packages_and_not_this_project(extra: str) -> None:
    words = shlex.split(install_line(extra))
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = {word.split(";")[0].split(">")[0].split("=")[0] for word in words[4:]}
    assert names == {line.split(";")[0].split(">")[0].split("=")[0] for line in project[extra]}
    assert not any(word.startswith((".", "-")) for word in words[4:])


def test_a_condition_of_the_system_stays_with_its_package() -> None:
    (nvidia,) = (line for line in requirements("train") if line.startswith("nvidia"))
    assert nvidia.partition(";")[2].strip() == 'sys_platform == "linux"'


def test_what_replaces_a_package_of_the_runner_is_a_version_that_it_works_with() -> None:
    modal = Requirement(own_requirement("modal"))
    assert not modal.specifier.contains("1.6.3")
    assert modal.specifier.contains(version("modal"))
    assert own_requirement("no-such-package") == "no-such-package"
