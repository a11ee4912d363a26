"""Compare the tokenizing speed and memory of `prepare` with tiktoken alone on the same cores.

    python -m bench tokenizing TEXT [--bytes 1000000000] [--pairs 2]

TEXT (.txt or .txt.xz) is repeated up to --bytes and tokenized with GPT-2's vocabulary. Each pair
runs tiktoken and `prepare` in turn, so that both see the same machine; the rate per CPU second is
valid on a busy machine too. tiktoken's rates are over the first 200 MB, in pieces of 1 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from bench.results import Results, RunFailed
from bench.setup import write_text
from job.paths import CHECKOUT

CORES = len(os.sched_getaffinity(0))
TIKTOKEN_BYTES = 200_000_000


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this bench."""
    parser.add_argument("text", type=Path, help="the text, a .txt or .txt.xz")
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of text (1,000,000,000)")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of runs (2)")


def main(arguments: Namespace, results: Results) -> int:
    """Measure the pairs, and return 0."""
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text.txt"
        write_text(arguments.text, text, arguments.bytes)
        pieces = read_pieces(text)
        share = sum(len(piece.encode()) for piece in pieces) / arguments.bytes
        for pair in range(1, arguments.pairs + 1):
            if results.seconds_left() <= 0:
                break
            rates: dict[str, tuple[float, float]] = {}
            for method in ("encode_ordinary_batch", "encode_to_numpy in threads"):
                results.log(f"pair {pair}: tiktoken, {method}, {CORES} cores")
                seconds, cpu, tokens = run_tiktoken(pieces, method)
                rates[method] = tokens / seconds, tokens / cpu
            results.log(f"pair {pair}: prepare")
            seconds, cpu, peak = run_prepare(text, Path(temporary) / f"out{pair}")
            rates["prepare"] = own, own_per_cpu = tokens / share / seconds, tokens / share / cpu
            results.add(
                "tokenizing",
                pair=pair,
                tokens_per_second={name: round(rate) for name, (rate, _) in rates.items()},
                tokens_per_cpu_second={name: round(rate) for name, (_, rate) in rates.items()},
                prepare_of={name: round(own / rate, 2) for name, (rate, _) in rates.items()},
                prepare_of_per_cpu_second={
                    name: round(own_per_cpu / rate, 2) for name, (_, rate) in rates.items()
                },
                peak_mb=round(peak),
                seconds=round(seconds, 1),
            )
    return 0


def run_prepare(text: Path, folder: Path) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and the peak resident MB of the process and its children."""
    started, peak, before = time.perf_counter(), 0, os.times()
    options = [f"data.source={text}", "data.dataset=bench", "data.split=tail"]
    command = [sys.executable, "-m", "corpus.prepare", "gpt2_124m", *options]
    environ = {**os.environ, "DATA_PATH": str(folder)}
    with subprocess.Popen(command, cwd=CHECKOUT, env=environ, stdout=subprocess.PIPE) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in tree))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.02)
    if process.returncode:
        raise RunFailed(f"prepare failed with exit status {process.returncode}")
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])  # user and system time of the children
    return time.perf_counter() - started, cpu, peak / 1e6


def read_pieces(text: Path) -> list[str]:
    """Return the first 200 MB of the text in pieces of 1 MB."""
    from corpus.segments import read
    from corpus.sources import find_files

    pieces: list[str] = []
    for segment in read(find_files(str(text), text.parent), "text"):
        pieces.append(segment.text.decode())
        if segment.after[1] >= TIKTOKEN_BYTES:
            break
    return pieces


def run_tiktoken(pieces: list[str], method: str) -> tuple[float, float, int]:
    """Return seconds, CPU seconds and the token count of tiktoken on all cores."""
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    encoding.encode_ordinary("warm up")
    started, cpu, tokens = time.perf_counter(), time.process_time(), 0
    if method == "encode_ordinary_batch":
        size = 8 * CORES  # all lists at once would take gigabytes
        for first in range(0, len(pieces), size):
            batch = encoding.encode_ordinary_batch(pieces[first : first + size], num_threads=CORES)
            tokens += sum(map(len, batch))
    else:

        def count(piece: str) -> int:
            return len(encoding.encode_to_numpy(piece, disallowed_special=()))

        with ThreadPoolExecutor(CORES) as pool:
            tokens = sum(pool.map(count, pieces))
    return time.perf_counter() - started, time.process_time() - cpu, tokens
