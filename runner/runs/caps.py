"""What ended a run at its --max-cost or its --timeout, and what goes on with it."""

from __future__ import annotations

OPTIONS = {"budget": "--max-cost", "timeout": "--timeout"}  # by the reason of an attempt's end
MORE = {"budget": "--max-cost MORE", "timeout": "--timeout LONGER"}


def option(reason: str) -> str:
    """The option whose value is used up; '' for any other end."""
    return OPTIONS.get(reason, "")


def in_words(run: str, reason: str) -> str:
    """``its --max-cost is spent; `runner resume RUN --max-cost MORE` goes on``; '' for any other end."""
    if reason not in OPTIONS:
        return ""
    used_up = "spent" if reason == "budget" else "used up"
    return f"its {OPTIONS[reason]} is {used_up}; `runner resume {run} {MORE[reason]}` goes on"
