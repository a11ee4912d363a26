"""The volumes as a container has them mounted: brought up to date, committed, read past the mount.

Standard library and modal only.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping

import modal


class MountedVolumes:
    """``names``: ``data``, ``checkpoints`` and ``cache`` → the volume's name on Modal."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.volumes = {name: modal.Volume.from_name(remote) for name, remote in names.items()}
        self._committing: threading.Thread | None = None
        self.slowest = 0.0  # seconds of a commit of the checkpoints

    def reload(self) -> None:
        """See what others have committed. Only before a file is open: else it fails, and that is said."""
        for name, volume in self.volumes.items():
            try:
                volume.reload()
            except Exception as error:
                print(f"runner: volume {name} was not reloaded: {error}", file=sys.stderr, flush=True)

    def commit(self, name: str) -> None:
        """Let others see what was written here. A failure is said: it must not end the job."""
        began = time.monotonic()
        try:
            self.volumes[name].commit()
        except Exception as error:
            # The commit is done before the reload behind it, which open files of the running job prevent.
            if "open" not in str(error):
                print(f"runner: volume {name} was not committed: {error}", file=sys.stderr, flush=True)
        if name == "checkpoints":
            self.slowest = max(self.slowest, time.monotonic() - began)

    def commit_in_background(self, *names: str) -> bool:
        """False where the commit before is still under way."""
        if self._committing is not None and self._committing.is_alive():
            return False
        self._committing = threading.Thread(target=lambda: [*map(self.commit, names)], daemon=True)
        self._committing.start()
        return True

    def wait(self, seconds: float) -> None:
        """Until the commit in the background is done, at most so long."""
        if self._committing is not None:
            self._committing.join(seconds)

    def read(self, name: str, path: str) -> bytes:
        """A small file as it is committed now: past the mount, which would need a reload. Raises what modal
        raises where it isn't there."""
        return b"".join(self.volumes[name].read_file(path))
