"""An option with nothing in it is a mistake, on every command; a number of GPUs is understood and shown as written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result

from runner.errors import RunnerError
from runner.pricing.gpus import parse_gpus


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
def test_an_empty_value_is_refused(line: str, type_: Callable[[str], Result]) -> None:
    refused = type_(f"runner {line}")
    option = next(word for word in line.split() if word.startswith("--")).rstrip("=")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {option} is empty; ")


@pytest.mark.parametrize(
    "line", ["shell --gpu H100 --idle 0", "shell --idle -5", "shell --idle 0.01"]
)
def test_a_shell_that_would_never_end_is_refused(line: str, type_: Callable[[str], Result]) -> None:
    refused = type_(f"runner {line}")
    assert (refused.exit_code, "--idle" in refused.stderr, "x>=0.02" in refused.stderr) == (
        2,
        True,
        True,
    )


def test_a_watch_waits_between_its_looks(type_: Callable[[str], Result]) -> None:
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
def test_the_words_of_other_clouds_are_understood(typed: str, meant: str) -> None:
    with pytest.raises(RunnerError) as refused:
        parse_gpus(typed)
    assert refused.value.message.endswith(f"; did you mean '{meant}'?")
