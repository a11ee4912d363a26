"""Train a run, or resume it.

    python -m model.train                     # configs/quickstart.yaml, on any machine
    python -m model.train shakespeare_char_cpu lr=1e-3 --name lr1
    torchrun --standalone --nproc-per-node=8 -m model.train gpt2_124m

Prepares the data first if it is missing, and ends with a sample of the network's text.
Exit status: 0 done, 1 an error, 2 a mistake in the command, 100 the training failed,
101 told to stop (the same command resumes).
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TextIO

import torch

from corpus.dataset import TokenStream, dataset_meta, other_dataset
from corpus.prepare import ensure_prepared
from corpus.tokenizers import Tokenizer, from_meta, save_tokenizer, vocabulary
from corpus.verify import dataset_identity
from job.arguments import add_device, argument_parser, leave, load_recipe, parse, run, say
from job.display import Display
from job.exit_status import ExitStatus, Interrupted, UserError
from job.files import write_atomically
from job.paths import VolumePaths
from job.recipe import Recipe
from job.run_end import note_failure, show_finished
from job.run_record import RUN_NAME, RunStatus, read_record
from job.run_session import RunSession, refuse_changes, refuse_lost_records
from job.schedules import common_sequences
from job.step_folders import steps
from job.training_errors import NonFiniteLoss
from model import device as devices
from model.distributed import StopSignal, World, join_world
from model.gpt import GPT
from model.load_run import load_initial_weights
from model.sample import prompt_tokens, write_samples
from model.trainer import Trainer

# Names a module with ``after_step(step, stop)``, which the trainer calls after each step. For tests.
STEP_HOOK = "TRAIN_STEP_HOOK"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parser = argument_parser("model.train", __doc__ or "")
    parser.add_argument("--name", metavar="RUN", help="name of the run (default: the recipe's)")
    add_device(parser)
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    recipe = load_recipe(arguments)
    locations = VolumePaths.current()
    locations.set_defaults()
    name = arguments.name or recipe.name
    if not RUN_NAME.match(name):
        raise recipe.mistake(
            "name", f"invalid run name {name!r}; use letters, digits, '.', '_' and '-'"
        )
    folder = locations.run(name)
    device = devices.pick_device(arguments.device, int(os.environ.get("LOCAL_RANK", "0")))
    if recipe.train.attention != "auto" and device.type != "cuda":
        raise recipe.mistake(
            "train.attention",
            f"{recipe.train.attention} is a GPU kernel; on {device.type} use auto",
        )
    if recipe.train.deterministic:
        # Otherwise cuBLAS may sum in any order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with join_world(device.type) as world:
        refuse_changes(folder, recipe)
        record = read_record(folder)
        refuse_lost_records(folder)
        is_finished = record is not None and record.status == RunStatus.FINISHED
        if record is not None and is_finished and record.step >= recipe.train.max_steps:
            if world.is_main:
                show_finished(folder, record, arguments.json)
            return ExitStatus.DONE
        if (sequences := common_sequences(recipe)) % world.size:
            raise recipe.mistake(
                "train.global_batch_tokens",
                f"a step of {sequences} sequences can't be divided among {world.size} processes",
            )
        stop = StopSignal(world)
        with stop.listening():
            is_resuming = record is not None and bool(record.dataset and steps(folder))
            should_stop = lambda: stop.received is not None  # noqa: E731
            try:
                if world.is_main:
                    words = arguments.overrides
                    ensure_prepared(recipe, locations, words, should_stop, resuming=is_resuming)
            except Interrupted:
                say("stopped while preparing the data; the same command resumes")
                return ExitStatus.UNFINISHED
            world.barrier()
            trainer = _make_trainer(recipe, arguments.overrides, locations, folder, device, world)
            if hook := os.environ.get(STEP_HOOK):
                trainer.after_step = import_module(hook).after_step
            return _train(trainer, stop, arguments.json)


def _make_trainer(
    recipe: Recipe,
    overrides: list[str],
    locations: VolumePaths,
    folder: Path,
    device: torch.device,
    world: World,
) -> Trainer:
    """Open the data, build the network, load its checkpoint or first weights, start the record."""
    dataset = locations.dataset(recipe.data.dataset)
    meta = dataset_meta(dataset)
    tokenizer = from_meta(meta.tokenizer)
    train, val = TokenStream(dataset, "train"), TokenStream(dataset, "val")
    data, record = dataset_identity(dataset, meta), read_record(folder)
    is_recorded = record is not None and bool(record.dataset or steps(folder))
    if record and is_recorded and (why := other_dataset(folder.name, record.dataset, data)):
        raise UserError(why)
    for part, stream in (("training", train), ("validation", val)):
        if len(stream) <= recipe.model.block_size:
            raise recipe.mistake(
                "model.block_size",
                f"block_size ({recipe.model.block_size}) is longer than the {part} set of "
                f"{recipe.data.dataset} ({len(stream)} tokens)",
            )
    prompt = prompt_tokens(recipe.sample.prompt, tokenizer, recipe)  # a mistake ends here
    torch.manual_seed(recipe.train.seed)  # the same first weights in every process
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    source = recipe.train.init_from
    is_new, messages = not steps(folder), list[str]()
    if is_new and source is not None:
        # Before the run has a folder: after a mistake, no run may refuse the corrected command.
        load_initial_weights(network, tokenizer, source, locations, messages.append)
    session = RunSession(folder, recipe, "train", overrides) if world.is_main else None
    display = Display(folder / "log.txt", recipe.train.max_steps, silent=not world.is_main)
    for line in messages:
        display.say(line)
    trainer = Trainer(recipe, folder, network, train, val, world, device, display, session)
    resumed, step = trainer.resume(), trainer.progress.step
    if world.sum(torch.tensor(step)).item() != step * world.size:
        # The copy of the volume on one machine may be older than on another.
        raise UserError(
            f"process {world.rank} found the checkpoint of step {step}, other processes another "
            f"one; run the command again"
        )
    if not (resumed or is_new) and source is not None:  # all of its checkpoints are damaged
        load_initial_weights(network, tokenizer, source, locations, display.say)
    if session is not None:
        trainer.write_sample = partial(_sample, trainer, tokenizer, prompt)
        save_tokenizer(folder, meta.tokenizer)
        session.attempt.device = devices.device_name(device)
        session.attempt.world_size = world.size
        session.attempt.first_step = step
        # All of the checkpoint's progress: a kill may have ended the last attempt before its record.
        trainer.record(parameters=network.num_parameters(), dataset=data)
    action = f"resumes from step {step}" if resumed else "starts"
    display.say(
        f"run {folder.name} {action}: {network.num_parameters() / 1e6:.2f}M parameters, "
        f"{len(train):,} training tokens of {meta.source}, {recipe.train.max_steps} steps of "
        f"{recipe.train.global_batch_tokens:,} tokens ({world.size} x {trainer.steps.micro_batch} "
        f"x {recipe.model.block_size}, accumulated {trainer.steps.grad_accum_steps} times) on "
        f"{devices.device_name(device)}"
    )
    return trainer


def _train(trainer: Trainer, stop: StopSignal, as_json: bool) -> ExitStatus:
    """Train, write the last sample, and record the end."""
    session, display = trainer.session, trainer.display
    try:
        with display:
            finished = trainer.train(stop)
        if finished:
            network = trainer.steps.full_network()
            if trainer.write_sample is not None:
                display.final_plot()
                p = trainer.progress
                trainer.write_sample(network, p.step, None if as_json else sys.stdout)
                name = trainer.folder.name
                display.finished(name, p.step, p.train_seconds, p.train_loss, p.val_loss)
    except BaseException as error:
        note_failure(error, display, session)
        raise
    if not finished:
        reason = "a signal to another process" if stop.received is None else stop.received.name
        display.say(
            f"stopped by {reason}; the checkpoint of step {trainer.progress.step} is written, "
            f"the same command resumes from it"
        )
        if session is not None:
            session.end(RunStatus.UNFINISHED, reason)
        return ExitStatus.UNFINISHED
    if session is not None:
        session.end(RunStatus.FINISHED, "finished")
        if as_json:
            print((trainer.folder / "run.json").read_text(encoding="utf-8"), end="")
    return ExitStatus.DONE


def _sample(
    trainer: Trainer,
    tokenizer: Tokenizer,
    prompt: list[int],
    network: GPT,
    step: int,
    out: TextIO | None,
) -> None:
    config = trainer.recipe.sample
    # Otherwise compiled blocks are compiled again for each position, up to torch's limit of eight.
    try:
        with torch.compiler.set_stance("force_eager"):
            text = write_samples(network, tokenizer, prompt, config, out)
    except NonFiniteLoss as error:  # the loss decides whether that ends the run
        trainer.display.say(f"no sample of step {step}: {error}")
        return
    write_atomically(trainer.folder / "samples" / f"step_{step:08d}.txt", text)
    trainer.display.log_only(text)


if __name__ == "__main__":
    leave(main())
