"""One attempt of a training run: open the data, make the trainer, train, and record the end."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TextIO

import torch

from corpus.prepare import ensure_prepared
from corpus.samples import prompt_tokens, write_texts
from corpus.tasks import Task, main_scores, recipe_tasks
from corpus.tokenizers import Tokenizer, save_tokenizer, vocabulary
from corpus.verify import open_training_data
from inference.engine import generate
from inference.scoring import ending_losses
from job.arguments import report
from job.display import Display
from job.exit_status import ExitStatus, Interrupted, NonFiniteLoss, UserError
from job.files import write_atomically
from job.machine import threads_for
from job.memory import micro_batches_text
from job.paths import VolumePaths
from job.recipe import Recipe
from job.run_end import record_failure, record_stop, show_finished
from job.run_record import EndReason, RunStatus, recorded_dataset
from job.run_session import RunSession, check_run, dtype_warnings, refuse_kernels
from job.step_folders import steps
from job.training_log import TrainingLog
from model import device as devices
from model.distributed import StopSignal, World, join_world
from model.gpt import GPT
from model.load_run import load_initial_weights
from model.trainer import Trainer

# For tests: names a module with ``after_step(step, stop)``, which the trainer calls.
STEP_HOOK = "TRAIN_STEP_HOOK"


def run_attempt(
    recipe: Recipe, folder: Path, arguments: Namespace, free_cpus: float | None
) -> ExitStatus:
    """Train the run in ``folder`` until it is finished or stopped; prepare its data first.

    ``free_cpus`` is None if the user has set the number of threads.
    """
    locations = VolumePaths.current()
    locations.set_defaults()
    device = devices.pick_device(arguments.device, int(os.environ.get("LOCAL_RANK", "0")))
    refuse_kernels(recipe, device.type, devices.has_float8(device))
    if device.type == "cpu" and free_cpus is not None:
        torch.set_num_threads(threads_for(recipe, folder, free_cpus))
    if recipe.train.deterministic:
        # Otherwise cuBLAS may sum in any order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with join_world(device) as world:
        if finished := check_run(recipe, folder, world.size):
            if world.is_main:
                show_finished(
                    folder, finished, arguments.json, arguments.recipe, arguments.overrides
                )
            return ExitStatus.DONE
        stop = StopSignal(world)
        with stop.listening():
            is_resuming = bool(recorded_dataset(folder) and steps(folder))
            should_stop = lambda: stop.received is not None  # noqa: E731
            try:
                if world.is_main:
                    words = arguments.overrides
                    ensure_prepared(recipe, locations, words, should_stop, resuming=is_resuming)
            except Interrupted:
                report("stopped while preparing the data; the same command resumes")
                return ExitStatus.UNFINISHED
            world.sum(torch.zeros(1))  # wait for the data
            trainer = _make_trainer(recipe, arguments.overrides, locations, folder, world)
            if hook := os.environ.get(STEP_HOOK):
                trainer.after_step = import_module(hook).after_step
            return _train(trainer, stop, arguments.json)


def _make_trainer(
    recipe: Recipe, overrides: list[str], locations: VolumePaths, folder: Path, world: World
) -> Trainer:
    """Open the data, build the network, load its checkpoint or first weights, start the record."""
    data = open_training_data(recipe, locations.dataset(recipe.data.dataset), folder)
    tokenizer = data.tokenizer
    prompt = prompt_tokens(recipe.sample.prompt, tokenizer, recipe)  # raises for a mistake
    torch.manual_seed(recipe.train.seed)  # the same first weights in every process
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    source = recipe.train.init_from
    is_new = not steps(folder)
    messages = dtype_warnings(recipe, devices.has_bfloat16(world.device))
    if is_new and source is not None:
        # Before the run has a folder: after a mistake, no run may refuse the corrected command.
        load_initial_weights(network, tokenizer, source, locations, messages.append)
    session = RunSession(folder, recipe, "train", overrides) if world.is_main else None
    display = Display(folder / "log.txt", recipe.train.max_steps, silent=not world.is_main)
    for line in messages:
        display.report(line)
    tasks = recipe_tasks(recipe, locations.cache, tokenizer) if session is not None else {}
    ceilings = devices.ceilings(recipe.train.dtype, world.device, world.size)
    log = TrainingLog(recipe, folder, display, session, ceilings)
    trainer = Trainer(recipe, network, data, world, log)
    resumed, step = trainer.resume(), trainer.progress.step
    if world.sum(torch.tensor(step)).item() != step * world.size:
        # The copy of the volume on one machine may be older than on another.
        raise UserError(
            f"process {world.rank} found the checkpoint of step {step}, others a different one; "
            "run the command again"
        )
    if not (resumed or is_new) and source is not None:  # all of its checkpoints are damaged
        load_initial_weights(network, tokenizer, source, locations, display.report)
    if session is not None:
        trainer.write_sample = partial(_sample, trainer, tokenizer, prompt)
        trainer.evaluate_tasks = partial(_evaluate_tasks, trainer, tasks)
        save_tokenizer(folder, data.meta.tokenizer)
        session.describe(devices.device_name(world.device), world.size, step)
        # The checkpoint's progress: a kill may have ended the last attempt before its record.
        log.record(parameters=parameters, dataset=data.identity)
    action = "resuming" if resumed else "starting"
    at = f" from step {step}" if resumed else ""
    display.report(
        f"{action} run '{folder.name}'{at}: {parameters / 1e6:.2f}M parameters, "
        f"{len(data.train):,} training tokens of {data.meta.source}, {recipe.train.max_steps} "
        f"steps of {recipe.train.global_batch_tokens:,} tokens "
        f"({world.size} x {trainer.steps.micro_batch} x {recipe.model.block_size}"
        f"{micro_batches_text(trainer.steps.grad_accum_steps)}) on "
        f"{devices.device_name(world.device)}"
    )
    return trainer


def _train(trainer: Trainer, stop: StopSignal, as_json: bool) -> ExitStatus:
    """Train, write the last sample, and record the end."""
    session, display, progress = trainer.log.session, trainer.log.display, trainer.progress
    try:
        with display:
            finished = trainer.train(stop)
        if finished:
            network = trainer.steps.full_network()
            if trainer.write_sample is not None:
                display.final_plot()
                trainer.write_sample(network, progress.step, None if as_json else sys.stdout)
                seconds, loss = progress.train_seconds, progress.train_loss
                name = trainer.folder.name
                display.finished(name, progress.step, seconds, loss, progress.val_loss)
        trainer.log.close()
    except BaseException as error:
        record_failure(error, display, session)
        raise
    if not finished:
        reason = "a signal to another process" if stop.received is None else stop.received.name
        record_stop(reason, progress.step, display, session)
        return ExitStatus.UNFINISHED
    if session is not None:
        session.end(RunStatus.FINISHED, EndReason.FINISHED)
        if as_json:
            print((trainer.folder / "run.json").read_text(encoding="utf-8"), end="")
    return ExitStatus.DONE


def _evaluate_tasks(trainer: Trainer, tasks: dict[str, list[Task]], network: GPT) -> None:
    numbers = devices.autocast(trainer.config.dtype, network.device)
    with trainer.steps.eager(), numbers:
        trainer.log.record_task_scores(main_scores(tasks, partial(ending_losses, network)))


def _sample(
    trainer: Trainer,
    tokenizer: Tokenizer,
    prompt: list[int],
    network: GPT,
    step: int,
    out: TextIO | None,
) -> None:
    config = trainer.recipe.sample
    try:
        with trainer.steps.eager():
            rows = generate(network, prompt, config, tokenizer.vocab_size, tokenizer.eot)
            text = write_texts(rows, tokenizer, prompt, config.num_samples, out)
    except NonFiniteLoss as error:  # the loss decides whether that ends the run
        trainer.log.display.report(f"no sample of step {step}: {error}")
        return
    write_atomically(trainer.folder / "samples" / f"step_{step:08d}.txt", text)
    trainer.log.display.log_only(text)
    trainer.log.metrics.text("sample", text, step)
