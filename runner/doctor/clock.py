"""Whether the clock is right: a wrong one breaks signed requests, and makes old runs look alive."""

import time
from collections.abc import Iterator
from datetime import datetime

from runner.doctor.base import CheckContext, Finding
from runner.project import volumes

ORDER = 15

# Seconds. Modal's and most other signed requests are refused beyond minutes; a run counts as alive by a heartbeat
# that is younger than half a minute.
MOST = 30.0


def check(scene: CheckContext) -> Iterator[Finding]:
    """Beside the engine's clock, which may be that of a virtual machine, and the newest records of runs."""
    wrong = False
    engine = scene.machine.engine.clock
    if engine and abs(apart := _seconds(engine) - time.time()) > MOST:
        wrong = True
        yield Finding(
            "warning",
            f"the engine's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's",
            "set the clock (`timedatectl set-ntp true`); with Docker Desktop restart it",
        )
    records = volumes(scene.checkout, scene.environ).checkpoints.glob("*/run.json")
    newest = max(records, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None and newest.stat().st_mtime > time.time() + MOST:
        wrong = True
        yield Finding(
            "warning",
            f"run '{newest.parent.name}' was written in the future: this machine's clock is behind, or was ahead",
            "set the clock: `timedatectl set-ntp true`",
        )
    if not wrong:
        yield Finding("ok", f"clock: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}")


def _seconds(text: str) -> float:
    """Go prints nanoseconds, which Python reads from 3.11 on. An answer of another kind counts as right."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()
