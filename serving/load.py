"""Load the network to use: a run, an exported folder, or GPT-2 in a folder or on the Hub."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from corpus import DataError, Monitor
from corpus.hub import download_weights
from corpus.samples import encode_prompt
from corpus.tokenizers import GPT2Tokenizer, Tokenizer, from_meta
from job.arguments import report
from job.exit_status import RecipeError, UserError
from job.files import read_file
from job.paths import VolumePaths
from job.pretrained import pretrained, read_gpt2_config
from job.recipe import ModelConfig, SampleConfig
from job.typed_json import read_object
from model import device as devices
from model.checkpoint import Tensors
from model.gpt import GPT
from model.load_run import open_run, read_gpt2
from serving.export import NAMES, OWN_SECTION, nanochat_names

Message = dict[str, str]  # role, content


class ChatTemplate:
    """A Jinja template that turns messages into text, as transformers applies it.

    ``special`` has the tokens of a fixed text, such as <|im_start|>.
    """

    def __init__(self, source: str, special: dict[str, int], variables: dict[str, str]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        self.template = environment.from_string(source)
        self.special, self.variables = special, variables
        longest_first = sorted(special, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def encode(self, messages: list[Message], tokenizer: Tokenizer) -> list[int]:
        """Return the tokens of a conversation up to where the assistant answers.

        Raises ValueError for messages that the template refuses.
        """
        try:
            text = self.template.render(
                messages=messages, add_generation_prompt=True, **self.variables
            )
        except Exception as error:  # its expressions can raise anything
            raise ValueError(f"the chat template refuses the messages: {error}") from None
        tokens: list[int] = []
        for part in filter(None, self.pattern.split(text)):
            if part in self.special:
                tokens.append(self.special[part])
            else:
                tokens += tokenizer.encode(part).tolist()
        return tokens


def _raise_exception(message: str) -> None:
    """Refuse a conversation; templates call it by this name."""
    raise ValueError(message)


@dataclass(frozen=True)
class LoadedModel:
    """A network that is ready to generate."""

    name: str
    network: GPT
    tokenizer: Tokenizer
    sample: SampleConfig  # the settings that a request does not name
    template: ChatTemplate | None = None
    created: int = 0

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that may be drawn; padding rows come after them."""
        special = self.template.special.values() if self.template is not None else ()
        return max(self.tokenizer.vocab_size, *(token + 1 for token in special), 0)

    @property
    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text."""
        eot = () if self.tokenizer.eot is None else (self.tokenizer.eot,)
        if self.template is None:
            return frozenset(eot)
        token = self.template.special.get(self.template.variables.get("eos_token", ""))
        return frozenset(eot if token is None else (*eot, token))

    def encode(self, prompt: str) -> list[int]:
        """Return a prompt's tokens. Raises ValueError for a character outside the vocabulary."""
        return encode_prompt(prompt, self.tokenizer)


def load_model(
    run: str | None, source: str | None, overrides: list[str], device: str | None
) -> LoadedModel:
    """Load ``source``, a folder or a model on the Hub; without one a run, by default the newest."""
    if source is None:
        trained = open_run(run, overrides, device)
        template = read_template(trained.folder / "huggingface") or read_template(trained.folder)
        created = int((trained.folder / "recipe.yaml").stat().st_mtime)
        name, network, tokenizer = trained.folder.name, trained.network, trained.tokenizer
        return LoadedModel(
            name, network.eval(), tokenizer, trained.recipe.sample, template, created
        )
    locations = VolumePaths.current()
    locations.set_defaults()
    sample, folder = _sample_settings(overrides), Path(source)
    try:
        hub = pretrained(source)
        if hub is not None:
            check = lambda path: read_gpt2_config(path.read_bytes(), source)  # noqa: E731
            monitor = Monitor(lambda event: report(str(event)) if isinstance(event, str) else None)
            # _read_folder compares the vocabulary, once the weights are there.
            folder = download_weights(hub, locations.cache, check, lambda path: None, monitor)
        network, tokenizer = _read_folder(folder)
    except (ValueError, OSError) as error:
        problem = str(error).removeprefix(f"{folder}: ")
        raise UserError(problem if str(folder) in problem else f"{source}: {problem}") from None
    created = int((folder / "config.json").stat().st_mtime)
    network = network.to(devices.pick_device(device, 0)).eval()
    name = hub.repository if hub is not None else folder.name
    return LoadedModel(name, network, tokenizer, sample, read_template(folder), created)


