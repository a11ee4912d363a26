"""Starlette routes: an OpenAI-compatible completions and chat API, and the web page."""

from __future__ import annotations

import json
import re
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from corpus.samples import TextStream
from inference.engine import STOP
from job.recipe import MIN_TEMPERATURE, SampleConfig
from serving.batcher import ERROR, MAX_WAITING, Batcher
from serving.load import LoadedModel

PAGE = Path(__file__).with_name("page.html")
OPEN_PATHS = ("/", "/health")  # the page, which asks for the key, and an empty answer
MAX_TOKENS = 100_000
MAX_BODY_BYTES = 4 << 20  # far above any context; reading it keeps the other requests waiting
# Settings of OpenAI's API that this server does not support, and that would change the text.
UNSUPPORTED = (
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "presence_penalty",
    "response_format",
    "suffix",
    "tools",
)
Tokens = list[Annotated[int, Field(ge=0)]]


class Settings(BaseModel):
    """Settings that both APIs have; None means the recipe's."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    n: int = Field(1, ge=1, le=32)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None


class Completion(Settings):
    """The body of /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens] = ""
    best_of: int | None = Field(None, ge=1, le=1)


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: str
    content: str | list[Part]

    def for_template(self) -> dict[str, str]:
        """Return it with its content as one text."""
        parts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        return {"role": self.role, "content": "".join(parts)}


class Chat(Settings):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)


Body = TypeVar("Body", bound=Settings)


class ApiError(HTTPException):
    """An HTTP error response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(status, message)
        self.code = code


def error_response(request: HttpRequest, error: Exception) -> Response:
    """Return OpenAI's form of an error."""
    if isinstance(error, ClientDisconnect):
        return Response()  # the client has left
    assert isinstance(error, HTTPException)
    message, status, code = error.detail, error.status_code, None
    if isinstance(error, ApiError):
        code = error.code
    else:
        message = f"{request.method} {request.url.path}: {message}"
    kind = "invalid_request_error" if status < 500 else "server_error"
    tree = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": tree}, status, error.headers)


class BearerToken:
    """Middleware that requires the API key, except for paths that tell nothing about the model."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it has the key."""
        header = dict(scope.get("headers") or ()).get(b"authorization", b"")
        is_open = scope["type"] != "http" or scope["path"] in OPEN_PATHS
        if is_open or secrets.compare_digest(header, self.expected):
            return await self.app(scope, receive, send)
        message = "invalid API key; send `Authorization: Bearer KEY` with the server's SERVE_TOKEN"
        error = ApiError(401, message, "invalid_api_key")
        await error_response(HttpRequest(scope), error)(scope, receive, send)


@dataclass
class Choice:
    """One text of an answer."""

    index: int
    stream: TextStream
    text: str = ""
    tokens: int = 0
    finish: str | None = None


@dataclass
class Answer:
    """The texts of one request, and their form in one of the two APIs."""

    model: LoadedModel
    batcher: Batcher
    settings: Settings
    prompts: list[list[int]]
    config: SampleConfig
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        stop = self.settings.stop or ()
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        streams = [TextStream(self.model.tokenizer, stops) for _ in self.prompts]
        self.choices = [Choice(n, stream) for n, stream in enumerate(streams)]

    async def pieces(self) -> AsyncGenerator[tuple[Choice, str], None]:
        """Yield the texts as they are generated; ``finish`` is set with the last piece of each."""
        tokens = self.batcher.generate(self.prompts, self.config, self.config.seed)
        async with aclosing(tokens):
            async for number, (request, token, finish) in tokens:
                choice, piece = self.choices[number], ""
                if token is not None:
                    choice.tokens += 1
                    piece = choice.stream.push(token)
                if choice.stream.is_stopped:
                    request.is_cancelled, finish = True, STOP
                if finish is not None:
                    choice.finish = finish
                    piece += choice.stream.close()
                choice.text += piece
                if piece or choice.finish is not None:
                    yield choice, piece

    async def collect(self) -> Response:
        """Return all texts at once."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass
        if self.batcher.error is not None:
            raise ApiError(500, self.batcher.error)
        choices = [self.choice(choice, choice.text) for choice in self.choices]
        return JSONResponse({**self.body(choices), "usage": self.usage()})

    async def events(self) -> AsyncIterator[str]:
        """Yield server-sent events."""
        async with aclosing(self.pieces()) as pieces:
            async for choice, piece in pieces:
                if choice.finish == ERROR:
                    yield _event({"error": {"message": self.batcher.error, "code": 500}})
                    return
                yield _event(self.body([self.choice(choice, piece)]))
        if (self.settings.stream_options or {}).get("include_usage"):
            yield _event({**self.body([]), "usage": self.usage()})
        yield "data: [DONE]\n\n"

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the API's object around ``choices``."""
        is_chat, is_chunk = isinstance(self.settings, Chat), self.settings.stream
        kind = f"chat.completion{'.chunk' * is_chunk}" if is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        }

    def choice(self, choice: Choice, text: str) -> dict[str, Any]:
        """Return a choice with ``text``: the newest piece of a stream, or all of it."""
        content: dict[str, Any] = {"text": text}
        if isinstance(self.settings, Chat):
            message = {"role": "assistant", "content": text}
            content = {"delta" if self.settings.stream else "message": message}
        reason = choice.finish
        return {"index": choice.index, **content, "logprobs": None, "finish_reason": reason}

    def usage(self) -> dict[str, int]:
        """Return the token counts; a prompt with several completions is counted once."""
        prompt = sum(len(tokens) for tokens in self.prompts[:: self.settings.n])
        completion = sum(choice.tokens for choice in self.choices)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion}
        return {**counts, "total_tokens": prompt + completion}


