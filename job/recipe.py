"""The recipe: the settings of a run, typed and checked before anything starts. No torch.

    recipe = load("configs/quickstart.yaml", ["lr=1e-3", "model.n_layer=6"])

A recipe is a YAML file plus overrides from the command line. An override gives a key in full
(``train.lr=1e-3``) or, if only one section has it, by its last part (``lr=1e-3``). Every mistake
is a RecipeError with file, line and, for a near miss, a suggestion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from job.exit_status import RecipeError
from job.format import brief, url_problem
from job.pretrained import GPT2, gpt2_shape, pretrained, shape_mismatch
from job.recipe_loader import (
    ATTENTION_PATTERN,
    DURATION,
    FOLDER_NAME,
    Source,
    apply_override,
    describe,
    read_yaml,
)
from job.trackers import TRACKERS

MIN_TEMPERATURE = 1e-4  # logits divided by less overflow float32
FREE: dict[str, Any] = {"resume": "free"}


def fixed(default: Any, description: str, **limits: Any) -> Any:
    """Return a field that identifies the run: it can't change when the run resumes."""
    return Field(default, description=description, **limits)


def free(default: Any, description: str, **limits: Any) -> Any:
    """Return a field that may change when a run resumes: it does not change the result."""
    return Field(default, description=description, json_schema_extra=FREE, **limits)


def impossible(key: str, message: str) -> PydanticCustomError:
    """Return the error for an impossible combination of values, reported at the line of ``key``."""
    return PydanticCustomError("impossible", "{message}", {"key": key, "message": message})


def source_problem(source: str) -> str:
    """Return why a source of text that is a URL can't be downloaded; '' if it can."""
    problem = url_problem(source) if "://" in source else ""
    return f"can't download {brief(source)}: {problem}" if problem else ""


