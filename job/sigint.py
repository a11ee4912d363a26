"""Let Ctrl-C end ``python -m model.train`` without a traceback while torch is imported.

The import takes a second or more. Packages that are run with ``-m`` import this first; commands
set their own handlers later.
"""

from __future__ import annotations

import signal
import sys

# While Python imports the package of a module that it will run, argv[0] is "-m".
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
