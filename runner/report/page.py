"""The page of `runner report`: one HTML file that asks for nothing else and runs nothing.

Jinja escapes all that comes from files; a policy in the page's head forbids scripts and requests besides.
"""

from __future__ import annotations

from pathlib import Path

from runner.history.reader import History
from runner.report.content import content
from runner.report.curves import pictures

HERE = Path(__file__).parent
MARK = 'content="gpt-runner report"'  # in the head of each: a file that has it may be replaced


def html(history: History, now: float) -> str:
    """The page; ``now`` in seconds since the epoch."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    return made.get_template("page.html.j2").render(
        page=content(history, now),
        pictures=pictures(history),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
    )


def is_report(path: Path) -> bool:
    """Whether the file is a report, and so may be replaced by a newer one."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(2000)
