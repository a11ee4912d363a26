"""Write a run's newest checkpoint in Hugging Face's format, with its tokenizer.

python -m model.export --name gpt2 --into exported/
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from corpus.hugging_face import export_folder, write_tokenizer
from job.command_line import parse_run, run, say
from job.exit_status import ExitStatus
from model.hugging_face import export
from model.trained import open_run


def main(argv: Sequence[str] | None = None) -> int:
    """The entry; returns the exit status."""
    return run(_main, parse_run("export", __doc__ or "", argv, into=True))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, "cpu")
    into = export_folder(arguments.into, trained.folder)
    export(trained.network, into, trained.tokenizer.eot)
    write_tokenizer(trained.tokenizer, into, trained.network.config.block_size, trained.network.vocab_size)
    say(f"run {trained.folder.name}, step {trained.step}: AutoTokenizer and GPT2LMHeadModel read it")
    print(into)
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
