"""`runner serve`: the OpenAI client gets the network's texts, also with other requests."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus.samples import TextStream
from inference.engine import generate
from job.paths import CHECKOUT
from job.recipe import SampleConfig
from serving import server
from serving.batcher import ERROR, Batcher
from serving.load import LoadedModel
from tests.browser import Browser
from tests.waiting import wait_for

openai = pytest.importorskip("openai")
Serve = Callable[..., str]


def client(address: str, token: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0)


def expected(model: LoadedModel, prompt: str, **settings: Any) -> str:
    """Return the text that `sample` generates."""
    config = SampleConfig(**{**model.sample.model_dump(), **settings})
    rows = generate(model.network, model.encode(prompt), config, 257, 256)
    return model.tokenizer.decode(row[0] for row in rows if row[0] is not None)


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    headers = {"content-type": "application/json", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as got:
            return got.status, json.load(got)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


def test_whole_and_streamed_text_equals_that_of_sample(model: LoadedModel, serve: Serve) -> None:
    api = client(serve(model))
    assert [each.id for each in api.models.list()] == ["tiny"]
    text = expected(model, "a cat", seed=4)
    made = api.completions.create(model="tiny", prompt="a cat", seed=4)
    assert made.choices[0].text == text
    assert made.choices[0].finish_reason == "length"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (6, 12)
    streamed = api.completions.create(
        model="tiny", prompt="a cat", seed=4, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(streamed)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert len(chunks) > 6
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "length"]
    assert last.usage.completion_tokens == 12
    # Settings, several texts, and a stop string, which is omitted.
    made = api.completions.create(model="tiny", prompt=["a", "b"], n=2, temperature=0, max_tokens=5)
    greedy = {p: expected(model, p, temperature=0, max_new_tokens=5) for p in "ab"}
    assert [c.text for c in made.choices] == [greedy["a"]] * 2 + [greedy["b"]] * 2
    stop = text[4:6]
    made = api.completions.create(model="tiny", prompt="a cat", seed=4, stop=[stop, "zzz"])
    assert made.choices[0].text == text[: text.index(stop)]
    assert made.choices[0].finish_reason == "stop"


def test_concurrent_requests_get_their_own_texts(model: LoadedModel, serve: Serve) -> None:
    api = client(serve(model))

    def ask(n: int) -> str:
        prompt, tokens = "cat " * (n % 5), 5 + n % 7
        streamed = api.completions.create(
            model="tiny", prompt=prompt, seed=n, max_tokens=tokens, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in streamed)

    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(ask, range(32)))
    assert texts == [
        expected(model, "cat " * (n % 5), seed=n, max_new_tokens=5 + n % 7) for n in range(32)
    ]


def test_a_client_that_leaves_frees_its_slot(model: LoadedModel, serve: Serve) -> None:
    api = client(serve(model))
    endless = [
        api.completions.create(model="tiny", prompt="a", max_tokens=100_000, stream=True)
        for _ in range(4)
    ]
    for stream in endless:
        next(iter(stream))
        stream.close()
    made = api.completions.create(model="tiny", prompt="b", temperature=0, timeout=60)
    assert made.choices[0].text == expected(model, "b", temperature=0)


def test_a_conversation_needs_a_template(
    model: LoadedModel, chat_model: LoadedModel, serve: Serve
) -> None:
    messages = [{"role": "user", "content": "a <end> in a text"}]
    with pytest.raises(openai.BadRequestError, match="tiny has no chat template; use /v1/comp"):
        client(serve(model)).chat.completions.create(model="tiny", messages=messages)
    api = client(serve(chat_model))
    assert chat_model.template is not None
    prompt = chat_model.template.encode(messages, chat_model.tokenizer)
    assert (prompt[0], prompt[-1]) == (257, 258)
    config = chat_model.sample.model_copy(update={"seed": 2})
    rows = list(generate(chat_model.network, prompt, config, 260, 259))
    text = chat_model.tokenizer.decode(row[0] for row in rows if row[0] is not None)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a <end> in a text"}]}]
    for given in (messages, parts):
        made = api.chat.completions.create(model="tiny", messages=given, seed=2)
        assert made.choices[0].message.content == text
    streamed = api.chat.completions.create(model="tiny", messages=messages, seed=2, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in streamed) == text


def get(url: str) -> tuple[int, str]:
    """Return the status and the body of an answer to a request without a key."""
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not valid JSON"),
        (b"[]", 400, "body"),
        (b'{"model": "other"}', 404, "no model 'other'; this server has tiny"),
        (b'{"max_tokens": 0}', 400, "max_tokens: "),
        (b'{"prompt": [999]}', 400, "token IDs must be below 257, got 999"),
        (b'{"prompt": [[]]}', 400, "empty list of tokens"),
        (b'{"prompt": []}', 400, "empty list"),
        (b'{"prompt": "a", "logprobs": 5}', 400, "logprobs is not supported"),
        (b'{"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}', 400, "stop: List should have"),
        (b'{"prompt": [-1]}', 400, "prompt.0: Input should be greater than or equal to 0"),
        (b'{"prompt": null}', 400, "prompt: Input should be a valid string"),
        (b'{"best_of": 3}', 400, "best_of: "),
        (json.dumps({"prompt": ["a"] * 2000}).encode(), 400, "2000 texts in a request"),
        (b" " * (5 << 20), 413, "more than 4 MiB"),
    ],
)
def test_a_bad_request_is_named(
    model: LoadedModel, serve: Serve, body: bytes, status: int, message: str
) -> None:
    found, answer = post(f"{serve(model)}/v1/completions", body)
    assert (found, message in answer["error"]["message"]) == (status, True), answer


def test_each_error_has_the_form_of_openai(
    model: LoadedModel, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    address = serve(model)
    api = client(address)
    assert api.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'other'; this server has tiny"):
        api.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings: Not Found"):
        api.embeddings.create(model="tiny", input="a")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as leaving:
        leaving.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\n\r\n{"
        )
    assert api.models.list().data
    assert "Traceback" not in capfd.readouterr().err


def test_a_stopped_server_ends_its_texts_with_an_error(model: LoadedModel) -> None:
    async def stop_during_a_text() -> list[str | None]:
        batcher = Batcher(model, slots=1)
        batcher.start(asyncio.get_running_loop())
        endless = model.sample.model_copy(update={"max_new_tokens": 100_000})
        texts = batcher.generate([[97], [98]], endless, seed=1)  # the second one waits
        await anext(texts)
        batcher.stop()
        finishes = [finish async for _, (_, _, finish) in texts if finish is not None]
        batcher.join()
        return finishes

    assert asyncio.run(asyncio.wait_for(stop_during_a_text(), 60)) == [ERROR, ERROR]


@pytest.mark.parametrize("module", ["chat", "evaluate", "export", "sample", "server"])
def test_ctrl_c_while_torch_is_imported_ends_a_program_without_a_traceback(
    module: str, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("print(flush=True)\nimport time\ntime.sleep(600)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", f"serving.{module}"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_only_local_requests_with_the_key_are_answered(model: LoadedModel, serve: Serve) -> None:
    address = serve(model, "secret")
    with pytest.raises(
        openai.AuthenticationError, match="invalid API key; send `Authorization: Bearer"
    ):
        client(address, "guess").models.list()
    assert client(address, "secret").models.list().data
    for path in ("/v1/models", "/docs", "/v1", "//v1/models"):
        assert get(address + path)[0] == 401
    assert get(f"{address}/health") == (200, "")
    status, page = get(f"{address}/")
    assert (status, "tiny" in page) == (200, False)  # the page does not name the model
    address = serve(model)
    url, body = f"{address}/v1/completions", b'{"prompt": "a"}'
    assert post(url, body)[0] == 200
    assert post(url, body, **{"content-type": "text/plain"})[0] == 415  # a page of a different site
    assert post(url, body, host="evil.example")[0] == 400  # a foreign name for this machine


def test_a_broken_network_is_an_error_not_a_hang(model: LoadedModel, serve: Serve) -> None:
    model.network.wte.weight.data[5] = float("nan")
    status, answer = post(f"{serve(model)}/v1/completions", b'{"prompt": "a"}')
    assert status == 500
    assert "diverged" in answer["error"]["message"]


def test_the_page_streams_a_text_in_a_browser(
    model: LoadedModel, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a <b>cat" + expected(model, "a <b>cat", seed=4, max_new_tokens=40)
    hidden, steps, shown = model.network.hidden, itertools.count(), threading.Event()

    def pausing_hidden(*given: Any) -> torch.Tensor:
        """Generate no 20th token before the page has shown the first ones."""
        if next(steps) == 19:
            shown.wait(60)
        return hidden(*given)

    monkeypatch.setattr(model.network, "hidden", pausing_hidden)
    address = serve(model, "secret")
    with Browser() as browser:
        browser.open(address)
        wait_for(lambda: "API key" in browser.text("#note"), 60)
        browser.type("#key", "secret")
        wait_for(lambda: browser.text("#name") == "tiny", 60)
        assert browser.evaluate("document.querySelector('#prompt').value") == "the "
        browser.type("#prompt", "a <b>cat")
        for field, value in (("seed", "4"), ("temperature", "1"), ("max_tokens", "40")):
            browser.type(f"#{field}", value)
        browser.evaluate("document.querySelector('#go').click()")
        wait_for(lambda: browser.text("#output") != "", 60)
        start = browser.text("#text")
        shown.set()
        wait_for(lambda: "tokens a second" in browser.text("#note"), 60)
        assert browser.text("#text") == text
        assert len("a <b>cat") < len(start) < len(text)
        assert text.startswith(start)
        assert browser.errors == []


@pytest.mark.parametrize(
    ("stop", "pieces"),
    [((), "abcabd"), (("cab",), "ab"), (("bd",), "abca"), (("dx", "x"), "abcabd")],
)
def test_stop_strings_span_tokens(model: LoadedModel, stop: tuple[str, ...], pieces: str) -> None:
    stream, text = TextStream(model.tokenizer, stop), ""
    for token in b"abcabd":
        if not stream.is_stopped:
            text += stream.push(token)
    assert text + stream.close() == pieces


def test_port_in_use_is_refused_before_the_network_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert server.main(["--port", str(port), "--name", "none"]) == 2
    err = capsys.readouterr().err
    assert err == f"error: port {port} is already in use; choose another: `--port {port + 1}`\n"
    assert server.main(["--host", "192.0.2.1", "--name", "none"]) == 2
    assert "--host 192.0.2.1 is not an address of this machine" in capsys.readouterr().err
