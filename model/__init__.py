"""The network, the trainer, and the programs that read a trained run.

This package imports neither click nor modal.
"""

import signal
import sys

import job  # noqa: F401  # sets GOMP_SPINCOUNT before torch is imported

# Ctrl-C must end ``python -m model.train`` without a traceback while torch is imported, which takes
# a second or more; commands set their own handlers later. While Python imports the package of a
# module that it will run, argv[0] is "-m".
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
