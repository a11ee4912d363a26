"""A Ctrl-C while `python -m model.train` imports torch, a second or more, ends it without a traceback.

Imported first by packages that are run so; the commands set handlers of their own once they have something to lose.
"""

from __future__ import annotations

import signal
import sys

# Python's name for the program while it imports the package of a module that it is to run.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
