"""Tests of ``--gpu``: names, counts and suggestions."""

from __future__ import annotations

import pytest

from job.machine import datasheet_flops
from runner.errors import RunnerError
from runner.pricing.gpus import BY_NAME, GpuRequest, parse_gpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("H100", GpuRequest(("H100",), 1)),
        ("h100:8", GpuRequest(("H100",), 8)),
        ("H100!:2,B200+:2", GpuRequest(("H100!", "B200+"), 2)),
        ("a100-80gb, L40S", GpuRequest(("A100-80GB", "L40S"), 1)),
    ],
)
def test_alternatives_keep_their_order(text: str, expected: GpuRequest) -> None:
    assert parse_gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("H1000", "did you mean 'H100'?"),
        ("A10080GB", "did you mean 'A100-80GB'?"),
        ("rtx6000", "did you mean 'RTX-PRO-6000'?"),
        ("abacus", "Modal has T4, L4"),
        ("H100:9", "1 to 8 H100 GPUs, not 9; for more, add --nodes"),
        ("A10:5", "1 to 4 A10"),
        ("H100:two", "use H100:2"),
        ("H100:²", "invalid GPU count in 'H100:²'; use H100:2"),
        ("H100:99999999999", "invalid GPU count"),
        ("H100:0", "not 0"),
        ("8", "'8' is a number of GPUs without a type; write both: H100:8"),
        ("H100:8,A100:4", "use H100:8,A100:8"),
    ],
)
def test_error_names_the_valid_spelling(text: str, part: str) -> None:
    with pytest.raises(RunnerError) as caught:
        parse_gpus(text)
    assert part in caught.value.message
    assert caught.value.exit_code == 2


def test_every_gpu_has_a_peak_for_the_trainer() -> None:
    assert all(datasheet_flops(name) for name in BY_NAME)
