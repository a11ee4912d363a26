"""The command line of a harness: how many inputs, which seed, and the faults found as JSON."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

Faults = Callable[[Path, int, random.Random], Iterator[str]]


def harness_main(description: str | None, **kinds: Faults) -> int:
    """Run each kind whose option ``--KIND N`` is given; return 1 if there were faults.

    A kind yields "" for each input with a good end.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    for kind in kinds:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started, found, done = time.monotonic(), 0, dict.fromkeys(kinds, 0)
    folder = Path(tempfile.mkdtemp(prefix="harness_"))
    with suppress(KeyboardInterrupt):  # print the counts so far
        for kind, faults in kinds.items():
            if count := getattr(given, kind):
                (folder / kind).mkdir()
                for fault in faults(folder / kind, count, random.Random(given.seed)):
                    done[kind] += 1
                    if fault:
                        found += 1
                        print(f"--- {kind}: {fault}", flush=True)
                    print(f"\r{kind}: {done[kind]}", end="", file=sys.stderr, flush=True)
    if found:
        print(f"kept {folder} for inspection", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - started)
    print(json.dumps({"seed": given.seed, **done, "faults": found, "seconds": seconds}))
    return 1 if found else 0
