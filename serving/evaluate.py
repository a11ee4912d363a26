"""Compute loss, perplexity and bits per byte of a run's newest checkpoint on its validation set.

python -m serving.evaluate --name quickstart
python -m serving.evaluate --name quickstart eval_tokens=65536 --json
python -m serving.evaluate --multiple-choice questions.jsonl          # see corpus/tasks.py
python -m serving.evaluate --task hellaswag                           # see corpus/tasks.py
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from corpus.dataset import TokenStream
from corpus.tasks import accuracies, load_tasks, read_questions, scores
from corpus.verify import refuse_different_tokens, require_dataset_of_run
from inference.scoring import BATCH_SIZE, ending_losses
from job.arguments import is_overridden, leave, parse, report, run, run_parser
from job.exit_status import ExitStatus
from job.format import json_text
from job.paths import VolumePaths
from job.pretrained import TASKS
from job.run_session import dtype_warnings
from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.distributed import World
from model.load_run import TrainedRun, open_run

MAX_EXPONENT = 709  # a float64 overflows above; a diverged run can have such a loss


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = run_parser("evaluate", __doc__ or "")
    questions = "multiple-choice questions, one JSON object per line"
    parser.add_argument("--multiple-choice", metavar="FILE", help=questions)
    parser.add_argument("--task", choices=TASKS, help="a task whose data is downloaded once")
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, arguments.device)
    for warning in dtype_warnings(trained.recipe, devices.has_bfloat16(trained.network.device)):
        report(warning)
    started = time.perf_counter()
    with devices.autocast(trained.recipe.train.dtype, trained.network.device):
        if arguments.multiple_choice:
            path, network = Path(arguments.multiple_choice), trained.network
            questions = read_questions(path, trained.tokenizer, network.config.block_size)
            measured = accuracies(questions, ending_losses(network, questions))
        elif arguments.task:
            measured = _task(trained, arguments)
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


def _task(trained: TrainedRun, arguments: Namespace) -> dict[str, Any]:
    network, config = trained.network, trained.recipe.train
    limited = is_overridden("train.eval_task_questions", arguments.overrides)
    limit = config.eval_task_questions if limited else None
    cache, block = VolumePaths.current().cache, network.config.block_size
    tasks = load_tasks(arguments.task, cache, trained.tokenizer, block, limit)
    result = scores(arguments.task, tasks, partial(ending_losses, network))
    return {"task": arguments.task, **result, **TASKS[arguments.task].published}


def _loss(trained: TrainedRun, arguments: Namespace) -> dict[str, Any]:
    # The recipe's eval_tokens limits the evaluations of a training run, not this one; an
    # eval_tokens among the arguments does.
    is_limited = is_overridden("train.eval_tokens", arguments.overrides)
    limit = trained.recipe.train.eval_tokens if is_limited else None
    folder = VolumePaths.current().dataset(trained.recipe.data.dataset)
    if is_overridden("data.dataset", arguments.overrides):
        refuse_different_tokens(trained.folder.name, trained.tokenizer, folder)
    else:
        require_dataset_of_run(trained.folder.name, trained.dataset, folder)
    block, device = trained.recipe.model.block_size, trained.network.wte.weight.device
    val = TokenStream(folder, "val", more_than=block)
    batches = TokenBatches(val, block, device)
    loss, tokens = validation_loss(trained.network, batches, limit, BATCH_SIZE, World())
    text_bytes = int(trained.tokenizer.byte_lengths()[val.slice(1, tokens + 1)].sum())
    return {
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < MAX_EXPONENT else None,
        # nats per token → bits per byte of text, comparable across tokenizers
        "bits_per_byte": loss / math.log(2) * tokens / text_bytes if text_bytes else None,
    }


if __name__ == "__main__":
    leave(main())
