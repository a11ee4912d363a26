"""Draw the pictures of the documentation from real runs.

python docs/pictures.py watch RUN      # docs/watch.svg; RUN should be training
python docs/pictures.py report RUN     # docs/report.png, by headless Chromium
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from runner.console import CliContext
from runner.runs.find import find_run
from runner.runs.history import HistoryReader, read_runs
from runner.views.dashboard import Snapshot, screen
from runner.views.report import html

FOLDER = Path(__file__).resolve().parent
SIZE = (118, 30)  # columns, lines
WINDOW = (1100, 1560)  # pixels: the header, the curves and the sample


def watch(run: str) -> None:
    """Draw the current screen."""
    history = HistoryReader(run, find_run(CliContext(), run).source).poll_fully()
    assert history is not None
    console = Console(
        file=io.StringIO(),
        record=True,
        width=SIZE[0],
        height=SIZE[1],
        force_terminal=True,
        color_system="256",
    )
    console.print(screen(Snapshot(history), time.time(), *SIZE))
    svg = console.export_svg(title=f"runner watch {run}")
    # rich would load its font from a server; any monospaced font does.
    (FOLDER / "watch.svg").write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


def report(run: str) -> None:
    """Draw the top of the page in light mode."""
    from tests.browser import render

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html(read_runs(CliContext(), [run], all_samples=True)[0], time.time()))
        screenshot = render(page, size=WINDOW).screenshot
    screenshot.save(FOLDER / "report.png", optimize=True)


if __name__ == "__main__":
    {"watch": watch, "report": report}[sys.argv[1]](sys.argv[2])
