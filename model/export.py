"""Export a run's newest checkpoint and its tokenizer to Hugging Face format.

python -m model.export --name gpt2 --output exported/
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from corpus.tokenizer_export import export_folder, write_tokenizer
from job.arguments import parse_run, run, say
from job.exit_status import ExitStatus, UserError
from job.files import write_atomically, written
from job.pretrained import gpt2_config
from model.gpt import GPT
from model.load_run import CONV1D, PREFIX, open_run


def export(network: GPT, folder: Path, eot: int | None) -> None:
    """Write ``network`` for ``transformers.GPT2LMHeadModel.from_pretrained(folder)``."""
    if network.config.variant != "gpt2":
        raise UserError(
            "transformers has no class for the modern variant; to export, train with "
            "model.variant=gpt2"
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().t() if name.endswith(CONV1D) else tensor.detach().cpu()
        weights[PREFIX + name] = value.contiguous()
        is_table = name in ("wte.weight", "wpe.weight")
        if not network.config.bias and name.endswith("weight") and not is_table:
            # Their network always has biases; zeros change nothing.
            weights[PREFIX + name.removesuffix("weight") + "bias"] = torch.zeros(tensor.size(0))
    with written(folder / "model.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt"})
    config = gpt2_config(network.config, network.vocab_size, eot)
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, export, and return the exit status."""
    return run(_main, parse_run("export", __doc__ or "", argv, output=True))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, "cpu")
    network, tokenizer = trained.network, trained.tokenizer
    folder = export_folder(arguments.output, trained.folder)
    export(network, folder, tokenizer.eot)
    write_tokenizer(tokenizer, folder, network.config.block_size, network.vocab_size)
    say(
        f"exported run {trained.folder.name}, step {trained.step}; load it with AutoTokenizer and "
        "GPT2LMHeadModel"
    )
    print(folder)
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
