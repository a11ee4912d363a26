"""Train a run, or resume it.

    python -m model.train                     # configs/quickstart.yaml, on any machine
    python -m model.train shakespeare_char_cpu lr=1e-3 --name lr1
    torchrun --standalone --nproc-per-node=8 -m model.train gpt2_124m

Prepares the data first if it is missing, and ends with a sample of the network's text.
Exit status: 0 done, 1 an error, 2 a mistake in the command, 100 the training failed,
101 told to stop (the same command resumes).
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from job.arguments import add_device, argument_parser, leave, load_recipe, parse, run
from job.exit_status import ExitStatus
from job.machine import free_cpus
from job.paths import VolumePaths
from job.run_session import run_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parser = argument_parser("model.train", __doc__ or "")
    parser.add_argument("--name", metavar="RUN", help="name of the run (default: the recipe's)")
    add_device(parser)
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    recipe = load_recipe(arguments)
    folder = run_folder(recipe, arguments.name, VolumePaths.current())
    with ThreadPoolExecutor(1) as thread:
        free = None if os.environ.get("OMP_NUM_THREADS") else thread.submit(free_cpus)
        # torch takes seconds; the recipe's mistakes come first
        from model.attempt import run_attempt
    return run_attempt(recipe, folder, arguments, free.result() if free else None)


if __name__ == "__main__":
    leave(main())
