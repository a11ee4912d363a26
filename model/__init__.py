"""The network, the trainer, and the programs that read a trained run.

Nothing here imports click or modal.
"""

import job.sigint  # noqa: F401
