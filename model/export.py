"""Export a run's newest checkpoint and its tokenizer to Hugging Face format.

python -m model.export --name gpt2 --output exported/
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from corpus.tokenizer_export import export_folder, write_tokenizer
from job.arguments import parse_run, run, say
from job.exit_status import ExitStatus
from model.hugging_face import export
from model.load_run import open_run


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
        f"GPT2LMHeadModel"
    )
    print(folder)
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
