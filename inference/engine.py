"""Generate tokens for many requests at once, with one cache of keys and values.

    engine = Engine(network, num_tokens=257, ends={256}, slots=32)
    request = engine.add([100, 101, 102], SampleConfig(max_new_tokens=20), seed=1)
    while engine.is_busy:
        for request in engine.step():
            print(request.token, request.finish)

Requests join and leave between steps (continuous batching). The text of a request depends only on
its own seed, not on the other requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, device

from job.exit_status import NonFiniteLoss
from job.recipe import ModelConfig, SampleConfig


@dataclass(frozen=True)
class Positions:
    """The position of the only query of each row; ``end`` is above all of them."""

    rows_B: Tensor
    end: int


Start = int | Positions  # the position of the first query: one for all rows, or one for each


@dataclass
class LayerCache:
    """Keys and values (B, H, S, K) of one block, which sees ``window`` tokens or all of them."""

    window: int | None
    k_BHSK: Tensor
    v_BHSK: Tensor

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, start: Start) -> tuple[Tensor, Tensor]:
        """Store the new positions at ``start``; return all that at least one of them sees."""
        k_BHSK, v_BHSK = self.k_BHSK[: len(k_BHTK)], self.v_BHSK[: len(v_BHTK)]
        if isinstance(start, Positions):
            first, end = 0, start.end
            at = torch.arange(len(k_BHTK), device=k_BHTK.device), slice(None), start.rows_B
            k_BHSK[at], v_BHSK[at] = k_BHTK[:, :, 0], v_BHTK[:, :, 0]
        else:
            first = 0 if self.window is None else max(0, start - self.window + 1)
            end = start + k_BHTK.size(2)
            k_BHSK[:, :, start:end], v_BHSK[:, :, start:end] = k_BHTK, v_BHTK
        return k_BHSK[:, :, first:end], v_BHSK[:, :, first:end]


@dataclass
class KVCache:
    """A LayerCache for each block, and the embeddings of the last P tokens for the smear."""

    layers: list[LayerCache]
    last_BPD: Tensor

    def previous(self, x_BTD: Tensor, start: Start) -> Tensor:
        """Return the P embeddings before ``x_BTD``, the oldest first; store its last P.

        Embeddings before the start of a text are zeros.
        """
        last_BPD = self.last_BPD[: len(x_BTD)]
        P = last_BPD.size(1)
        distance_P = torch.arange(P, 0, -1, device=x_BTD.device)
        exists = distance_P <= (start.rows_B[:, None] if isinstance(start, Positions) else start)
        previous_BPD = last_BPD.to(x_BTD.dtype) * exists[..., None]
        last_BPD.copy_(torch.cat((previous_BPD, x_BTD), dim=1)[:, -P:])
        return previous_BPD

    def row(self, row: int) -> KVCache:
        """Return one row as a cache of its own, with shared memory."""
        rows = slice(row, row + 1)
        layers = [LayerCache(x.window, x.k_BHSK[rows], x.v_BHSK[rows]) for x in self.layers]
        return KVCache(layers, self.last_BPD[rows])

    def copy_row(self, source: int, target: int) -> None:
        """Copy one row to another."""
        tensors = [t for layer in self.layers for t in (layer.k_BHSK, layer.v_BHSK)]
        for tensor in (*tensors, self.last_BPD):
            tensor[target] = tensor[source]


class Network(Protocol):
    """A causal language model, as ``model.gpt.GPT``. Shape suffixes as in model/gpt.py."""

    config: ModelConfig
    training: bool

    @property
    def device(self) -> device:
        """The device of its weights."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on or off."""

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Return an empty KVCache for ``batch`` sequences of up to ``length`` positions."""

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None, start: Start = 0) -> Tensor:
        """Return the output of the last block (B, T, D) for tokens from position ``start``."""

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Return the scores of the next token in float32."""


STOP, LENGTH = "stop", "length"  # why a request ended


@dataclass(eq=False)
class Request:
    """A text in the making: ``token`` is its newest, None if it ended with the end of text."""

    tokens: list[int]  # the prompt, then the generated ones
    config: SampleConfig
    generator: torch.Generator
    remaining: int
    position: int = 0  # of the last token, which the network has not read yet
    token: int | None = None
    finish: str | None = None  # set by the engine
    is_cancelled: bool = False  # set by the caller: the request leaves before the next step


