"""Check the Modal account in a process of its own, for `runner doctor`; create nothing.

    python -m runner.targets.modal.diagnose

Prints {"problem": "", "volumes": {"gpt-runner-data": "exists", "gpt-runner-cache": "missing"}}.
"""

from __future__ import annotations

import json
import os

from job.paths import VOLUMES
from runner.errors import ModalUnavailable, RunnerError
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.volume import check_environment, is_old_version, modal_name


def diagnose() -> dict[str, object]:
    """Return whether Modal accepts the token, and the state of the three volumes."""
    states: dict[str, str] = {}
    for volume in VOLUMES:
        name = modal_name(volume, os.environ)
        try:
            states[name] = _volume_state(name)
        except (RunnerError, ModalUnavailable) as error:
            return {"problem": str(getattr(error, "message", error)), "volumes": states}
    return {"problem": "", "volumes": states}


def _volume_state(name: str) -> str:
    import modal

    try:
        with translate_modal_errors():
            modal.Volume.from_name(name, version=2).hydrate()
    except FileNotFoundError as error:
        check_environment(error)
        return "missing"
    except RunnerError as error:
        if is_old_version(error):
            return "is of Modal's version 1; the runner uses version 2"
        raise
    return "exists"


if __name__ == "__main__":
    print(json.dumps(diagnose()))
