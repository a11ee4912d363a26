"""Files are written in UTF-8 in any locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LOG = """
import sys
from pathlib import Path
from job.display import Display
Display(Path(sys.argv[1]), 10).report("4 \\u00d7 \\u00fc")
"""


def test_a_log_is_utf8_in_an_ascii_locale(tmp_path: Path) -> None:
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    path = tmp_path / "log.txt"
    done = subprocess.run(
        [sys.executable, "-c", LOG, str(path)],
        env={**os.environ, **ascii_locale, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert path.read_text(encoding="utf-8").endswith("4 × ü\n")
