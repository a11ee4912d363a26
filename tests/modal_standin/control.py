"""Steer a running stand-in from a shell.

    python -m tests.modal_standin.control STATE METHOD [NAME=VALUE ...]
    python -m tests.modal_standin.control STATE preempt grace=0.5
    python -m tests.modal_standin.control STATE inject on=BlockGet fault=503 times=5
    python -m tests.modal_standin.control STATE builds

The methods are those of `controls.py`. Prints the answer as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .api import StandinError, connect


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.modal_standin.control", description=__doc__
    )
    parser.add_argument(
        "state", type=Path, help="the state directory that the stand-in was started with"
    )
    parser.add_argument("method")
    parser.add_argument(
        "arguments", nargs="*", metavar="NAME=VALUE", help="values are JSON, or else text"
    )
    options = parser.parse_args(arguments)
    try:
        answer = connect(options.state).call(
            options.method, **dict(map(_argument, options.arguments))
        )
    except StandinError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2))
    return 0


def _argument(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name in ("on", "fault", "file", "log", "match", "task", "rpc", "of", "name", "value"):
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
