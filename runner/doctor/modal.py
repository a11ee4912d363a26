"""Whether Modal knows this user, and which volumes there are. Nothing is made there."""

import json
import sys
from collections.abc import Iterator

from runner.doctor.base import CheckContext, Finding
from runner.errors import RunnerError
from runner.project import INSTALLED, own_requirement, pip_install
from runner.targets.modal.account import is_set_up
from runner.targets.modal.client import check_proxy, check_reachable

ORDER = 80

PATIENCE = 15.0  # seconds; the client itself would try for a minute


def check(scene: CheckContext) -> Iterator[Finding]:
    """No token is no fault, for everything else works without Modal; a token that is refused is one."""
    try:
        if not is_set_up(scene.environ):
            yield Finding("note", "no Modal token, so no `runner cloud`", "to have it: modal setup")
            return
        check_proxy(scene.environ)
    except RunnerError as error:
        message, _, remedy = error.message.partition("; ")
        yield Finding("error", message, remedy)
        return
    try:
        check_reachable(scene.environ)
    except RunnerError as error:
        yield Finding(
            "warning", error.message.partition(";")[0], "check the network; all else works"
        )
        return
    # A process of its own can be ended after PATIENCE whatever it waits for, and leaves modal out of this one.
    python_path = {"PYTHONPATH": f"{INSTALLED}:{scene.environ.get('PYTHONPATH', '')}".rstrip(":")}
    answer = scene.machine.call(
        [sys.executable, "-m", "runner.targets.modal.diagnose"],
        timeout_s=PATIENCE,
        extra_env=python_path,
    )
    if answer.code == 124:
        yield Finding(
            "warning", f"Modal did not answer within {PATIENCE:.0f} s", "runner doctor, later"
        )
        return
    try:
        said = json.loads(answer.out)
    except ValueError:
        yield Finding(
            "warning",
            f"Modal can't be asked: {answer.last_line}",
            pip_install("--upgrade", own_requirement("modal")),
        )
        return
    if said["problem"]:
        message, _, remedy = said["problem"].partition("; ")
        yield Finding("error", message, remedy or "modal token new")
        return
    yield Finding("ok", "Modal accepts the token")
    for name, state in said["volumes"].items():
        if state == "there":
            yield Finding("ok", f"volume {name} is on Modal")
        elif state == "missing":
            yield Finding("note", f"volume {name} is not on Modal yet; the first launch makes it")
        else:
            yield Finding(
                "warning", f"volume {name}: {state}", f"runner ls {name.rpartition('-')[2]}"
            )
