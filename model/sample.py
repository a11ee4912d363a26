"""Write text from a run's newest checkpoint.

    python -m model.sample                                   # the newest run
    python -m model.sample --name quickstart prompt="def " temperature=0.5 num_samples=4
    echo "class Tree" | python -m model.sample prompt=-      # from stdin; prompt=@FILE reads a file

The text goes to stdout as it is written; the keys are those of the recipe's section `sample`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from corpus.tokenizers import StreamDecoder, Tokenizer
from job.command_line import parse_run, run, say
from job.exit_status import ExitStatus
from job.recipe import Recipe, SampleConfig
from model.generate import Sampling, generate
from model.gpt import GPT
from model.trained import open_run

BETWEEN = "\n--------------------------------\n"


def prompt_tokens(prompt: str, tokenizer: Tokenizer, recipe: Recipe) -> list[int]:
    """The prompt's tokens; where it is empty, what one begins behind: the end of a text, or a line feed if the text has any."""
    if prompt == "-":
        prompt = sys.stdin.read()
    elif prompt.startswith("@"):
        try:
            prompt = Path(prompt[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise recipe.mistake("sample.prompt", f"can't read {prompt[1:]}: {error}") from None
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    if not prompt and start:
        return start
    if not prompt:
        texts = tokenizer.token_bytes()
        return [texts.index(b"\n") if b"\n" in texts else 0]
    try:
        return [*start, *tokenizer.encode(prompt).tolist()]
    except ValueError as error:
        raise recipe.mistake("sample.prompt", f"{error}; give another: prompt=TEXT") from None


def write_samples(
    network: GPT,
    tokenizer: Tokenizer,
    prompt: list[int],
    config: SampleConfig,
    sampling: Sampling,
    out: TextIO | None,
) -> str:
    """Generate ``config.num_samples`` texts in one batch and return them, parted by a ruled line.

    The first is written to ``out`` while it grows, the others behind it when they are done.
    """
    spoken = prompt[1:] if tokenizer.eot is not None and prompt[0] == tokenizer.eot else prompt
    texts = [tokenizer.decode(spoken)] * config.num_samples
    decoders = [StreamDecoder(tokenizer) for _ in texts]
    if out is not None:
        out.write(texts[0])
    for row in generate(
        network,
        prompt,
        config.num_samples,
        config.max_new_tokens,
        sampling,
        config.seed,
        tokenizer.vocab_size,
        tokenizer.eot,
    ):
        for i, token in enumerate(row):
            if token is not None:
                piece = decoders[i].push(token)
                texts[i] += piece
                if i == 0 and out is not None:
                    out.write(piece)
                    out.flush()
    if out is not None:
        out.write("".join(BETWEEN + text for text in texts[1:]) + "\n")
        out.flush()
    return BETWEEN.join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """The entry; returns the exit status."""
    return run(_main, parse_run("sample", __doc__ or "", argv))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, arguments.device)
    config = trained.recipe.sample
    prompt = prompt_tokens(config.prompt, trained.tokenizer, trained.recipe)
    say(f"run {trained.folder.name}, step {trained.step}")
    out = None if arguments.json else sys.stdout
    text = write_samples(trained.network, trained.tokenizer, prompt, config, Sampling.of(config), out)
    if arguments.json:
        result = {"run": trained.folder.name, "step": trained.step, "samples": text.split(BETWEEN)}
        print(json.dumps(result, ensure_ascii=False))
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
