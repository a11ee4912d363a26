"""The network, the trainer, and what reads a trained run. Never imports click or modal."""

import job.quiet_interrupt  # noqa: F401
