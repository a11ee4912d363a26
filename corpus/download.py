"""Downloads that resume after a cut connection and are checked before their final rename."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from corpus import NO_MONITOR, DataError, InvalidSource, Monitor, Progress, printable
from job.files import exclusive_lock, fsync_folder

ATTEMPTS = 6  # without a byte of progress; 1 + 2 + 4 + 8 + 16 seconds between them
BLOCK_BYTES = 1 << 16  # a cut connection loses at most one
LOCK_POLL_INTERVAL_S = 0.5


@contextmanager
def wait_for_lock(folder: Path, reason: str, monitor: Monitor) -> Iterator[None]:
    """Hold the folder's lock, waiting for the process that has it; Interrupted if told to stop."""
    is_reported = False
    while True:
        with exclusive_lock(folder) as has_lock:
            if has_lock:
                yield
                return
        if not is_reported:
            monitor.report(f"{folder}: {reason}; waiting for it")
            is_reported = True
        monitor.check()
        monitor.pause(LOCK_POLL_INTERVAL_S)


def download(
    url: str,
    path: Path,
    monitor: Monitor = NO_MONITOR,
    headers: Mapping[str, str] | None = None,
    check: Callable[[Path], object] = lambda part: None,
) -> None:
    """Fetch ``url`` into ``path`` by way of ``.<name>.part``, which a later call resumes.

    ``check`` raises DataError if the complete part is wrong. Status 429, 5xx and cut connections
    are retried.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")

    def fetch(start: int) -> bool:
        """Append to the part, which has ``start`` bytes; return if it is complete then."""
        # identity: lengths and ranges must count the file's own bytes.
        request = {**(headers or {}), "Accept-Encoding": "identity"}
        if start:
            request["Range"] = f"bytes={start}-"
        with requests.get(url, headers=request, stream=True, timeout=(10, 30)) as response:
            if response.status_code == 416:  # nothing after start
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return True
                part.unlink()  # of a longer, older file
                return False
            response.raise_for_status()
            # A server without ranges sends everything.
            done = start if response.status_code == 206 else 0
            length = response.headers.get("Content-Length", "")
            total = done + int(length) if length.isdigit() else 0
            with part.open("r+b" if done else "wb") as file:
                file.seek(done)
                for block in response.iter_content(BLOCK_BYTES):
                    done += file.write(block)
                    monitor.report(Progress("downloading", done, total))
                    monitor.check()
                file.flush()
                os.fsync(file.fileno())
        return not total or done == total

    failures, problem, shown = 0, "", printable(url)
    while failures < ATTEMPTS:
        start = _size(part)
        try:
            if fetch(start):
                break
            problem = "the connection was cut"
        except ValueError as error:  # requests' InvalidURL and its kind too
            raise InvalidSource(f"{shown}: not a valid URL: {error}") from None
        except requests.RequestException as error:
            problem, is_stuck = _cause(error), _size(part) == start
            if (response := error.response) is not None:
                problem = f"the server answers {response.status_code} {response.reason}"
                if response.status_code != 429 and response.status_code < 500:
                    raise DataError(f"{shown}: {problem}") from None
            elif isinstance(error, requests.ConnectionError) and not failures and is_stuck:
                raise DataError(f"{shown}: can't be reached: {problem}") from None
        failures = 1 if _size(part) > start else failures + 1
        monitor.check()
        if failures < ATTEMPTS:
            monitor.pause(2.0 ** (failures - 1))
    else:
        again = "run the same command later to resume"
        raise DataError(f"{shown}: {problem}, {ATTEMPTS} times; {again}")
    try:
        check(part)
    except DataError as error:
        part.unlink()
        raise DataError(f"{shown}: {error}") from None
    part.replace(path)
    fsync_folder(path.parent)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a requests error, which wraps it several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
