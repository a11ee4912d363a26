"""An experiment logs to the trackers of its launch, like a training."""

from __future__ import annotations

import json
import sqlite3

from tests.experiment.conftest import Workspace

CODE = """
from experiment import TBLogger

def train(output_dir=".", lr=0.1):
    logger = TBLogger(output_dir)
    for step in range(1, 4):
        logger.log(step, loss=lr / step)
    return {"loss": 1.0}
"""


def test_arguments_are_the_config_and_every_step_is_sent(workspace: Workspace) -> None:
    workspace.write("mine.py", CODE)
    launch = {"target": "host", "experiment": {"trackers": {"trackio": "mine"}}}
    workspace.run("mine.py", "lr=0.5", env={"RUN_LAUNCH": json.dumps(launch)})
    store = workspace.run_folder("mine") / "trackio" / "mine.db"
    with sqlite3.connect(store) as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    assert [(step, json.loads(values)["train/loss"]) for step, values in rows] == [
        (step, 0.5 / step) for step in (1, 2, 3)
    ]
    assert json.loads(config)["lr"] == 0.5
    assert workspace.record("mine")["trackers"] == {"trackio": "offline: trackio/ in mine"}
