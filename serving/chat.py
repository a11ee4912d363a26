"""Talk to a trained network; it stays loaded between texts.

    python -m serving.chat                                   # the newest run
    python -m serving.chat --name my_run temperature=0.5
    python -m serving.chat --model exported/                 # also gpt2 or hf://OWNER/NAME
    echo "def " | python -m serving.chat --json

With a chat template the conversation is remembered; otherwise each text is completed on its own.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from corpus.samples import TextStream
from inference.engine import Engine
from job.arguments import leave, parse, report, run, run_parser
from job.exit_status import ExitStatus, UserError
from job.format import did_you_mean, sanitize
from serving.load import LoadedModel, Message, changed_settings, load_model

SETTINGS = ("temperature", "top_p", "top_k", "seed", "max_new_tokens")
HELP = f"""\
/{" N  /".join(SETTINGS)} N   change a setting; null removes a limit
/settings   show the settings        /reset   forget the conversation
/exit or Ctrl-D   leave              Ctrl-C   end the text"""


class Conversation:
    """A loaded model, the settings, and the messages so far."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.settings = model.sample
        self.messages: list[Message] = []
        self.texts = 0  # each text has the next seed
        self.finish: str | None = None
        self.engine = Engine(model.network, model.num_tokens, model.ends, slots=1)

    def answer(self, prompt: str) -> Iterator[str]:
        """Yield the text after ``prompt`` in pieces; closing the iterator ends the text.

        Raises UserError for a prompt that is not text or that the template refuses.
        """
        template = self.model.template
        messages: list[Message] = [*self.messages, {"role": "user", "content": prompt}]
        try:
            tokens = (
                self.model.encode(prompt)
                if template is None
                else template.encode(messages, self.model.tokenizer)
            )
        except UnicodeEncodeError:
            raise UserError("the prompt is not valid UTF-8") from None
        except ValueError as error:
            raise UserError(str(error)) from None
        request = self.engine.add(tokens, self.settings, self.settings.seed + self.texts)
        self.texts += 1
        stream, reply = TextStream(self.model.tokenizer), ""
        try:
            while request.finish is None:
                self.engine.step()
                if request.token is not None:
                    reply += (piece := stream.push(request.token))
                    yield piece
            reply += (piece := stream.close())
            yield piece
        finally:
            request.is_cancelled, self.finish = True, request.finish
            if template is not None:
                self.messages = [*messages, {"role": "assistant", "content": reply}]

    def change(self, name: str, text: str) -> None:
        """Change a setting. Raises UserError for a bad value."""
        if name not in SETTINGS:
            raise UserError(f"no command /{name}{did_you_mean(name, SETTINGS)}; /help lists them")
        try:
            self.settings = changed_settings(self.settings, name, text)
        except ValueError as error:
            raise UserError(f"/{name} {text}: {error}") from None
        self.texts = 0

    def reset(self) -> None:
        """Forget the messages, and start again from the seed."""
        self.messages, self.texts = [], 0


def talk(conversation: Conversation, read: Callable[[str], str], out: TextIO) -> None:
    """Answer what ``read`` returns until it raises EOFError or the user leaves."""
    shown = sanitize if out.isatty() else str
    while True:
        try:
            line = read("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            report("\n/exit or Ctrl-D leaves")
            continue
        if line.startswith("/"):
            name, _, value = line[1:].strip().partition(" ")
            if name in ("exit", "quit"):
                return
            _command(conversation, name, value.strip())
            continue
        try:
            if conversation.model.template is None:
                out.write(shown(line))
            for piece in conversation.answer(line):
                out.write(shown(piece))
                out.flush()
        except KeyboardInterrupt:
            report(" (ended)")
        except UserError as error:
            report(f"error: {error}")
        out.write("\n\n")
        out.flush()


def _command(conversation: Conversation, name: str, value: str) -> None:
    if name == "reset":
        conversation.reset()
    elif name == "settings":
        report("  ".join(f"{key} {getattr(conversation.settings, key)}" for key in SETTINGS))
    elif name == "help" or not name:
        report(HELP)
    else:
        try:
            conversation.change(name, value)
        except UserError as error:
            report(f"error: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, talk, and return the exit status."""
    parser = run_parser("chat", __doc__ or "")
    parser.add_argument("--model", metavar="DIR", help="an exported folder, or gpt2")
    parser.add_argument("--prompt-file", metavar="FILE", help="complete the text of FILE")
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    prompt = _read_prompt(arguments.prompt_file)
    model = load_model(arguments.name, arguments.model, arguments.overrides, arguments.device)
    conversation = Conversation(model)
    if prompt is None:
        kind = "chat template" if model.template is not None else "completion"
        report(f"{model.name} ({kind}); /help lists the commands")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then edits lines and has a history
        talk(conversation, input, sys.stdout)
        return ExitStatus.DONE
    started, text = time.monotonic(), ""
    for piece in conversation.answer(prompt):
        text += piece
        if not arguments.json:
            print(sanitize(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    if not arguments.json:
        print()
        return ExitStatus.DONE
    result = {
        "model": model.name,
        "prompt": prompt,
        "text": text,
        "finish": conversation.finish,
        "seconds": round(time.monotonic() - started, 3),
    }
    print(json.dumps(result, ensure_ascii=False))
    return ExitStatus.DONE


def _read_prompt(file: str | None) -> str | None:
    """Return the text of ``file`` or of a stdin that is not a terminal; None to ask the user."""
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--prompt-file {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"--prompt-file {file}: not valid UTF-8") from None
    return None if sys.stdin.isatty() else sys.stdin.read()


if __name__ == "__main__":
    leave(main())
