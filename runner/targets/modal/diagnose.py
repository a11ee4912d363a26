"""A look at the Modal account, as a process: ``python -m runner.targets.modal.diagnose`` prints JSON and makes nothing.

{"problem": "", "volumes": {"gpt-runner-data": "there", "gpt-runner-cache": "missing", ...}}
"""

from __future__ import annotations

import json
import os

from job.paths import VOLUMES
from runner.errors import ModalUnavailable, RunnerError
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.volume import modal_name


def diagnose() -> dict[str, object]:
    """Whether the token is accepted, and which of the three volumes there are."""
    states: dict[str, str] = {}
    for volume in VOLUMES:
        name = modal_name(volume, os.environ)
        try:
            states[name] = _state(name)
        except (RunnerError, ModalUnavailable) as error:
            return {"problem": str(getattr(error, "message", error)), "volumes": states}
    return {"problem": "", "volumes": states}


def _state(name: str) -> str:
    import modal
    from modal import exception

    try:
        with translate_modal_errors():
            modal.Volume.from_name(name, version=2).hydrate()
    except FileNotFoundError:
        return "missing"
    except RunnerError as error:
        if isinstance(error.__cause__, exception.InvalidError) and "version" in str(
            error.__cause__
        ):
            return "is of Modal's version 1; the runner uses version 2"
        raise
    return "there"


if __name__ == "__main__":
    print(json.dumps(diagnose()))
