"""`runner chat`: texts and conversations with a run, an export and GPT-2; Ctrl-C ends a text."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corpus.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from job.exit_status import UserError
from job.pretrained import gpt2_config
from job.recipe import ModelConfig
from model.gpt import GPT
from serving.chat import Conversation, talk
from serving.export import export
from serving.load import ChatTemplate, LoadedModel, load_model, read_template
from tests.model.conftest import Lab
from tests.serving.conftest import SPECIAL, TEMPLATE

SMALL = gpt2_config(ModelConfig(variant="gpt2", n_layer=1, n_head=1, n_embd=8), 600, None)


def chat_with(conversation: Conversation, *lines: str | type[BaseException]) -> str:
    """Enter the lines; an exception among them is raised."""
    script: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    out = io.StringIO()
    talk(conversation, read, out)
    return out.getvalue()


def test_settings_change_between_texts_and_errors_are_named(
    model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(model, sample=model.sample.model_copy(update={"temperature": 0.0}))
    once = chat_with(Conversation(model), "a cat")
    assert once.startswith("a cat")
    lines = ("a cat", KeyboardInterrupt, "/seed 7", "/temperature 1", "a cat", "/seed 7", "a cat")
    _, *texts, _ = ["", *chat_with(Conversation(model), *lines).split("\n\n")]
    assert texts[0] + "\n\n" == once
    assert texts[1] == texts[2] != texts[0]  # the same seed
    chat_with(Conversation(model), "/temperature -1", "/sed 3", "\ud800", "/settings", "/exit")
    err = capsys.readouterr().err
    assert "/temperature -1: Input should be greater than or equal to 0" in err
    assert "no command /sed; did you mean" in err
    assert "top_k 20" in err
    assert "error: the prompt is not valid UTF-8" in err


def test_ctrl_c_ends_the_text_and_not_the_program(
    model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    class InterruptingStream(io.StringIO):
        def flush(self) -> None:
            if len(self.getvalue()) == 5:
                raise KeyboardInterrupt

    out, script = InterruptingStream(), iter(["abc", "d"])

    def read(prompt: str) -> str:
        try:
            return next(script)
        except StopIteration:
            raise EOFError from None

    talk(Conversation(model), read, out)
    first, second, _ = out.getvalue().split("\n\n")
    assert (len(first), second[0], len(second) > 5) == (5, "d", True)
    assert "(ended)" in capsys.readouterr().err


def test_a_template_remembers_the_conversation(chat_model: LoadedModel) -> None:
    conversation = Conversation(chat_model)
    chat_with(conversation, "one", "two")
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert chat_model.template is not None
    tokens = chat_model.template.encode(conversation.messages[:3], chat_model.tokenizer)
    assert [token for token in tokens if token > 256] == [257, 259, 258, 259, 257, 259, 258]
    chat_with(conversation, "/reset")
    assert conversation.messages == []


@pytest.mark.parametrize("call", ["raise_exception('only one')", "messages.x.y", "1 + 'a'"])
def test_messages_that_the_template_refuses_are_an_error(
    model: LoadedModel, serve: Callable[..., str], capsys: pytest.CaptureFixture[str], call: str
) -> None:
    model = replace(model, template=ChatTemplate("{{ " + call + " }}", SPECIAL, {}))
    chat_with(Conversation(model), "hello")
    assert "error: the chat template refuses the messages: " in capsys.readouterr().err
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    headers = {"Content-Type": "application/json"}
    address = f"{serve(model)}/v1/chat/completions"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(address, body, headers))
    assert error.value.code == 400


def test_a_chat_template_is_read_from_a_folder(tmp_path: Path) -> None:
    network = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=32), 320)
    export(network, ByteTokenizer(), tmp_path)
    assert read_template(tmp_path) is None
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    described["added_tokens"] += [{"id": n, "content": text} for text, n in SPECIAL.items()]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    model = load_model(None, str(tmp_path), [], "cpu")
    assert model.template is not None
    assert (model.num_tokens, model.ends) == (260, {256})
    (tmp_path / "chat_template.jinja").write_text("{{ [].__class__.__mro__ }}")
    unsafe = load_model(None, str(tmp_path), [], "cpu").template
    assert unsafe is not None
    with pytest.raises(Exception, match="unsafe"):  # jinja2.exceptions.SecurityError
        unsafe.encode([], model.tokenizer)


@pytest.mark.parametrize("variant", ["gpt2", "modern", "windows"])
def test_export_is_the_same_network(variant: str, tmp_path: Path) -> None:
    windows = {"attention_pattern": "SL", "window_size": 4} if variant == "windows" else {}
    kind = "gpt2" if variant == "gpt2" else "modern"
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32}
    network = GPT(ModelConfig(variant=kind, **shape, **windows), 64).eval()  # type: ignore[arg-type]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokenizer: Tokenizer = CharTokenizer("\n abc")
    export(network, tokenizer, tmp_path)
    again = load_model(None, str(tmp_path), ["temperature=0", "sample.top_p=0.5"], "cpu")
    assert again.tokenizer.to_meta() == tokenizer.to_meta()
    assert (again.sample.temperature, again.sample.top_p) == (0, 0.5)
    ids = torch.arange(20)[None] % 5
    with torch.no_grad():
        torch.testing.assert_close(again.network(ids), network(ids))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "not a run and not a folder with Hugging Face's config.json"),
        (
            {"config.json": '{"model_ty'},
            r"config.json is damaged",
        ),
        ({"config.json": "[1]"}, "config.json is damaged"),
        ({"config.json": '{"model_type": "llama"}'}, "not a GPT-2, its model_type is 'llama'"),
        ({"config.json": '{"model_type": "gpt_runner", "gpt_runner": {}}'}, "damaged export"),
        ({"config.json": json.dumps(SMALL)}, "vocab_size is 600; a folder that `export` did not"),
    ],
)
def test_invalid_folder_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_model(None, str(tmp_path), [], "cpu")


def test_a_script_gets_json(lab: Lab, tmp_path: Path) -> None:
    lab.train("small", "max_steps=5", "warmup_steps=0")
    (tmp_path / "prompt.txt").write_text("the ")
    words = ("--name", "small", "temperature=0", "max_new_tokens=9")
    out, _ = lab.run("chat", *words, "--prompt-file", str(tmp_path / "prompt.txt"), "--json")
    answer = json.loads(out)
    sampled, _ = lab.run("sample", *words, "prompt=the ", "--json")
    assert "the " + answer["text"] == json.loads(sampled)["samples"][0]
    assert (answer["model"], answer["finish"]) == ("small", "length")
