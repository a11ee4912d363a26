"""Check the Modal account: the token, the connection and the volumes. Creates nothing there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from runner.doctor import CheckContext, Finding, failure, note, ok, warning
from runner.errors import RunnerError
from runner.project import INSTALLED, own_requirement, pip_install
from runner.targets.modal.client import NEW_TOKEN, check_proxy, check_reachable, is_configured

TIMEOUT_S = 15.0  # Modal's client itself would try for a minute


def check_modal(context: CheckContext) -> Iterator[Finding]:
    """Check the token. None is fine, since everything else works without Modal."""
    try:
        if not is_configured(context.environ):
            yield note(
                "no Modal token: `runner cloud` needs one, everything else works without",
                NEW_TOKEN,
            )
            return
        check_proxy(context.environ)
    except RunnerError as error:
        message, _, remedy = error.message.partition("; ")
        yield failure(message, remedy)
        return
    try:
        check_reachable(context.environ)
    except RunnerError as error:
        message = error.message.partition(";")[0]
        remedy = "check the network; everything but `runner cloud` works without it"
        yield warning(message, remedy)
        return
    yield from _check_account(context)


def _check_account(context: CheckContext) -> Iterator[Finding]:
    """Ask Modal in another process, which can be killed, and which alone imports `modal`."""
    python_path = f"{INSTALLED}:{context.environ.get('PYTHONPATH', '')}".rstrip(":")
    answer = context.machine.call(
        [sys.executable, "-m", "runner.targets.modal.inspect"],
        timeout_s=TIMEOUT_S,
        extra_env={"PYTHONPATH": python_path},
    )
    if answer.code == 124:
        message = f"Modal did not answer within {TIMEOUT_S:.0f} s"
        yield warning(message, "run `runner doctor` again later")
        return
    try:
        account = json.loads(answer.out)
    except ValueError:
        message = f"Modal's client failed: {answer.last_line}"
        remedy = pip_install("--upgrade", own_requirement("modal"))
        yield warning(message, remedy)
        return
    if account["problem"]:
        message, _, remedy = account["problem"].partition("; ")
        yield failure(message, remedy or NEW_TOKEN)
        return
    yield ok("Modal accepts the token")
    for name, state in account["volumes"].items():
        if state == "exists":
            yield ok(f"volume {name} exists on Modal")
        elif state == "missing":
            message = f"volume {name} does not exist on Modal yet; the first launch creates it"
            yield note(message)
        else:
            volume = name.rpartition("-")[2]
            yield warning(f"volume {name}: {state}", f"runner ls {volume}")
