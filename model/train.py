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
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from corpus.identity import identity, other_dataset
from corpus.meta import dataset_meta
from corpus.prepare import ensure_prepared
from corpus.run_tokenizer import keep_tokenizer, vocabulary
from corpus.shards import TokenStream
from corpus.tokenizers import Tokenizer, from_meta
from job.batch_schedule import common_sequences
from job.command_line import add_device, argument_parser, leave, load_recipe, parse, run, say
from job.display import Display
from job.exit_status import ExitStatus, Interrupted, UserError
from job.files import write_atomically
from job.finished import note_failure, show_finished
from job.locations import Locations
from job.recipe import Recipe
from job.runs import RUN_NAME, read_record
from job.session import Session, refuse_changes
from job.step_folders import steps
from model import device as devices
from model.distributed import StopSignal, World
from model.distributed import world as join_world
from model.generate import Sampling
from model.gpt import GPT
from model.initial import initialise
from model.sample import prompt_tokens, write_samples
from model.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """The entry; returns the exit status."""
    parser = argument_parser("model.train", __doc__ or "")
    parser.add_argument("--name", metavar="RUN", help="name of the run; the recipe's by default")
    add_device(parser)
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
    if recipe.train.attention != "auto" and device.type != "cuda":
        what = f"{recipe.train.attention} is one of a GPU's kernels; on {device.type} there is no choice but auto"
        raise recipe.mistake("train.attention", what)
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in any order
        torch.use_deterministic_algorithms(True)
    with join_world(device.type) as world:
        refuse_changes(folder, recipe)
        record = read_record(folder)
        if record is not None and record.status == "finished" and record.step >= recipe.train.max_steps:
            if world.is_main:
                show_finished(folder, record, arguments.json)
            return ExitStatus.DONE
        if (sequences := common_sequences(recipe)) % world.size:
            raise recipe.mistake(
                "train.global_batch_tokens",
                f"a step of {sequences} sequences can't be shared out to {world.size} processes",
            )
        stop = StopSignal(world)
        with stop.listening():
            try:
                if world.is_main:
                    ensure_prepared(recipe, locations, arguments.overrides, lambda: stop.received is not None)
            except Interrupted:
                say("stopped while the data was prepared; the same command goes on")
                return ExitStatus.UNFINISHED
            world.barrier()
            trainer = _make_trainer(recipe, arguments.overrides, locations, folder, device, world)
            return _train(trainer, stop, arguments.json)


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
    tokenizer = from_meta(meta.tokenizer)
    train, val = TokenStream(dataset, "train"), TokenStream(dataset, "val")
    data, record = identity(meta, train), read_record(folder)
    if record is not None and (why := other_dataset(folder.name, record.dataset, data)):
        raise UserError(why)
    for part, stream in (("training", train), ("validation", val)):
        if len(stream) <= recipe.model.block_size:
            raise recipe.mistake(
                "model.block_size",
                f"block_size ({recipe.model.block_size}) is longer than the {part} set of "
                f"{recipe.data.dataset} ({len(stream)} tokens)",
            )
    prompt = prompt_tokens(recipe.sample.prompt, tokenizer, recipe)  # a mistake shows now, not at the end
    torch.manual_seed(recipe.train.seed)  # the same first weights in every process
    network = GPT(recipe.model, vocabulary(recipe, tokenizer))
    is_new, said = not steps(folder), list[str]()
    if is_new and recipe.train.init_from is not None:
        # Before the run has a folder: a mistake here leaves no run that refuses the line put right.
        initialise(network, recipe.train.init_from, locations, said.append)
    session = Session(folder, recipe, "train", overrides) if world.is_main else None
    display = Display(folder / "log.txt", recipe.train.max_steps, silent=not world.is_main)
    for line in said:
        display.say(line)
    trainer = Trainer(recipe, folder, network, train, val, world, device, display, session)
    resumed, step = trainer.resume(), trainer.progress.step
    if world.sum(torch.tensor(step)).item() != step * world.size:  # a node's volume may be behind another's
        raise UserError(f"process {world.rank} found step {step}, others another one; type the same again")
    if not (resumed or is_new) and recipe.train.init_from is not None:  # none of its checkpoints is sound
        initialise(network, recipe.train.init_from, locations, display.say)
    if session is not None:
        trainer.write_sample = partial(_sample, trainer, tokenizer, prompt)
        keep_tokenizer(folder, meta.tokenizer)
        session.attempt.device = devices.device_name(device)
        session.attempt.world_size = world.size
        session.attempt.first_step = trainer.progress.step
        values = {"parameters": network.num_parameters(), "step": trainer.progress.step, "dataset": data}
        session.progress(force=True, **values)
    going = f"goes on from step {trainer.progress.step}" if resumed else "begins"
    display.say(
        f"run {folder.name} {going}: {network.num_parameters() / 1e6:.2f}M parameters, "
        f"{len(train):,} training tokens of {meta.source}, {recipe.train.max_steps} steps of "
        f"{recipe.train.global_batch_tokens:,} tokens ({world.size} x {trainer.steps.micro_batch} x "
        f"{recipe.model.block_size}, accumulated {trainer.steps.grad_accum_steps} times) on {devices.device_name(device)}"
    )
    return trainer


def _train(trainer: Trainer, stop: StopSignal, as_json: bool) -> ExitStatus:
    session, display = trainer.session, trainer.display
    try:
        with display:
            finished = trainer.train(stop)
        if finished:
            network = trainer.steps.whole_network()
            if trainer.write_sample is not None:
                display.final_plot()
                known = trainer.progress
                trainer.write_sample(network, known.step, None if as_json else sys.stdout)
                end = (known.step, known.train_seconds, known.train_loss, known.val_loss)
                display.finished(trainer.folder.name, *end)
    except BaseException as error:
        note_failure(error, display, session)
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
            print((trainer.folder / "run.json").read_text(), end="")
    return ExitStatus.DONE


def _sample(
    trainer: Trainer, tokenizer: Tokenizer, prompt: list[int], network: GPT, step: int, out: TextIO | None
) -> None:
    config = trainer.recipe.sample
    # Blocks that are compiled one by one would be so again for each position, until torch gives up at the eighth.
    with torch.compiler.set_stance("force_eager"):
        text = write_samples(network, tokenizer, prompt, config, Sampling.of(config), out)
    write_atomically(trainer.folder / "samples" / f"step_{step:08d}.txt", text)
    trainer.display.log_only(text)


if __name__ == "__main__":
    leave(main())
