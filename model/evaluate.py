"""Loss, perplexity and bits per byte of a run's newest checkpoint over its whole validation set.

python -m model.evaluate --name quickstart
python -m model.evaluate --name quickstart eval_tokens=65536 --json
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.command_line import run
from model.data.shards import TokenStream
from model.distributed import World
from model.exit_status import ExitStatus
from model.locations import Locations
from model.trained import open_run, parse_run


def main(argv: Sequence[str] | None = None) -> int:
    """The entry; returns the exit status."""
    return run(_main, parse_run("evaluate", __doc__ or "", argv))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, arguments.device)
    config = trained.recipe.train
    # The whole set, unless it is limited here: the recipe's own limit is for the evaluations in a run.
    limited = any(
        word.lstrip("-").startswith(("eval_tokens=", "train.eval_tokens=")) for word in arguments.overrides
    )
    started = time.perf_counter()
    val = TokenStream(Locations.current().dataset(trained.recipe.data.dataset), "val")
    device = trained.network.wte.weight.device
    batches = TokenBatches(val, trained.recipe.model.block_size, device)
    with devices.autocast(config.dtype, device):
        loss, tokens = validation_loss(
            trained.network, batches, config.eval_tokens if limited else None, config.micro_batch, World()
        )
    text_bytes = int(trained.tokenizer.byte_lengths()[val.slice(1, tokens + 1)].sum())
    result = {
        "run": trained.folder.name,
        "step": trained.step,
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss),
        # nats a token → bits a byte of the text, which compares across tokenizers
        "bits_per_byte": loss / math.log(2) * tokens / text_bytes,
        "seconds": round(time.perf_counter() - started, 2),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:14} {value:.4f}" if isinstance(value, float) else f"{key:14} {value}")
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
