"""Generate text from a run's newest checkpoint.

    python -m serving.sample                                   # the newest run
    python -m serving.sample --name quickstart prompt="def " temperature=0.5 num_samples=4
    echo "class Tree" | python -m serving.sample prompt=-    # from stdin; prompt=@FILE reads a file

The text goes to stdout while it is generated; the keys are those of the recipe's section `sample`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence

from corpus.samples import SEPARATOR, prompt_tokens, write_texts
from inference.engine import generate
from job.arguments import leave, parse, report, run, run_parser
from job.exit_status import ExitStatus
from model.load_run import open_run


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, and return the exit status."""
    return run(_main, parse(run_parser("sample", __doc__ or ""), argv))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, arguments.device)
    config, network, tokenizer = trained.recipe.sample, trained.network, trained.tokenizer
    prompt = prompt_tokens(config.prompt, tokenizer, trained.recipe)
    report(f"run '{trained.folder.name}', step {trained.step}")
    out = None if arguments.json else sys.stdout
    rows = generate(network, prompt, config, tokenizer.vocab_size, tokenizer.eot)
    text = write_texts(rows, tokenizer, prompt, config.num_samples, out)
    if arguments.json:
        samples = text.split(SEPARATOR)
        result = {"run": trained.folder.name, "step": trained.step, "samples": samples}
        print(json.dumps(result, ensure_ascii=False))
    return ExitStatus.DONE


if __name__ == "__main__":
    leave(main())