def _read_folder(folder: Path) -> tuple[GPT, Tokenizer]:
    """Return the network and the tokenizer of an export or of GPT-2; ValueError for others."""
    if not (path := folder / "config.json").exists():
        raise ValueError(
            "not a run and not a folder with Hugging Face's config.json; `runner runs` lists the "
            "runs"
        )
    text = read_file(path)
    try:
        config = read_object(text)
    except ValueError as error:
        raise ValueError(f"config.json is damaged ({error}); export or download it again") from None
    own = config.get(OWN_SECTION)
    rows = int(config.get("vocab_size") or 0)
    if own is None or config.get("model_type") == "gpt2":
        shape = read_gpt2_config(text, "config.json")
        rows = shape.pop("vocab_size")
        if own is None and rows < GPT2Tokenizer.vocab_size:
            raise ValueError(
                f"config.json: vocab_size is {rows}; a folder that `export` did not write needs "
                f"GPT-2's vocabulary of {GPT2Tokenizer.vocab_size} tokens"
            )
        tokenizer = from_meta(own["tokenizer"]) if own else GPT2Tokenizer()
        network = GPT(ModelConfig(**shape), rows)
        network.load_state_dict(read_gpt2(folder, network, tokenizer))
        return network, tokenizer
    try:
        network = GPT(ModelConfig(**own["model"]), rows)
        tokenizer = from_meta(own["tokenizer"])
        weights = _own_names(load_file(folder / "model.safetensors"), network)
        network.load_state_dict(weights)
    except (LookupError, TypeError, ValidationError, RuntimeError) as error:
        raise ValueError(f"damaged export: {error}; export the run again") from None
    return network, tokenizer


def _own_names(weights: Tensors, network: GPT) -> Tensors:
    """Return the weights under this project's names: the inverse of ``nanochat_weights``."""
    weights.setdefault(NAMES["smear"], torch.zeros(network.config.n_embd))
    names = {name: nanochat_names(name) for name in network.state_dict()}
    return {name: torch.cat([weights[part] for part in parts]) for name, parts in names.items()}


def changed_settings(settings: SampleConfig, name: str, text: str) -> SampleConfig:
    """Return the settings with one that is given as text. Raises ValueError for a bad value."""
    value: Any = text
    with suppress(ValueError):
        value = json.loads(text)
    try:
        # Not model_copy, which checks nothing.
        return SampleConfig(**{**settings.model_dump(), name: value})
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def _sample_settings(overrides: list[str]) -> SampleConfig:
    """Return the settings of the section ``sample``, from words such as temperature=0.5."""
    settings = SampleConfig()
    for word in overrides:
        key, _, text = word.partition("=")
        name = key.removeprefix("sample.")
        if name not in SampleConfig.model_fields:
            known = ", ".join(SampleConfig.model_fields)
            raise RecipeError(f"unknown setting '{key}'; the settings are {known}")
        try:
            settings = changed_settings(settings, name, text)
        except ValueError as error:
            raise RecipeError(f"{name}: {error}") from None
    return settings


def read_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a Hugging Face folder; None if it has none."""
    try:
        config = json.loads(read_file(folder / "tokenizer_config.json"))
        described = json.loads(read_file(folder / "tokenizer.json"))
        special = {each["content"]: int(each["id"]) for each in described.get("added_tokens") or ()}
        file = folder / "chat_template.jinja"
        source = read_file(file).decode() if file.exists() else config.get("chat_template")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if not isinstance(source, str):
        return None
    names = {name: config.get(name) for name in ("bos_token", "eos_token")}
    variables = {
        name: token["content"] if isinstance(token, dict) else str(token or "")
        for name, token in names.items()
    }
    from jinja2 import TemplateError

    try:
        return ChatTemplate(source, special, variables)
    except TemplateError as error:
        raise DataError(f"{folder}: invalid chat template: {error}") from None
