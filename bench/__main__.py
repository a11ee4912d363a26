"""Measure the trainer on this machine. docs/benchmarks.md describes each bench.

    python -m bench [speed] [RECIPE] [key=value ...] [--baseline nanogpt=../nanoGPT] [--text FILE]
    python -m bench loss | memory | traffic | kernels | steps | checkpoint | tokenizing [options]

Each result is printed, and appended to --out, as soon as it is measured.
"""

from __future__ import annotations

import importlib
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from bench.results import Results
from bench.setup import add_setup_arguments
from job.arguments import run

BENCHES = ("speed", "loss", "memory", "traffic", "kernels", "steps", "checkpoint", "tokenizing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one bench and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and words[0] in BENCHES else "speed"
    module = importlib.import_module(f"bench.{name}")
    overview = __doc__ if words in (["--help"], ["-h"]) and name == "speed" else None
    parser = ArgumentParser(
        prog=f"python -m bench {name}",
        description="\n".join(filter(None, (overview, module.__doc__))),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    getattr(module, "add_arguments", add_setup_arguments)(parser)
    append = "append each result to this file as a JSON line"
    parser.add_argument("--out", type=Path, metavar="FILE", help=append)
    skip = "skip what would run past this time budget"
    parser.add_argument("--minutes", type=float, metavar="M", help=skip)
    parser.add_argument("--json", action="store_true", help="print results as JSON lines")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_intermixed_args(words)
    # A SystemExit lets run_until() kill the trainer's process group.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = Results(arguments.out, arguments.minutes, arguments.json)
    return run(lambda options: module.main(options, results), arguments)


if __name__ == "__main__":
    sys.exit(main())
