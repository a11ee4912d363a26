"""Loss, perplexity and bits per byte of a run's newest checkpoint over its whole validation set.

python -m model.evaluate --name quickstart
python -m model.evaluate --name quickstart eval_tokens=65536 --json
"""

from __future__ import annotations

import json
import math
import sys
import time

from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.command_line import run_arguments
from model.data.prepare import dataset_meta
from model.data.shards import TokenStream
from model.distributed import World
from model.exit_status import ExitStatus
from model.locations import Locations
from model.recipe import RecipeError
from model.trained import NoSuchRun, open_run, say


def main(argv: list[str] | None = None) -> int:
    """The entry; returns the exit status."""
    arguments, overrides = run_arguments(__doc__ or "", argv)
    locations = Locations.current()
    locations.set_defaults()
    try:
        device = devices.pick_device(arguments.device, 0)
        run = open_run(arguments.name, overrides, locations, device)
    except NoSuchRun as error:
        say(str(error))
        return ExitStatus.NOT_FOUND
    except RecipeError as error:
        say(str(error))
        return ExitStatus.USAGE
    folder = locations.dataset(run.recipe.data.dataset)
    meta = dataset_meta(folder)
    assert meta is not None  # open_run has read it
    limit = run.recipe.train.eval_tokens if any("eval_tokens" in word for word in overrides) else None
    started = time.perf_counter()
    batches = TokenBatches(TokenStream(folder, "val"), run.recipe.model.block_size, device)
    with devices.autocast(run.recipe.train.dtype, device):
        loss, tokens = validation_loss(run.network, batches, limit, run.recipe.train.micro_batch, World())
    result = {
        "run": run.folder.name,
        "step": run.step,
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss),
        # nats a token → bits a byte of the text, which compares across tokenizers
        "bits_per_byte": loss / math.log(2) * meta.val_tokens / meta.val_bytes if meta.val_bytes else None,
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
