"""JSON values of a wrong type are refused with the name of the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from job.run_record import RunRecord, parse_record
from job.typed_json import read_json

RECORD = {
    "name": "r",
    "val_loss": 1,
    "attempts": [{"started": 1, "launch": {"gpu": ["any"]}}],
    "versions": {"torch": "2"},
    "field of a newer release": 1,
}


def test_a_record_is_read_with_the_types_of_its_fields() -> None:
    record = read_json(RunRecord, json.dumps(RECORD))
    assert (record.val_loss, type(record.val_loss)) == (1.0, float)
    assert record.attempts[0].started == 1.0
    assert record.attempts[0].ended is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": None}, "name: expected str"),
        ({"step": True}, "step: expected int, got 'True'"),
        ({"step": 1.5}, "step: expected int"),
        ({"val_loss": "low"}, "val_loss: expected float"),
        ({"seconds": 10**400}, "seconds: expected float"),
        ({"versions": 5}, "versions: expected dict"),
        ({"versions": {"torch": 2}}, "versions.torch: expected str"),
        ({"overrides": "lr=1"}, "overrides: expected list"),
        ({"attempts": [{"started": "now"}]}, r"attempts\[\].started: expected float"),
        ({"attempts": [{}]}, r"attempts\[\].started is missing"),
        ({"attempts": [[]]}, r"attempts\[\]: expected Attempt"),
        ({"status": "resting"}, "'resting' is not a valid RunStatus"),
    ],
)
def test_value_of_a_wrong_type_is_refused(change: dict[str, Any], field: str) -> None:
    text = json.dumps({**RECORD, **change})
    with pytest.raises(ValueError, match=field):
        read_json(RunRecord, text)
    assert parse_record(text) is None


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{", "[" * 100_000, "\udcff"])
def test_no_text_crashes_the_reader(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_json(RunRecord, text)


def test_estimate_of_a_wrong_type_is_dropped() -> None:
    launch = {"estimate": {"seconds": "long", "usd": 2}}
    record = RunRecord("r", attempts=[])
    assert record.estimate == {}
    read = parse_record(json.dumps({**RECORD, "attempts": [{"started": 1, "launch": launch}]}))
    assert read is not None
    assert read.estimate == {"usd": 2}