@dataclass
class Engine:
    """A network with ``slots`` rows of cache.

    ``num_tokens`` is the tokenizer's vocabulary: the network's padding rows are never drawn. When
    the context is full, a text continues from its last half.
    """

    network: Network
    num_tokens: int
    ends: Collection[int]  # tokens that end a text
    slots: int
    queue: deque[Request] = field(default_factory=deque)
    active: list[Request] = field(default_factory=list)  # the index is the row of the cache

    def __post_init__(self) -> None:
        self.block = self.network.config.block_size
        self.cache = self.network.new_cache(self.slots, self.block)
        self.device = self.network.device

    @property
    def is_busy(self) -> bool:
        """Return True if a request waits or is active."""
        return bool(self.queue or self.active)

    def add(self, prompt: list[int], config: SampleConfig, seed: int) -> Request:
        """Queue a request for the text after ``prompt``."""
        request = self.prepare(prompt, config, seed)
        self.queue.append(request)
        return request

    def prepare(self, prompt: list[int], config: SampleConfig, seed: int) -> Request:
        """Return a request that is not queued yet."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return Request(list(prompt), config, generator, config.max_new_tokens)

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Generate one token for each active request; return them, the ended ones too."""
        for row in reversed(range(len(self.active))):
            if self.active[row].finish is not None or self.active[row].is_cancelled:
                self._remove(row)
        while self.queue and len(self.active) < self.slots:
            self._admit(self.queue.popleft())
        if not (stepped := self.active[:]):
            return []
        for row, request in enumerate(stepped):
            if request.position == self.block:
                self._read(row, request, self.block // 2)
        ids_B1 = torch.tensor([[r.tokens[-1]] for r in stepped], device=self.device)
        hidden_B1D = self.network.hidden(ids_B1, self.cache, self._positions())
        logits_BV = self.network.logits(hidden_B1D)[:, 0, : self.num_tokens]
        drawn = draw_each(logits_BV, stepped)
        for request, token in zip(stepped, drawn, strict=True):
            self._accept(request, token)
        return stepped

    def _accept(self, request: Request, token: int) -> None:
        request.position += 1
        if token in self.ends:
            request.token, request.finish = None, STOP
            return
        request.token = token
        request.tokens.append(token)
        request.remaining -= 1
        if not request.remaining:
            request.finish = LENGTH

    def _positions(self) -> int | Positions:
        positions = [request.position for request in self.active]
        if len(set(positions)) == 1:  # no mask is needed
            return positions[0]
        return Positions(torch.tensor(positions, device=self.device), max(positions) + 1)

    def _admit(self, request: Request) -> None:
        if request.is_cancelled:
            return
        row = len(self.active)
        self.active.append(request)
        before = self.active[row - 1] if row else None
        if before is not None and before.token is None and before.tokens == request.tokens:
            self.cache.copy_row(row - 1, row)  # samples of one prompt read it once
            request.position = before.position
        else:
            self._read(row, request, self.block)

    def _read(self, row: int, request: Request, length: int) -> None:
        """Fill the row with the last ``length`` tokens but the very last."""
        context = request.tokens[-max(1, length) :]
        request.position = len(context) - 1
        if request.position:
            ids_1T = torch.tensor([context[:-1]], device=self.device)
            self.network.hidden(ids_1T, self.cache.row(row), 0)

    def _remove(self, row: int) -> None:
        """Free a row; the last one takes its place, so that active rows stay adjacent."""
        last = self.active.pop()
        if row < len(self.active):
            self.cache.copy_row(len(self.active), row)
            self.active[row] = last


def generate(
    network: Network,
    prompt: list[int],
    config: SampleConfig,
    num_tokens: int,
    eot: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield, for each new position, one token for each sample; None after ``eot``."""
    was_training = network.training
    network.train(False)
    ends = () if eot is None else (eot,)
    engine = Engine(network, num_tokens, ends, slots=config.num_samples)
    samples = [engine.add(prompt, config, config.seed + n) for n in range(config.num_samples)]
    while engine.is_busy:
        stepped = engine.step()
        row = [sample.token if sample in stepped else None for sample in samples]
        if any(token is not None for token in row):
            yield row
    network.train(was_training)


def filtered(logits_BV: Tensor, config: SampleConfig) -> Tensor:
    """Return the logits at the temperature, -inf for tokens that top-k and top-p exclude."""
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
    return logits_BV


def draw(logits_BV: Tensor, config: SampleConfig, generators: list[torch.Generator]) -> Tensor:
    """Draw one token for each row (B,); temperature 0 selects the most likely."""
    if not bool(logits_BV.isfinite().all()):
        raise NonFiniteLoss("the network's scores are NaN or infinite: its training has diverged")
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    chances_BV = filtered(logits_BV, config).softmax(-1)
    rows = zip(chances_BV, generators, strict=True)
    return torch.cat([torch.multinomial(row_V, 1, generator=own) for row_V, own in rows])


def draw_each(logits_BV: Tensor, requests: list[Request]) -> list[int]:
    """Draw one token for each request; requests with the same settings are filtered together."""
    tokens, groups = [0] * len(requests), dict[tuple[object, ...], list[int]]()
    for row, request in enumerate(requests):
        config = request.config
        groups.setdefault((config.temperature, config.top_k, config.top_p), []).append(row)
    for rows in groups.values():
        logits = logits_BV if len(rows) == len(requests) else logits_BV[rows]
        generators = [requests[row].generator for row in rows]
        drawn = draw(logits, requests[rows[0]].config, generators).tolist()
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
    return tokens
