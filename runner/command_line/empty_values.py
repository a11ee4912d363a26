"""Options with nothing in them: mostly a variable of the shell that is not set, as in ``--gpu "$GPU"``."""

from __future__ import annotations

from typing import Any

import click

from runner.errors import usage


def refuse_empty(command: click.Command) -> click.Command:
    """The command, which refuses an empty value of any of its options: taken for none, it would be the default that
    is paid for, an H100."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.type is click.STRING:
            parameter.callback = _check
    return command


def _check(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, str) and not each.strip():
            option = max(parameter.opts, key=len)
            raise usage(f"{option} is empty; give it a value (is its variable set?), or leave {option} away")
    return value