class Api:
    """The endpoints of one model."""

    def __init__(self, model: LoadedModel, batcher: Batcher) -> None:
        self.model = model
        self.batcher = batcher

    async def page(self, request: HttpRequest) -> Response:
        """Return the page; it loads nothing from elsewhere, and its scripts are its own."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        html = PAGE.read_text(encoding="utf-8").replace("{nonce}", nonce)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def models(self, request: HttpRequest) -> Response:
        """Return the list of models: this one."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def one_model(self, request: HttpRequest) -> Response:
        """Return the model of that name."""
        self._check_name(request.path_params["name"])
        return JSONResponse(self._description())

    async def completions(self, request: HttpRequest) -> Response:
        """Continue a text."""
        body = await self._read(request, Completion)
        prompts: list[Any] = [body.prompt]
        if isinstance(body.prompt, list) and body.prompt and not isinstance(body.prompt[0], int):
            prompts = body.prompt
        elif body.prompt == []:
            raise ApiError(400, "prompt: an empty list; give a text or a list of texts")
        tokens = [self._encode(prompt) for prompt in prompts for _ in range(body.n)]
        return await self._answer(body, tokens)

    async def chat(self, request: HttpRequest) -> Response:
        """Answer a conversation."""
        body = await self._read(request, Chat)
        if self.model.template is None:
            problem = f"{self.model.name} has no chat template; use /v1/completions"
            raise ApiError(400, problem, "no_chat_template")
        messages = [message.for_template() for message in body.messages]
        try:
            tokens = self.model.template.encode(messages, self.model.tokenizer)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return await self._answer(body, [tokens] * body.n)

    def _description(self) -> dict[str, Any]:
        own = {"object": "model", "owned_by": "gpt-runner", "created": self.model.created}
        # Not part of OpenAI's API; the page reads them.
        extra = {"has_chat": self.model.template is not None, "prompt": self.model.sample.prompt}
        return {"id": self.model.name, **own, **extra}

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.model.name):
            problem = f"no model '{name}'; this server has {self.model.name}"
            raise ApiError(404, problem, "model_not_found")

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, list):
            if not prompt:
                raise ApiError(400, "prompt: an empty list of tokens")
            if max(prompt) >= self.model.num_tokens:
                limit = self.model.num_tokens
                raise ApiError(400, f"prompt: token IDs must be below {limit}, got {max(prompt)}")
            return prompt
        try:
            return self.model.encode(prompt)
        except ValueError as error:
            raise ApiError(400, f"prompt: {error}") from None

    async def _answer(self, body: Settings, prompts: list[list[int]]) -> Response:
        answer = Answer(self.model, self.batcher, body, prompts, self._config(body))
        if self.batcher.error is not None:
            raise ApiError(500, self.batcher.error)
        if len(prompts) > MAX_WAITING:
            raise ApiError(400, f"{len(prompts)} texts in a request; at most {MAX_WAITING} fit")
        if self.batcher.is_full(len(prompts)):
            raise ApiError(503, "too many requests are waiting; try again later", "busy")
        if not body.stream:
            return await answer.collect()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(answer.events(), 200, headers, "text/event-stream")

    def _config(self, body: Settings) -> SampleConfig:
        """Return the recipe's settings, changed by the request's."""
        names = {"temperature", "top_p", "top_k", "seed"}
        requested = body.model_dump(include=names, exclude_none=True)
        # As in OpenAI's API, each request gets a new random seed unless it specifies one.
        settings = {"seed": secrets.randbits(31), **requested}
        if 0 < settings.get("temperature", 1.0) < MIN_TEMPERATURE:
            settings["temperature"] = 0.0
        if tokens := body.max_completion_tokens or body.max_tokens:
            settings["max_new_tokens"] = tokens
        return self.model.sample.model_copy(update=settings)

    async def _read(self, request: HttpRequest, kind: type[Body]) -> Body:
        # A page on another site needs a CORS preflight to send JSON, so other types are refused.
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise ApiError(415, "send the header Content-Type: application/json")
        try:
            tree = json.loads(await _read_body(request))
            body = kind.model_validate(tree)
        except ValidationError as error:
            raise ApiError(400, _problem(error)) from None
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is not valid JSON") from None
        for name in UNSUPPORTED:
            if tree.get(name) not in (None, 0, False, [], {}, ""):
                raise ApiError(400, f"{name} is not supported; remove it", "unsupported")
        self._check_name(body.model)
        return body


def routes(model: LoadedModel, batcher: Batcher) -> list[Route]:
    """Return the routes of the server."""
    api = Api(model, batcher)
    return [
        Route("/", api.page),
        Route("/health", lambda request: Response()),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.one_model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
    ]


async def _read_body(request: HttpRequest) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body has more than {MAX_BODY_BYTES >> 20} MiB; shorten it")
    return bytes(body)


def _problem(error: ValidationError) -> str:
    """Return a sentence about the value; of a union's errors, not that of another type."""
    errors = error.errors()
    first = next((e for e in errors if not e["type"].endswith("_type")), errors[0])
    # Without pydantic's names of the types in a union.
    where = [str(part) for part in first["loc"] if not re.match(r"str$|list\[|Part$", str(part))]
    return f"{'.'.join(where) or 'body'}: {first['msg']}"


def _event(tree: dict[str, Any]) -> str:
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"
