"""Compare the tokenizing speed and memory of `prepare` with tiktoken alone on the same cores.

    python -m bench.tokenizing TEXT [--bytes 1000000000] [--pairs 2]

TEXT (.txt or .txt.xz) is repeated up to --bytes and tokenized with GPT-2's vocabulary. Each pair
runs tiktoken and `prepare` in turn, so that both see the same machine; the rate per CPU second is
valid on a busy machine too. tiktoken's rates are over the first 200 MB, in pieces of 1 MB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from bench.setup import write_text

CORES = len(os.sched_getaffinity(0))
TIKTOKEN_BYTES = 200_000_000

PREPARE = """
import sys
from pathlib import Path
from corpus.build import prepare
from job.recipe import DataConfig
config = DataConfig(dataset="bench", source=sys.argv[1], tokenizer="gpt2", split="tail")
print(prepare(config, Path(sys.argv[2])).train_tokens)
"""


def run_prepare(text: Path, folder: Path) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and the peak resident MB of the process and its children."""
    started, peak, before = time.perf_counter(), 0, os.times()
    command = [sys.executable, "-c", PREPARE, str(text), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                tree = [root, *root.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in tree))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"error: prepare failed with exit status {process.returncode}")
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


def main() -> None:
    """Print the rates of each pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text.txt"
        write_text(options.text, text, options.bytes)
        pieces = read_pieces(text)
        share = sum(len(piece.encode()) for piece in pieces) / options.bytes
        print(f"{options.bytes / 1e6:,.0f} MB of text, {CORES} cores")
        for pair in range(1, options.pairs + 1):
            rates: dict[str, tuple[float, float]] = {}
            for method in ("encode_ordinary_batch", "encode_to_numpy in threads"):
                seconds, cpu, tokens = run_tiktoken(pieces, method)
                rates[method] = rate, per_cpu = tokens / seconds, tokens / cpu
                print(f"pair {pair}: tiktoken, {method}: {show(rate, per_cpu)}", flush=True)
            seconds, cpu, peak = run_prepare(text, Path(temporary) / f"out{pair}")
            rate, per_cpu = tokens / share / seconds, tokens / share / cpu
            figures = f"{show(rate, per_cpu)}; peak {peak:.0f} MB, {seconds:.1f} s"
            print(f"pair {pair}: prepare: {figures}")
            for method, (other, other_cpu) in rates.items():
                shares = f"{rate / other:.2f} of {method}, {per_cpu / other_cpu:.2f}"
                print(f"    {shares} of it per CPU second", flush=True)


def show(rate: float, per_cpu: float) -> str:
    """Return two rates in tokens per second."""
    return f"{rate / 1e6:.2f} Mtokens/s, {per_cpu / 1e6:.2f} per CPU second"


if __name__ == "__main__":
    main()
