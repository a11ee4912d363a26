"""Generate text from a run's newest checkpoint.

    python -m model.sample                                   # the newest run
    python -m model.sample --name quickstart prompt="def " temperature=0.5 num_samples=4
    echo "class Tree" | python -m model.sample prompt=-      # from stdin; prompt=@FILE reads a file

The text goes to stdout while it is generated; the keys are those of the recipe's section `sample`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from corpus.tokenizers import StreamDecoder, Tokenizer
from job.arguments import parse_run, run, say
from job.exit_status import ExitStatus
from job.format import sanitize
from job.recipe import Recipe, SampleConfig
from job.training_errors import NonFiniteLoss
from model.gpt import GPT
from model.load_run import open_run

SEPARATOR = "\n--------------------------------\n"


def draw(logits_BV: Tensor, config: SampleConfig, generator: torch.Generator) -> Tensor:
    """Draw one token for each row (B,); temperature 0 selects the most likely."""
    if not bool(logits_BV.isfinite().all()):
        raise NonFiniteLoss("the network's scores are NaN or infinite: its training has diverged")
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / config.temperature
    if config.top_k is not None and config.top_k < logits_BV.size(-1):
        kth = logits_BV.topk(config.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    if config.top_p is not None:
        ordered, index = logits_BV.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # Drop a token if those before it reach top_p; the first is always kept.
        dropped = probabilities.cumsum(-1) - probabilities >= config.top_p
        dropped[:, 0] = False  # a top_p below float32's smallest number compares as 0
        logits_BV = logits_BV.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    network: GPT, prompt: list[int], config: SampleConfig, num_tokens: int, eot: int | None = None
) -> Iterator[list[int | None]]:
    """Yield, for each new position, one token for each sample; None after ``eot``.

    ``num_tokens`` is the tokenizer's vocabulary: the network's padding rows are never drawn. When
    the context is full, generation continues from its last half.
    """
    device = network.wte.weight.device
    block = network.config.block_size
    generator = torch.Generator(device).manual_seed(config.seed)
    was_training = network.training
    network.eval()
    text_BT = torch.tensor([prompt] * config.num_samples, device=device)[:, -block:]
    cache, position = network.new_cache(config.num_samples, block), 0
    unread_BT = text_BT
    ended = torch.zeros(config.num_samples, dtype=torch.bool, device=device)
    for _ in range(config.max_new_tokens):
        if position + unread_BT.size(1) > block:  # the context is full: read its last half again
            unread_BT, position = text_BT[:, -(block // 2) :], 0
        hidden_B1D = network.hidden(unread_BT, cache, position)[:, -1:]
        logits_BV = network.logits(hidden_B1D)[:, 0, :num_tokens]
        position += unread_BT.size(1)
        next_B = draw(logits_BV, config, generator)
        if eot is not None:
            ended |= next_B == eot
            if bool(ended.all()):
                break
        done = ended.tolist()
        yield [None if done[i] else token for i, token in enumerate(next_B.tolist())]
        unread_BT = next_B[:, None]
        text_BT = torch.cat((text_BT, unread_BT), dim=1)[:, -block:]
    network.train(was_training)


def prompt_tokens(prompt: str, tokenizer: Tokenizer, recipe: Recipe) -> list[int]:
    """Return the prompt's tokens.

    An empty prompt is the end-of-text token; without one, a line feed if the text has any, else
    the first character.
    """
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
        text = f"{error}; give another prompt: prompt=TEXT"
        raise recipe.mistake("sample.prompt", text) from None


def write_samples(
    network: GPT,
    tokenizer: Tokenizer,
    prompt: list[int],
    config: SampleConfig,
    out: TextIO | None,
) -> str:
    """Generate ``config.num_samples`` texts in one batch and return them, joined by SEPARATOR.

    The first text is written to ``out`` while it is generated, the others when all are complete.
    """
    visible = prompt[1:] if tokenizer.eot is not None and prompt[0] == tokenizer.eot else prompt
    texts = [tokenizer.decode(visible)] * config.num_samples
    decoders = [StreamDecoder(tokenizer) for _ in texts]
    # A network of bytes can generate escape sequences, which would control the terminal.
    shown = sanitize if out is not None and out.isatty() else str
    if out is not None:
        out.write(shown(texts[0]))
    for row in generate(network, prompt, config, tokenizer.vocab_size, tokenizer.eot):
        for i, token in enumerate(row):
            if token is not None:
                piece = decoders[i].push(token)
                texts[i] += piece
                if i == 0 and out is not None:
                    out.write(shown(piece))
                    out.flush()
    if out is not None:
        out.write("".join(SEPARATOR + shown(text) for text in texts[1:]) + "\n")
        out.flush()
    return SEPARATOR.join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, sample, and return the exit status."""
    return run(_main, parse_run("sample", __doc__ or "", argv))


def _main(arguments: Namespace) -> ExitStatus:
    trained = open_run(arguments.name, arguments.overrides, arguments.device)
    config, network, tokenizer = trained.recipe.sample, trained.network, trained.tokenizer
    prompt = prompt_tokens(config.prompt, tokenizer, trained.recipe)
    say(f"run {trained.folder.name}, step {trained.step}")
    out = None if arguments.json else sys.stdout
    text = write_samples(network, tokenizer, prompt, config, out)
    if arguments.json:
        samples = text.split(SEPARATOR)
        result = {"run": trained.folder.name, "step": trained.step, "samples": samples}
        print(json.dumps(result, ensure_ascii=False))
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
