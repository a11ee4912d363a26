"""Render a page in a headless Chromium."""

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

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@dataclass
class Rendering:
    """A rendered page: its DOM as HTML, a screenshot, and the lines of the console."""

    dom: str
    screenshot: Image.Image
    console: list[str]

    def pixels(self, color: tuple[int, int, int], tolerance: int = 12) -> int:
        """Return the number of pixels of that color."""
        return sum(
            count
            for count, other in self.screenshot.getcolors(2**24)
            if all(abs(a - b) <= tolerance for a, b in zip(other, color, strict=True))
        )


def render(page: Path, dark: bool = False, size: tuple[int, int] = (1100, 1500)) -> Rendering:
    """Render the page; skip the test without a browser."""
    program = next(
        filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *BROWSERS))), None
    )
    if program is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium-headless-shell")
    screenshot = page.with_suffix(".png")
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
            *("--dump-dom", f"--screenshot={screenshot}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)
    image = Image.open(io.BytesIO(screenshot.read_bytes())).convert("RGB")
    return Rendering(done.stdout, image, console)
