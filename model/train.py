"""Train a run, or go on with it.

    python -m model.train                                    # configs/quickstart.yaml, on any machine
    python -m model.train shakespeare_char_cpu lr=1e-3 --name lr1
    torchrun --standalone --nproc-per-node=8 -m model.train gpt2_124m

Prepares the data first where it is missing; ends with a sample of what the network writes.
Exit status: 0 done, 1 an error, 2 a mistake in the command, 100 the training failed,
101 told to stop (the same command goes on).
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch

from model import data
from model import device as devices
from model.command_line import argument_parser, load_recipe, parse, run
from model.data.meta import dataset_meta
from model.data.shards import TokenStream
from model.data.tokenizers import Tokenizer, from_meta
from model.display import Display, duration
from model.distributed import StopSignal, World
from model.distributed import world as join_world
from model.exit_status import ExitStatus, UserError
from model.files import write_atomically
from model.generate import Sampling
from model.gpt import GPT
from model.initial import initialise
from model.locations import Locations
from model.prepare import ensure_prepared
from model.recipe import Recipe
from model.runs import RUN_NAME, RunRecord, read_record
from model.sample import prompt_tokens, write_samples
from model.session import Session, refuse_changes
from model.trained import keep_tokenizer, say, vocabulary
from model.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """The entry; returns the exit status."""
    parser = argument_parser("train", __doc__ or "")
    parser.add_argument("--name", metavar="RUN", help="name of the run; the recipe's by default")
    parser.add_argument("--device", choices=devices.KINDS, help="the best one there by default")
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    recipe = load_recipe(arguments)
    locations = Locations.current()
    locations.set_defaults()
    name = arguments.name or recipe.name
    if not RUN_NAME.match(name):
        raise recipe.mistake("name", f"{name!r}: a run's name is letters, digits, '.', '_' and '-'")
    folder = locations.run(name)
    device = devices.pick_device(arguments.device, int(os.environ.get("LOCAL_RANK", "0")))
    with join_world(device.type) as world:
        refuse_changes(folder, recipe)
        record = read_record(folder)
        if record is not None and record.status == "finished":
            if world.is_main:
                _show_finished(folder, record, arguments.json)
            return ExitStatus.DONE
        if recipe.sequences_per_step % world.size:
            raise recipe.mistake(
                "train.global_batch_tokens",
                f"a step of {recipe.sequences_per_step} sequences can't be shared out to {world.size} processes",
            )
        stop = StopSignal(world)
        with stop.listening():
            try:
                if world.is_main:
                    ensure_prepared(recipe, locations, should_stop=lambda: stop.received is not None)
            except data.Interrupted:
                say("stopped while the data was prepared; the same command goes on")
                return ExitStatus.UNFINISHED
            world.barrier()
            trainer, tokenizer = _make_trainer(recipe, arguments.overrides, locations, folder, device, world)
            return _train(trainer, tokenizer, stop, arguments.json)


def _make_trainer(
    recipe: Recipe,
    overrides: list[str],
    locations: Locations,
    folder: Path,
    device: torch.device,
    world: World,
) -> tuple[Trainer, Tokenizer]:
    dataset = locations.dataset(recipe.data.dataset)
    tokenizer = from_meta(dataset_meta(dataset).tokenizer)
    train, val = TokenStream(dataset, "train"), TokenStream(dataset, "val")
    for part, stream in (("training", train), ("validation", val)):
        if len(stream) <= recipe.model.block_size:
            raise recipe.mistake(
                "model.block_size",
                f"block_size ({recipe.model.block_size}) is longer than the {part} set of "
                f"{recipe.data.dataset} ({len(stream)} tokens)",
            )
    session = Session(folder, recipe, "train", overrides) if world.is_main else None
    display = Display(folder / "log.txt", recipe.train.max_steps, silent=not world.is_main)
    torch.manual_seed(recipe.train.seed)  # the same first weights in every process
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    trainer = Trainer(recipe, folder, network, train, val, world, device, display, session)
    resumed = trainer.resume()
    if not resumed and recipe.train.init_from is not None:
        initialise(network, recipe.train.init_from, locations, display.say)
    if session is not None:
        keep_tokenizer(folder, dataset_meta(dataset).tokenizer)
        session.attempt.device = devices.device_name(device)
        session.attempt.world_size = world.size
        session.attempt.first_step = trainer.progress.step
        session.progress(force=True, parameters=network.num_parameters(), step=trainer.progress.step)
    going = f"goes on from step {trainer.progress.step}" if resumed else "begins"
    display.say(
        f"run {folder.name} {going}: {network.num_parameters() / 1e6:.2f}M parameters, "
        f"{len(train):,} training tokens, {recipe.train.max_steps} steps of "
        f"{recipe.train.global_batch_tokens:,} tokens ({world.size} x {trainer.micro_batch} x "
        f"{recipe.model.block_size}, accumulated {trainer.grad_accum_steps} times) on {devices.device_name(device)}"
    )
    return trainer, tokenizer


def _train(trainer: Trainer, tokenizer: Tokenizer, stop: StopSignal, as_json: bool) -> ExitStatus:
    session, display, folder = trainer.session, trainer.display, trainer.folder
    try:
        with display:
            finished = trainer.train(stop)
        if finished and session is not None:
            _conclude(trainer, tokenizer, None if as_json else sys.stdout)
    except BaseException as error:
        display.log_only(f"failed: {type(error).__name__}: {error}")
        if session is not None:
            named = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            session.end("failed", named)
        raise
    if not finished:
        reason = stop.received.name if stop.received is not None else "another process was told to stop"
        display.say(
            f"stopped by {reason}; the checkpoint of step {trainer.progress.step} is written, "
            f"the same command goes on from it"
        )
        if session is not None:
            session.end("unfinished", reason)
        return ExitStatus.UNFINISHED
    if session is not None:
        session.end("finished", "finished")
        if as_json:
            print((folder / "run.json").read_text(), end="")
    return ExitStatus.DONE


def _conclude(trainer: Trainer, tokenizer: Tokenizer, out: TextIO | None) -> None:
    """The curve, a sample and the result, shown and kept."""
    display, progress, config = trainer.display, trainer.progress, trainer.recipe.sample
    display.final_plot()
    prompt = prompt_tokens(config.prompt, tokenizer, trainer.recipe)
    text = write_samples(trainer.network, tokenizer, prompt, config, Sampling.of(config), out)
    write_atomically(trainer.folder / "samples" / f"step_{progress.step:08d}.txt", text)
    display.log_only(text)
    val = f", validation loss {progress.val_loss:.4f}" if progress.val_loss is not None else ""
    display.say(
        f"run {trainer.folder.name} is finished: {progress.step} steps in "
        f"{duration(progress.train_seconds)} of training, loss {progress.train_loss:.4f}{val}"
    )
    display.say(f"write more: runner host sample --name {trainer.folder.name} prompt='...'")


def _show_finished(folder: Path, record: RunRecord, as_json: bool) -> None:
    val = f", validation loss {record.val_loss:.4f}" if record.val_loss is not None else ""
    say(f"run {folder.name} is finished already: {record.step} steps{val}")
    samples = sorted((folder / "samples").glob("step_*.txt"))
    if as_json:
        print((folder / "run.json").read_text(), end="")
    elif samples:
        say(f"what it wrote ({samples[-1]}):")
        print(samples[-1].read_text())
    say(f"train another: runner host train --name {folder.name}-2")


if __name__ == "__main__":
    sys.exit(main())
