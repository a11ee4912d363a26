"""Asking before something is lost."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import usage
from runner.terminal import Environment


def confirm(env: Environment, facts: Sequence[str], action: str, yes: bool) -> bool:
    """Tell the facts and ask. ``yes`` answers. Off a terminal raise RunnerError (2) with the line to type."""
    if yes:
        return True
    if not env.is_terminal:
        raise usage(f"{'; '.join(facts)}; to {action}, type `{env.line} -y`")
    for fact in facts:
        env.say(fact)
    return env.ask(f"{action}?")
