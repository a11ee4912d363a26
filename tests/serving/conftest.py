"""A small network, and a server for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from corpus.tokenizers import ByteTokenizer
from job.recipe import ModelConfig, SampleConfig
from model.gpt import GPT
from serving.load import ChatTemplate, LoadedModel
from tests.model.conftest import free_port, lab  # noqa: F401
from tests.waiting import wait_for

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>"
SPECIAL = {"<user>": 257, "<assistant>": 258, "<end>": 259}


@pytest.fixture
def model() -> LoadedModel:
    """Return a network that writes bytes below 128 and never an end of text."""
    return tiny_model()


@pytest.fixture
def chat_model() -> LoadedModel:
    """Return the same network with a chat template."""
    return tiny_model(ChatTemplate(TEMPLATE, SPECIAL, {"eos_token": "<end>"}))


def tiny_model(template: ChatTemplate | None = None) -> LoadedModel:
    shape = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=64)
    torch.manual_seed(3)
    network = GPT(shape, 320).eval()
    with torch.no_grad():
        network.wte.weight.mul_(5)
        network.wte.weight[128:] = 0  # never the most likely
    sample = SampleConfig(prompt="the ", max_new_tokens=12, temperature=1.0, top_k=20)
    return LoadedModel("tiny", network, ByteTokenizer(), sample, template)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Return ``serve(model, token)``, which starts a server and returns its address."""
    with ExitStack() as servers:
        yield lambda *given: servers.enter_context(running(*given))


@contextmanager
def running(model: LoadedModel, token: str | None = None) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn")
    from serving.batcher import Batcher
    from serving.server import make_app

    port = free_port()
    app = make_app(model, Batcher(model, slots=4), token)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 60)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