class Section(BaseModel):
    """A section of a recipe. NaN and infinities are refused: NaN never compares less."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The network's shape."""

    variant: Literal["gpt2", "modern"] = fixed(
        "gpt2",
        "gpt2: OpenAI's architecture. modern: rotary positions, RMSNorm, QK-norm, "
        "squared ReLU, no biases, untied head",
    )
    n_layer: int = fixed(12, "blocks", ge=1, le=1000)
    n_head: int = fixed(12, "attention heads; divides n_embd", ge=1)
    n_embd: int = fixed(768, "width", ge=2, le=100_000)
    block_size: int = fixed(1024, "context, in tokens", ge=2, le=10_000_000)
    vocab_size: int | None = fixed(
        None,
        "rows of the embedding; null: the tokenizer's size, padded to a multiple of 64",
        ge=2,
        le=65536,
    )
    attention_pattern: str = fixed(
        "L",
        "per block, a window of window_size (S) or the whole context (L), repeated "
        "over the blocks; the last is always L (variant modern only)",
        pattern=ATTENTION_PATTERN,
    )
    window_size: int | None = fixed(
        None,
        "tokens that an S block sees, including the current one; a multiple of 128 on a GPU",
        ge=1,
    )
    value_embeddings: int = fixed(
        0,
        "blocks, every second one from the last, that add a learned embedding of each "
        "token to its value in the attention (variant modern only)",
        ge=0,
    )
    smear: int = fixed(
        1,
        "number of previous tokens whose embeddings each token adds to its own, by learned "
        "shares; 3 suits short runs on characters (variant modern only)",
        ge=0,
        le=16,
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    bias: bool = fixed(True, "biases in linear layers and norms (variant gpt2 only)")

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.n_embd % self.n_head:
            raise impossible(
                "n_embd", f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})"
            )
        if self.variant == "modern" and (self.n_embd // self.n_head) % 2:
            raise impossible(
                "n_embd",
                f"rotary positions need an even head size; n_embd / n_head is "
                f"{self.n_embd // self.n_head}",
            )
        most = (self.n_layer + 1) // 2 if self.variant == "modern" else 0
        if self.value_embeddings > most:
            raise impossible(
                "value_embeddings",
                f"value_embeddings ({self.value_embeddings}) must be at most {most} for "
                f"{self.n_layer} blocks of variant {self.variant}",
            )
        windows = "S" in self.attention_pattern
        if windows and self.variant == "gpt2":
            raise impossible(
                "attention_pattern",
                f"GPT-2 sees the whole context in every block; {self.attention_pattern} needs "
                "model.variant=modern",
            )
        if windows != (self.window_size is not None):
            raise impossible(
                "window_size",
                f"attention_pattern {self.attention_pattern} needs a window_size; try "
                f"{-(-self.block_size // 4)}"
                if windows
                else "window_size has no effect without an S in attention_pattern; try "
                "attention_pattern=SSSL",
            )
        if self.window_size is not None and self.window_size > self.block_size:
            raise impossible(
                "window_size",
                f"window_size ({self.window_size}) must be at most block_size ({self.block_size})",
            )
        return self


class DataConfig(Section):
    """The tokens that the run reads, and how `prepare` makes them."""

    dataset: str = Field(pattern=FOLDER_NAME, description="name of the folder in the data volume")
    source: str | None = fixed(
        None,
        "a file, folder, glob or URL of text, JSON lines or Parquet; `stdlib`: the "
        "source code of Python's standard library; `fineweb10B`: the published shards",
        min_length=1,
    )
    tokenizer: Literal["bytes", "chars", "gpt2"] = "gpt2"
    text_column: str = fixed("text", "the text column of JSON lines and Parquet files")
    split: Literal["documents", "tail"] = fixed(
        "documents",
        "validation set: `documents`: whole documents, by a hash of their name or "
        "text; `tail`: the last part of the text",
    )
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    shard_tokens: int = fixed(100_000_000, "tokens in one shard file", ge=1024)
    shards: int = fixed(9, "training shards to download, for a published dataset", ge=1)

    @model_validator(mode="after")
    def _possible(self) -> DataConfig:
        if problem := source_problem(self.source or ""):
            raise impossible("source", problem)
        return self


class TrainConfig(Section):
    """The training."""

    max_steps: int = Field(
        ge=0,
        description="optimizer steps; 0 with init_from evaluates those weights without training",
    )
    global_batch_tokens: int = Field(
        ge=2, description="tokens in one optimizer step, over all processes"
    )
    batch_schedule: list[list[int]] = fixed(
        [], "[[STEP, TOKENS], ...]: tokens per step from that step on"
    )
    window_schedule: list[list[int]] = fixed(
        [],
        "[[STEP, TOKENS], ...]: window size of the S blocks from that step (from 0) "
        "on; the last is model.window_size",
    )
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = free(
        16,
        "largest number of sequences that a process runs at once; the rest is accumulated; auto: "
        "as many as fit",
    )
    lr: float = fixed(6e-4, "peak learning rate", gt=0.0)
    min_lr: float = fixed(0.0, "learning rate at the end of the decay, after the last step", ge=0.0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = fixed(
        None, "steps of the decay, at the end; null: all after the warm-up", ge=1
    )
    weight_decay: float = fixed(0.1, "decoupled, on matrices only", ge=0.0)
    optimizer: Literal["adamw", "muon"] = fixed(
        "adamw", "muon: Muon for the blocks' matrices, AdamW for embeddings, head and vectors"
    )
    muon_lr: float = fixed(0.02, "peak learning rate of Muon; it follows lr's schedule", gt=0.0)
    muon_momentum: float = Field(0.95, ge=0.0, lt=1.0)
    muon_warmup_steps: int = fixed(
        0, "steps in which Muon's momentum rises from 0.85 to muon_momentum", ge=0
    )
    embedding_lr_scale: float = fixed(1.0, "learning rate of embeddings, relative to lr", gt=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.95, ge=0.0, lt=1.0)
    adam_eps: float = Field(1e-8, gt=0.0)
    grad_clip: float = fixed(1.0, "largest gradient norm; 0: no clipping", ge=0.0)
    dtype: Literal["auto", "float32", "bfloat16"] = fixed(
        "auto", "auto: bfloat16 if the hardware has it and it pays, else float32"
    )
    fp8: Literal["none", "head", "all"] = fixed(
        "none",
        "float8 matrix products, on an H100 or newer; head: those of the loss; all: "
        "also the blocks' forward products",
    )
    activation_checkpointing: bool = free(
        False,
        "keep only a block's input and recompute the rest in the backward pass: less memory, a "
        "third more work",
    )
    loss_chunk: int | None = free(
        None, "tokens whose logits are in memory at once; null: all of a micro-batch", ge=1
    )
    shard: bool = free(
        False,
        "with several GPUs: split the network and the optimizer among them (FSDP2)",
    )
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = free(
        "auto",
        "torch's attention kernel to try first on a GPU; auto: torch's own order",
    )
    compile: bool | Literal["auto"] = free(
        "auto", "torch.compile; auto: if the run outlasts compiling"
    )
    deterministic: bool = free(
        False,
        "only bit-reproducible algorithms: slower on a GPU, always the case on a CPU",
    )
    seed: int = Field(1337, ge=0)
    init_from: str | None = fixed(
        None,
        "initial weights: a run, a checkpoint folder, a Hugging Face folder of GPT-2, "
        "or a Hub model: gpt2, gpt2-medium, gpt2-large, gpt2-xl, hf://OWNER/NAME",
    )
    eval_every: int = free(250, "steps between evaluations", ge=1)
    eval_tokens: int | None = free(
        None,
        "validation tokens of an evaluation, the same each time; null: all",
        ge=1,
    )
    eval_tasks: list[Literal["hellaswag", "core"]] = free(
        [], "tasks to measure at each evaluation: hellaswag, core"
    )
    eval_task_questions: int = free(500, "questions of each task, the same each time", ge=1)
    checkpoint_every: int = free(250, "steps between checkpoints", ge=1)
    keep_last: int = free(2, "newest checkpoints to keep", ge=1)
    keep_best: bool = free(True, "also keep the checkpoint with the lowest validation loss")
    log_every: int = free(10, "steps between lines of the log", ge=1)
    stop_on_nan: bool = free(True, "fail the run (100) if the loss or gradient is NaN or infinite")
    sample_every: int | None = free(
        None, "steps between samples written to samples/; null: at the end", ge=1
    )
    wandb_project: str | None = free(
        None, "Weights & Biases project to log to; without WANDB_API_KEY to the run's folder"
    )
    mlflow_project: str | None = free(
        None, "MLflow experiment to log to; without MLFLOW_TRACKING_URI to the run's folder"
    )
    trackio_project: str | None = free(
        None, "Trackio project to log to; without TRACKIO_SPACE_ID to the run's folder"
    )
    tracker_tags: list[str] = free([], "tags of the run in its trackers")
    tracker_checkpoint: bool = free(False, "upload the final checkpoint to the trackers")

    def projects(self) -> dict[str, str]:
        """Return the project to log to by tracker."""
        values = {name: getattr(self, f"{name}_project") for name in TRACKERS}
        return {name: project for name, project in values.items() if project}

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        try:
            pretrained(self.init_from)
        except ValueError as error:
            raise impossible("init_from", str(error)) from None
        if self.max_steps == 0:
            if self.init_from is None:
                raise impossible(
                    "max_steps",
                    "max_steps=0 trains nothing: use at least 1, or name weights to evaluate "
                    "(init_from=gpt2)",
                )
            return self
        if self.warmup_steps >= self.max_steps:
            raise impossible(
                "warmup_steps",
                f"warmup_steps ({self.warmup_steps}) must be below max_steps ({self.max_steps})",
            )
        if self.decay_steps is not None and self.decay_steps + self.warmup_steps > self.max_steps:
            raise impossible(
                "decay_steps",
                f"warmup_steps + decay_steps ({self.warmup_steps} + {self.decay_steps}) "
                f"exceed max_steps ({self.max_steps})",
            )
        for key, earliest in (("batch_schedule", 1), ("window_schedule", 0)):
            first = earliest
            for stage in getattr(self, key):
                if len(stage) != 2 or not first <= stage[0] < self.max_steps or stage[1] < 1:
                    raise impossible(
                        key,
                        f"invalid stage {stage}; expected [STEP, TOKENS] with increasing steps "
                        f"from {earliest} to below max_steps ({self.max_steps})",
                    )
                first = stage[0] + 1
        if self.fp8 != "none" and (self.loss_chunk is None or self.loss_chunk % 16):
            raise impossible("fp8", f"fp8={self.fp8} needs loss_chunk, a multiple of 16; try 16384")
        if self.min_lr > self.lr:
            raise impossible("min_lr", f"min_lr ({self.min_lr:g}) must not exceed lr ({self.lr:g})")
        return self


class SampleConfig(Section):
    """The text that `sample` writes, and that a run prints at its end."""

    prompt: str = free("", "text to continue; @FILE reads a file, - reads stdin")
    num_samples: int = free(1, "samples, generated in one batch", ge=1)
    max_new_tokens: int = free(300, "tokens", ge=1)
    temperature: float = free(0.8, "0: the most likely token", ge=0.0)
    top_k: int | None = free(200, "only the k most likely tokens; null: all", ge=1)
    top_p: float | None = free(
        None, "the smallest set of tokens whose probabilities sum to p; null: all", gt=0.0, le=1.0
    )
    seed: int = free(1337, "random seed of the sampling", ge=0)

    @model_validator(mode="after")
    def _possible(self) -> SampleConfig:
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise impossible(
                "temperature",
                f"temperature ({self.temperature:g}) must be 0, for the most likely token, or at "
                f"least {MIN_TEMPERATURE:g}",
            )
        return self


class ResourcesConfig(Section):
    """The resources that the job needs from its target."""

    gpu: str | None = free(
        None, "on Modal: H100, H100:8, or a list in order of preference, H100,A100-80GB"
    )
    timeout: str = free("24h", "time limit of the whole run: 90m, 12h, 2d", pattern=DURATION)
    stop_stalled_after: str | None = free(
        "10m",
        "Modal: stop a run that took no step for ten times as long as usual and at least this "
        "long; null: never",
        pattern=DURATION,
    )
    stop_idle_gpu_after: str | None = free(
        "15m",
        "Modal: stop a run if a GPU was idle for this long; null: never",
        pattern=DURATION,
    )


class Recipe(Section):
    """A whole recipe; ``load`` creates one."""

    name: str = free("", "name of the run without --name; default: the file's name")
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig
    sample: SampleConfig = SampleConfig()
    resources: ResourcesConfig = ResourcesConfig()

    _source: Source | None = PrivateAttr(None)
    _adjusted: str = PrivateAttr("")

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        block = self.model.block_size
        for step, tokens in self.train.batch_schedule:
            if tokens % block:
                raise impossible(
                    "train.batch_schedule",
                    f"tokens from step {step} on ({tokens}) must be a multiple of "
                    f"model.block_size ({block})",
                )
        windows = self.train.window_schedule
        if windows and (
            windows[-1][1] != self.model.window_size or max(tokens for _, tokens in windows) > block
        ):
            raise impossible(
                "train.window_schedule",
                f"{windows} must end with model.window_size ({self.model.window_size}) and have "
                f"no window longer than block_size ({block})",
            )
        source = self.train.init_from
        if source in GPT2 and (
            words := shape_mismatch(self.model.model_dump(), gpt2_shape(*GPT2[source]))
        ):
            raise impossible("train.init_from", f"{source} is a different network; use {words}")
        tokens = self.train.global_batch_tokens
        if tokens % block:
            nearest = max(1, round(tokens / block)) * block
            raise impossible(
                "train.global_batch_tokens",
                f"global_batch_tokens ({tokens}) must be a multiple of model.block_size ({block}); "
                f"the nearest is {nearest}",
            )
        return self

    @property
    def sequences_per_step(self) -> int:
        """Return the sequences of block_size tokens in one optimizer step, over all processes."""
        return self.train.global_batch_tokens // self.model.block_size

    @property
    def adjusted(self) -> str:
        """Return the schedules that were scaled to a shorter run, for a message; '' if none."""
        return self._adjusted

    def mistake(self, key: str, message: str) -> RecipeError:
        """Return an error about ``key`` that was found later, with its line."""
        where = self._source.where(key) if self._source is not None else key
        return RecipeError(f"{where}: {message}")

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every key."""
        import yaml

        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def load(path: str | Path, overrides: Sequence[str] = (), section: str = "train") -> Recipe:
    """Read the recipe at ``path``, apply ``overrides`` (``key=value``), and check it.

    A short key that several sections have (``seed``) means that of ``section``. Raises RecipeError.
    """
    path = Path(path)
    source = read_yaml(path)
    train = source.tree.get("train")
    planned_steps = train.get("max_steps") if isinstance(train, dict) else None
    for override in overrides:
        apply_override(source, override, known_keys(), text_keys(), section)
    source.tree.setdefault("name", path.stem)
    adjusted = _fit_schedules(source, planned_steps)
    recipe = _check(source)
    recipe._adjusted = adjusted
    return recipe


def _fit_schedules(source: Source, planned_steps: Any) -> str:
    """Scale schedules of the file that an override of max_steps made too long; return the changes.

    A schedule that fits, or that was itself overridden, stays as it is.
    """
    train: Any = source.tree.get("train")
    steps: Any = train.get("max_steps") if isinstance(train, dict) else None
    if not _is_count(steps) or not _is_count(planned_steps) or not 0 < steps < planned_steps:
        return ""
    before = dict(train)
    warmup, decay = train.get("warmup_steps", 0), train.get("decay_steps") or 0
    if _is_count(warmup) and _is_count(decay) and (warmup >= steps or warmup + decay > steps):
        if "train.warmup_steps" not in source.overrides and warmup:
            train["warmup_steps"] = warmup * steps // planned_steps
        if "train.decay_steps" not in source.overrides and decay:
            train["decay_steps"] = max(1, decay * steps // planned_steps)
    for key, earliest in (("batch_schedule", 1), ("window_schedule", 0)):
        stages = train.get(key)
        if f"train.{key}" in source.overrides or not _are_stages(stages):
            continue
        if stages and stages[-1][0] >= steps:
            by_step = {max(earliest, n * steps // planned_steps): tokens for n, tokens in stages}
            train[key] = [[step, tokens] for step, tokens in by_step.items() if step < steps]
    changed = [
        f"{key} {before[key]} -> {train[key]}" for key in before if before[key] != train[key]
    ]
    return f"{', '.join(changed)} (scaled to max_steps={steps})" if changed else ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_stages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(stage, list) and len(stage) == 2 and _is_count(stage[0]) for stage in value
    )


def changes(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the settings that make ``after`` another run than ``before``: key → both values."""
    old, new = before.model_dump(), after.model_dump()
    return {
        key: (_get(old, key), _get(new, key))
        for key, is_free in known_keys().items()
        if not is_free and _get(old, key) != _get(new, key)
    }


def known_keys() -> dict[str, bool]:
    """Return every full key (``train.lr``), and whether it may change when the run resumes."""
    return {key: field.json_schema_extra == FREE for key, field in _fields()}


def text_keys() -> set[str]:
    """Return the full keys whose value is free text."""
    return {key for key, field in _fields() if field.annotation in (str, str | None)}


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for leaf, sub in field.annotation.model_fields.items():
                yield f"{name}.{leaf}", sub
        else:
            yield name, field


def _get(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _check(source: Source) -> Recipe:
    try:
        recipe = Recipe.model_validate(source.tree)
    except ValidationError as error:
        raise RecipeError("\n".join(describe(error.errors(), source, known_keys()))) from None
    recipe._source = source
    return recipe
