"""A look at the Modal account, as a process: ``python -m runner.cloud.look`` prints JSON and makes nothing.

{"problem": "", "volumes": {"gpt-runner-data": "there", "gpt-runner-cache": "missing", ...}}
"""

from __future__ import annotations

import json
import os

from job.locations import VOLUMES
from runner.cloud.modal_errors import in_our_words
from runner.cloud.patience import Unavailable
from runner.cloud.volumes import modal_name
from runner.errors import RunnerError


def look() -> dict[str, object]:
    """Whether the token is accepted, and which of the three volumes there are."""
    states: dict[str, str] = {}
    for volume in VOLUMES:
        name = modal_name(volume, os.environ)
        try:
            states[name] = _state(name)
        except (RunnerError, Unavailable) as error:
            return {"problem": str(getattr(error, "message", error)), "volumes": states}
    return {"problem": "", "volumes": states}


def _state(name: str) -> str:
    import modal
    from modal import exception

    try:
        with in_our_words():
            modal.Volume.from_name(name, version=2).hydrate()
    except FileNotFoundError:
        return "missing"
    except RunnerError as error:
        if isinstance(error.__cause__, exception.InvalidError) and "version" in str(error.__cause__):
            return "is of Modal's version 1; the runner uses version 2"
        raise
    return "there"


if __name__ == "__main__":
    print(json.dumps(look()))
