"""What runs inside a job: recipes, data, the network, the trainer. Never imports click or modal."""

import job.quiet_interrupt  # noqa: F401
