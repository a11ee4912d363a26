"""Compute loss, perplexity and bits per byte of a run's newest checkpoint on its validation set.

python -m model.evaluate --name quickstart
python -m model.evaluate --name quickstart eval_tokens=65536 --json
python -m model.evaluate --multiple-choice hellaswag_val.jsonl      # see model/multiple_choice.py
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus import DataError
from corpus.dataset import TokenStream, dataset_meta
from corpus.tokenizers import same_tokens
from corpus.verify import require_dataset_of_run, verify_shards
from job.arguments import parse_run, run
from job.exit_status import ExitStatus
from job.format import json_text
from job.paths import VolumePaths
from job.run_record import read_record
from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.distributed import World
from model.load_run import TrainedRun, open_run
from model.multiple_choice import accuracies, ending_losses, read_questions

# Sequences in a batch. Few, because nothing is compiled and all logits are in memory: 1.6 GB in
# float32 for 8 x 1,024 tokens.
BATCH_SIZE = 8
MAX_EXPONENT = 709  # a float64 overflows above; a diverged run can have such a loss


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    return run(_main, parse_run("evaluate", __doc__ or "", argv, multiple_choice=True))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, arguments.device)
    started = time.perf_counter()
    if arguments.multiple_choice:
        measured = _multiple_choice(trained, Path(arguments.multiple_choice))
    else:
        measured = _loss(trained, arguments)
    seconds = round(time.perf_counter() - started, 2)
    result = {"run": trained.folder.name, "step": trained.step, **measured, "seconds": seconds}
    if arguments.json:
        print(json_text(result))
    else:
        for key, value in result.items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{key:26} {'not computable' if value is None else shown}")
    return ExitStatus.DONE


def _multiple_choice(trained: TrainedRun, path: Path) -> dict[str, Any]:
    network, device = trained.network, trained.network.wte.weight.device
    questions = read_questions(path, trained.tokenizer, network.config.block_size)
    with devices.autocast(trained.recipe.train.dtype, device):
        losses = ending_losses(network, questions, BATCH_SIZE)
    return accuracies(questions, losses)


def _loss(trained: TrainedRun, arguments: Namespace) -> dict[str, Any]:
    config = trained.recipe.train
    # The recipe's eval_tokens limits the evaluations of a training run, not this one; an
    # eval_tokens among the arguments does.
    is_limited = any(
        word.lstrip("-").startswith(("eval_tokens=", "train.eval_tokens="))
        for word in arguments.overrides
    )
    limit = config.eval_tokens if is_limited else None
    folder = VolumePaths.current().dataset(trained.recipe.data.dataset)
    _check_dataset(trained, folder, arguments.overrides)
    val = TokenStream(folder, "val")
    if len(val) <= trained.recipe.model.block_size:
        raise DataError(
            f"{folder}: its validation set ({len(val)} tokens) is shorter than the network's context "
            f"({trained.recipe.model.block_size}); give more text"
        )
    device = trained.network.wte.weight.device
    batches = TokenBatches(val, trained.recipe.model.block_size, device)
    with devices.autocast(config.dtype, device):
        loss, tokens = validation_loss(trained.network, batches, limit, BATCH_SIZE, World())
    text_bytes = int(trained.tokenizer.byte_lengths()[val.slice(1, tokens + 1)].sum())
    return {
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < MAX_EXPONENT else None,
        # nats per token → bits per byte of text, comparable across tokenizers
        "bits_per_byte": loss / math.log(2) * tokens / text_bytes if text_bytes else None,
    }


def _check_dataset(trained: TrainedRun, folder: Path, overrides: Sequence[str]) -> None:
    """Raise DataError unless the dataset is the run's, or was named and has the run's tokens."""
    if any(word.lstrip("-").startswith(("dataset=", "data.dataset=")) for word in overrides):
        meta = dataset_meta(folder)
        verify_shards(folder, meta)
        if not same_tokens(meta.tokenizer, trained.tokenizer.to_meta()):
            raise DataError(
                f"{folder} has another tokenizer, or other characters, than run "
                f"{trained.folder.name}; prepare its text with the run's tokenizer"
            )
        return
    record = read_record(trained.folder)
    recorded = record.dataset if record is not None else {}
    require_dataset_of_run(trained.folder.name, recorded, folder)


if __name__ == "__main__":
    sys.exit(main())
