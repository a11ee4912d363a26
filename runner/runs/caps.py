"""What ended a run at its --max-cost or its --timeout, and what goes on with it."""

from __future__ import annotations

# By the reason of an attempt's end: the option, and what is typed for more of it.
OPTIONS = {"budget": ("--max-cost", "MORE"), "timeout": ("--timeout", "LONGER")}


def option(reason: str) -> str:
    """The option whose value is used up; '' for any other end."""
    return OPTIONS[reason][0] if reason in OPTIONS else ""


def in_words(run: str, reason: str) -> str:
    """``its --max-cost is spent; `runner resume RUN --max-cost MORE` goes on``; '' for any other end."""
    if reason not in OPTIONS:
        return ""
    name, more = OPTIONS[reason]
    used_up = "spent" if reason == "budget" else "used up"
    return f"its {name} is {used_up}; `runner resume {run} {name} {more}` goes on"
