"""A headless Chromium, controlled with its DevTools protocol over pipes."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.waiting import wait_for

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
    """Render the page in the browser's light or dark mode."""
    with Browser() as browser:
        browser.open(page.as_uri(), dark, size)
        wait_for(
            lambda: browser.evaluate("location.protocol + document.readyState") == "file:complete"
        )
        dom = browser.evaluate("document.documentElement.outerHTML")
        return Rendering(dom, browser.screenshot(), browser.console)


class Browser:
    """A page. ``console`` has the lines of its console, ``errors`` the errors among them.

    Skips the test if Chromium is not installed.
    """

    def __init__(self) -> None:
        found = filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *BROWSERS)))
        program = next(found, None)
        if program is None:
            pytest.skip("Chromium is not installed; apt-get install chromium-headless-shell")
        self.console: list[str] = []
        self.errors: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (to_read, self._write), (self._read, to_write) = os.pipe(), os.pipe()
        # The browser reads commands from descriptor 3 and writes answers to 4.
        script = f'exec 3<&{to_read} 4>&{to_write}; exec "$@"'
        options = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            "--remote-debugging-pipe",
        )
        self._process = subprocess.Popen(
            ["bash", "-c", script, "-", program, *options, f"--user-data-dir={self._profile.name}"],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", ""

    def __enter__(self) -> Browser:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def open(self, url: str, dark: bool = False, size: tuple[int, int] = (800, 600)) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        self._call("Page.navigate", url=url)

    def screenshot(self) -> Image.Image:
        data = self._call("Page.captureScreenshot")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def evaluate(self, code: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"(document.querySelector({selector!r}) || {{}}).textContent"))

    def type(self, selector: str, text: str) -> None:
        """Replace a field's text, with the input events of the browser."""
        self.evaluate(f"document.querySelector({selector!r}).select()")
        self.evaluate(f"document.querySelector({selector!r}).focus()")
        self._call("Input.insertText", text=text)
        self.evaluate("document.activeElement.blur()")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                received = os.read(self._read, 1 << 16)
                assert received, "the browser ended"
                self._buffer += received
            text, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._record(answer)

    def _record(self, event: dict[str, Any]) -> None:
        params, method = event.get("params", {}), event.get("method")
        if method == "Runtime.exceptionThrown":
            self.console.append(str(params))
            self.errors.append(str(params))
        elif method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(value.get("value")) for value in params["args"]))
        elif method == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
            is_refusal = "401" in params["entry"]["text"]  # expected before the key is entered
            if params["entry"]["level"] == "error" and not is_refusal:
                self.errors.append(params["entry"]["text"])
