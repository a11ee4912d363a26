"""Remakes the pictures of the documentation from real runs:

python docs/pictures.py watch RUN      # docs/watch.svg: the screen of `runner watch`, best while it trains
python docs/pictures.py report RUN     # docs/report.png: the page of `runner report`, in headless Chromium
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
from runner.runs.history import Reader, read_runs
from runner.views.dashboard import Snapshot, screen
from runner.views.report import html

HERE = Path(__file__).resolve().parent
SIZE = (118, 30)  # columns, lines
WINDOW = (1100, 1560)  # pixels: the head, the curves and the sample


def watch(run: str) -> None:
    """The screen as it is now."""
    history = Reader(run, find_run(CliContext(), run).target).look_at_all()
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
    drawn = console.export_svg(title=f"runner watch {run}")
    # The font of rich's own frame would be fetched from elsewhere; any of fixed width does.
    (HERE / "watch.svg").write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def report(run: str) -> None:
    """The top of the page, in light."""
    from tests.runner.views.browser import look_at

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html(read_runs(CliContext(), [run], all_samples=True)[0], time.time()))
        picture = look_at(page, size=WINDOW).picture
    picture.save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    {"watch": watch, "report": report}[sys.argv[1]](sys.argv[2])
