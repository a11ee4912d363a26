"""A training without a network: record, log, metrics and checkpoints, but no torch.

`light_cloud` replaces model/attempt.py with this file, for tests that start, stop and watch
attempts. Importing torch takes most of the time of a training of sixty steps.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from importlib import import_module
from pathlib import Path

from corpus.prepare import ensure_prepared
from job.display import Display
from job.exit_status import ExitStatus
from job.paths import VolumePaths
from job.recipe import Recipe
from job.run_end import StopRequest, record_stop, show_finished
from job.run_record import RunStatus
from job.run_session import RunSession, check_run
from job.schedules import events_after, learning_rate, tokens_before
from job.step_folders import new_checkpoint, prune, steps
from job.training_log import TrainingLog

LOSS = 2.5


def run_attempt(
    recipe: Recipe, folder: Path, arguments: Namespace, free_cpus: float | None
) -> ExitStatus:
    """Count the steps of the run in ``folder`` until it is finished or stopped."""
    if finished := check_run(recipe, folder, 1):
        show_finished(folder, finished, arguments.json, arguments.recipe, arguments.overrides)
        return ExitStatus.DONE
    first = max(steps(folder), default=0)
    stop, locations = StopRequest(), VolumePaths.current()
    with stop.listening():
        ensure_prepared(recipe, locations, arguments.overrides, stop.is_set, resuming=first > 0)
        session = RunSession(folder, recipe, "train", arguments.overrides)
        display = Display(folder / "log.txt", recipe.train.max_steps)
        log = TrainingLog(recipe, folder, display, session, [None, None])
        if first:
            log.progress.step = log.saved_step = first
        session.describe("cpu", 1, first)
        action, at = ("resuming", f" from step {first}") if first else ("starting", "")
        display.report(f"{action} run '{folder.name}'{at}")
        _count_steps(log, stop)
        log.close()
    step = log.progress.step
    if step < recipe.train.max_steps:
        record_stop(stop.received.name if stop.received else "", step, display, session)
        return ExitStatus.UNFINISHED
    display.finished(folder.name, step, log.progress.train_seconds, LOSS, LOSS)
    session.end(RunStatus.FINISHED, "finished")
    return ExitStatus.DONE


def _count_steps(log: TrainingLog, stop: StopRequest) -> None:
    hook = import_module(os.environ["TRAIN_STEP_HOOK"]).after_step
    config, progress = log.config, log.progress
    log.start(eval_tokens=1)
    while progress.step < config.max_steps and not stop.is_set():
        progress.step += 1
        hook(progress.step, stop)
        progress.tokens = tokens_before(config, progress.step)
        log.record_steps([LOSS], [1.0], [learning_rate(progress.step, config)], log.lap(), 1.0)
        due = events_after(progress.step, config)
        if due.evaluate:
            log.record_evaluation(LOSS, tokens=1)
        if due.save:
            _save(log)
    if progress.step != log.saved_step:
        _save(log)


def _save(log: TrainingLog) -> None:
    step = log.progress.step
    log.record_save_start()
    with new_checkpoint(log.folder, step, 100) as folder:
        for name in ("model.safetensors", "optimizer.safetensors"):
            (folder / name).write_bytes(step.to_bytes(8, "big"))
        (folder / "state.json").write_text(json.dumps({"step": step}))
    prune(log.folder, log.config.keep_last, set())
    log.display.log_only(f"checkpoint of step {step} written")
