"""A TRAIN_STEP_HOOK that sends the trainer a request after step 12: the JSON in LIVE_REQUEST."""

import os
from pathlib import Path

from job import live_request
from model.distributed import StopSignal

live_request.POLL_INTERVAL_S = 0


def after_step(step: int, stop: StopSignal) -> None:
    if step == 12 and os.environ.get("RANK", "0") == "0":
        Path(os.environ["REQUEST_FILE"]).write_text(os.environ["LIVE_REQUEST"])
