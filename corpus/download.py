"""Downloads that go on where a cut connection stopped them, and are checked before they get their name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from corpus import DataError, Stop, never
from job.exit_status import Interrupted
from job.files import fsync_folder

ATTEMPTS = 6  # without a byte of progress; 1 + 2 + 4 + 8 + 16 seconds between them
BLOCK = 1 << 16  # bytes; a cut loses at most one


def download(
    url: str,
    path: Path,
    *,
    headers: Mapping[str, str] | None = None,
    check: Callable[[Path], object] = lambda part: None,
    report: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Stop = never,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch ``url`` into ``path``, by way of ``.<name>.part``, which a later call goes on with.

    ``check`` raises DataError where the complete part is wrong; ``report`` gets bytes done and in total (0:
    unknown). Status 429 and 5xx and cut connections are tried again, after ``pause``. DataError where the
    server can't be reached, refuses, or keeps failing; Interrupted where ``should_stop``.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")

    def fetch(start: int) -> bool:
        """Append to the part, which has ``start`` bytes; whether it is complete then."""
        # identity: lengths and ranges must count the file's own bytes.
        ask = {**(headers or {}), "Accept-Encoding": "identity"} | (
            {"Range": f"bytes={start}-"} if start else {}
        )
        with requests.get(url, headers=ask, stream=True, timeout=(10, 30)) as answer:
            if (
                answer.status_code == 416
            ):  # nothing behind start: complete, or the part of a longer, older file
                if answer.headers.get("Content-Range") == f"bytes */{start}":
                    return True
                part.unlink()
                return False
            answer.raise_for_status()
            done = (
                start if answer.status_code == 206 else 0
            )  # a server without ranges sends all of it
            length = answer.headers.get("Content-Length")
            total = done + int(length) if length else 0
            with part.open("r+b" if done else "wb") as file:
                file.seek(done)
                for block in answer.iter_content(BLOCK):
                    file.write(block)
                    done += len(block)
                    report(done, total)
                    if should_stop():
                        raise Interrupted
                file.flush()
                os.fsync(file.fileno())
        return not total or done == total

    failures, problem = 0, ""
    while failures < ATTEMPTS:
        start = _size(part)
        try:
            if fetch(start):
                break
            problem = "the connection was cut"
        except requests.RequestException as error:
            problem = _cause(error)
            if (answer := error.response) is not None:
                problem = f"the server answers {answer.status_code} {answer.reason}"
                if answer.status_code != 429 and answer.status_code < 500:
                    raise DataError(f"{url}: {problem}") from None
            elif (
                isinstance(error, requests.ConnectionError)
                and not failures
                and _size(part) == start
            ):
                raise DataError(f"{url}: can't be reached: {problem}") from None
        failures = 1 if _size(part) > start else failures + 1
        if should_stop():
            raise Interrupted
        if failures < ATTEMPTS:
            pause(2.0 ** (failures - 1))
    else:
        raise DataError(f"{url}: {problem}, {ATTEMPTS} times; type the same later to go on")
    try:
        check(part)
    except DataError as error:
        part.unlink()
        raise DataError(f"{url}: {error}") from None
    part.replace(path)
    fsync_folder(path.parent)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cause(error: BaseException) -> str:
    """The innermost reason of a requests error, which wraps it several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
