"""A headless Chromium that looks at a page."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """What the browser made of a page: the tree as HTML, the picture, what the console said."""

    dom: str
    picture: Image.Image
    console: list[str]

    def pixels(self, color: tuple[int, int, int], tolerance: int = 12) -> int:
        """How many are of that colour."""
        return sum(
            count
            for count, found in self.picture.getcolors(2**24)
            if all(abs(a - b) <= tolerance for a, b in zip(found, color, strict=True))
        )


def look_at(page: Path, dark: bool = False, size: tuple[int, int] = (1100, 1500)) -> Seen:
    """Open the page, and skip the test where there is no browser."""
    program = next(
        filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *PROGRAMS))), None
    )
    if program is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium-headless-shell")
    picture = page.with_suffix(".png")
    done = subprocess.run(
        [
            program,
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--enable-logging=stderr",
            ),
            f"--user-data-dir={page.parent / 'browser'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={size[0]},{size[1]}",
            *("--dump-dom", f"--screenshot={picture}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)
    return Seen(done.stdout, Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"), console)
