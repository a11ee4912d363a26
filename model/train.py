"""Train a run, or go on with it.

    python -m model.train                                    # configs/quickstart.yaml, on any machine
    python -m model.train shakespeare_char_cpu lr=1e-3 --name lr1
    torchrun --standalone --nproc-per-node=8 -m model.train gpt2_124m

Prepares the data first where it is missing; ends with a sample of what the network writes.
Exit status: 0 done, 1 an error, 2 a mistake in the command, 100 the training failed,
101 told to stop (the same command goes on).
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import torch

from model import device as devices
from model.command_line import parse
from model.data.prepare import dataset_meta
from model.data.shards import TokenStream
from model.display import Display, duration
from model.distributed import StopSignal, World
from model.distributed import world as join_world
from model.exit_status import ExitStatus
from model.generate import Sampling
from model.gpt import GPT
from model.initial import initialise
from model.locations import Locations
from model.prepare import Interrupted, ensure_prepared
from model.recipe import Recipe, RecipeError
from model.runs import RUN_NAME, read_record
from model.sample import prompt_tokens, write_samples
from model.session import RunRefused, Session, refuse_changes
from model.trained import say, vocabulary
from model.trainer import Diverged, Trainer


def main(argv: list[str] | None = None) -> int:
    """The entry; returns the exit status."""
    arguments, recipe, overrides = parse(__doc__ or "", argv)
    locations = Locations.current()
    locations.set_defaults()
    name = arguments.name or recipe.name
    if not RUN_NAME.match(name):
        say(
            f"--name {name!r}: a run's name is letters, digits, '.', '_' and '-', and begins with one of the first two"
        )
        return ExitStatus.USAGE
    folder = locations.run(name)
    try:
        device = devices.pick_device(arguments.device, int(os.environ.get("LOCAL_RANK", "0")))
        with join_world(device.type) as world:
            return _train(arguments, recipe, overrides, locations, folder, device, world)
    except RecipeError as error:
        say(str(error))
        return ExitStatus.USAGE
    except (RunRefused, RuntimeError, ValueError, OSError) as error:
        if arguments.debug or not isinstance(error, RunRefused | ValueError | OSError):
            raise
        say(str(error))
        return ExitStatus.ERROR


def _train(
    arguments: Namespace,
    recipe: Recipe,
    overrides: list[str],
    locations: Locations,
    folder: Path,
    device: torch.device,
    world: World,
) -> int:
    refuse_changes(folder, recipe)
    record = read_record(folder)
    if record is not None and record.status == "finished":
        if world.is_main:
            _show_finished(folder, arguments.json)
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
        except Interrupted as error:
            say(str(error))
            return ExitStatus.UNFINISHED
        world.barrier()
        trainer = _make_trainer(recipe, overrides, locations, folder, device, world)
        return _run(trainer, stop, recipe, locations, arguments)


def _make_trainer(
    recipe: Recipe,
    overrides: list[str],
    locations: Locations,
    folder: Path,
    device: torch.device,
    world: World,
) -> Trainer:
    dataset = locations.dataset(recipe.data.dataset)
    meta = dataset_meta(dataset)
    assert meta is not None  # ensure_prepared made it
    train, val = TokenStream(dataset, "train"), TokenStream(dataset, "val")
    for part, stream in (("training", train), ("validation", val)):
        if len(stream) <= recipe.model.block_size:
            raise recipe.mistake(
                "model.block_size",
                f"block_size ({recipe.model.block_size}) is longer than the {part} set of "
                f"{recipe.data.dataset} ({len(stream)} tokens)",
            )
    tokenizer = meta.load_tokenizer()
    session = Session(folder, recipe, "train", overrides) if world.is_main else None
    display = Display(folder / "log.txt", recipe.train.max_steps, silent=not world.is_main)
    torch.manual_seed(recipe.train.seed)  # the same first weights in every process
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    trainer = Trainer(recipe, folder, network, train, val, world, device, display, session)
    resumed = trainer.resume()
    if not resumed and recipe.train.init_from is not None:
        initialise(network, recipe.train.init_from, locations, display.say)
    if session is not None:
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
    return trainer


def _run(
    trainer: Trainer, stop: StopSignal, recipe: Recipe, locations: Locations, arguments: Namespace
) -> int:
    session, display, folder = trainer.session, trainer.display, trainer.folder
    try:
        with display:
            finished = trainer.train(stop)
    except BaseException as error:
        if session is not None:
            reason = str(error) if isinstance(error, Diverged) else f"{type(error).__name__}: {error}"
            session.end("failed", reason)
        if isinstance(error, Diverged):
            display.say(f"stopped: {error}")
            return ExitStatus.JOB_FAILED
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
        display.final_plot()
        meta = dataset_meta(locations.dataset(recipe.data.dataset))
        assert meta is not None
        tokenizer = meta.load_tokenizer()
        config = recipe.sample
        text = write_samples(
            trainer.network,
            tokenizer,
            prompt_tokens(config.prompt, tokenizer, recipe),
            config,
            Sampling.of(config),
            None if arguments.json else sys.stdout,
        )
        path = folder / "samples" / f"step_{trainer.progress.step:08d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        display.log_only(text)
        val = trainer.progress.val_loss
        display.say(
            f"run {folder.name} is finished: {trainer.progress.step} steps in "
            f"{duration(trainer.progress.train_seconds)} of training, "
            f"loss {trainer.progress.train_loss:.4f}"
            + (f", validation loss {val:.4f}" if val is not None else "")
        )
        display.say(f"write more: runner host sample --name {folder.name} prompt='...'")
        session.end("finished", "finished")
        if arguments.json:
            print((folder / "run.json").read_text(), end="")
    return ExitStatus.DONE


def _show_finished(folder: Path, as_json: bool) -> None:
    record = read_record(folder)
    assert record is not None
    val = f", validation loss {record.val_loss:.4f}" if record.val_loss is not None else ""
    say(f"run {folder.name} is finished already: {record.step} steps{val}. What it wrote:")
    if as_json:
        print(json.dumps(json.loads((folder / "run.json").read_text())))
    else:
        samples = sorted((folder / "samples").glob("step_*.txt"))
        if samples:
            print(samples[-1].read_text())
    say(f"train another: runner host train --name {folder.name}-2")


if __name__ == "__main__":
    sys.exit(main())
