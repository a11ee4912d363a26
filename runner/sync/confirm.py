"""Asking before something is lost."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import usage
from runner.terminal import Environment


def confirm(env: Environment, facts: Sequence[str], action: str, yes: bool, line: str | None = None) -> bool:
    """Tell the facts and ask; ``yes`` answers. Off a terminal raise RunnerError (2) with ``line``, which is what
    to type: by default what was typed, and -y."""
    if yes:
        return True
    if not env.is_terminal:
        raise usage(f"{'; '.join(facts)}; to {action}, type `{line or f'{env.line} -y'}`")
    for fact in facts:
        env.say(fact)
    return env.ask(f"{action}?")
