"""Export a run's newest checkpoint and its tokenizer to Hugging Face format.

    python -m serving.export --name gpt2 --output exported/
    python -m serving.export --name gpt2 --push OWNER/NAME     # and upload it to the Hub

GPT-2 and the modern variant without smear and windows are classes of transformers. For the other
networks, a modeling file goes next to the weights.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from corpus.initial_weights import CONV1D, PREFIX
from corpus.tokenizer_export import export_folder, write_tokenizer
from corpus.tokenizers import Tokenizer
from job.arguments import leave, parse, report, run, run_parser
from job.exit_status import ExitStatus, UsageError, UserError
from job.files import new_file, write_atomically
from job.format import duration
from job.pretrained import REPOSITORY, gpt2_config, invalid_repository
from job.run_record import read_record
from model.gpt import GPT, LOGIT_SOFTCAP, ROTARY_BASE
from model.load_run import TrainedRun, open_run

MODELING = Path(__file__).with_name("modeling_gpt_runner.py")
# In config.json: this project's description of the network and the tokenizer.
OWN_SECTION = "gpt_runner"

# The modern variant's names in transformers' NanoChat; c_attn is split into three matrices.
NAMES = {
    "wte.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
    "smear": "model.smear",
}
LAYER_NAMES = {
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_proj.weight": "mlp.fc2.weight",
}
PROJECTIONS = tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv")


def export(network: GPT, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write the network for ``AutoModelForCausalLM`` and return the name of its class."""
    if network.config.value_embeddings:
        raise UserError(
            "transformers has no class for value embeddings; to export, train with "
            "model.value_embeddings=0"
        )
    folder.mkdir(parents=True, exist_ok=True)
    eot = tokenizer.eot if tokenizer is not None else None
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    if network.config.variant == "gpt2":
        weights = _gpt2_weights(network, state)
        config = gpt2_config(network.config, network.vocab_size, eot)
    else:
        config = _nanochat_config(network, eot)
        weights = nanochat_weights(state)
        if "auto_map" in config:
            shutil.copyfile(MODELING, folder / MODELING.name)
        else:
            (folder / MODELING.name).unlink(missing_ok=True)
    if tokenizer is not None:
        own = {"model": network.config.model_dump(), "tokenizer": tokenizer.to_meta()}
        config[OWN_SECTION] = own
        write_tokenizer(tokenizer, folder, network.config.block_size, network.vocab_size)
    with new_file(folder / "model.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, ensure_ascii=False)
    write_atomically(folder / "config.json", text + "\n")
    return str(config["architectures"][0])


def _gpt2_weights(network: GPT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in state.items():
        value = tensor.t() if name.endswith(CONV1D) else tensor
        weights[PREFIX + name] = value.contiguous()
        is_table = name in ("wte.weight", "wpe.weight")
        if not network.config.bias and name.endswith("weight") and not is_table:
            # Their network always has biases; zeros change nothing.
            weights[PREFIX + name.removesuffix("weight") + "bias"] = torch.zeros(tensor.size(0))
    return weights


def nanochat_names(name: str) -> list[str]:
    """Return NanoChat's names of one of our weights, which has their rows in this order."""
    if name in NAMES:
        return [NAMES[name]]
    _, layer, inner = name.split(".", 2)
    parts = PROJECTIONS if inner == "attn.c_attn.weight" else (LAYER_NAMES[inner],)
    return [f"model.layers.{layer}.{part}" for part in parts]


def nanochat_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the modern variant's weights under NanoChat's names."""
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = nanochat_names(name)
        parts = tensor.chunk(len(names))
        weights |= {theirs: part.contiguous() for theirs, part in zip(names, parts, strict=True)}
    return weights


def _nanochat_config(network: GPT, eot: int | None) -> dict[str, Any]:
    model = network.config
    config: dict[str, Any] = {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": network.vocab_size,
        "hidden_size": model.n_embd,
        "intermediate_size": 4 * model.n_embd,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "max_position_embeddings": model.block_size,
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # torch's default
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "final_logit_softcapping": LOGIT_SOFTCAP,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), eot),
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    if not any(network.short) and not model.smear:
        return config
    kinds = ["sliding_attention" if short else "full_attention" for short in network.short]
    classes = {"AutoConfig": "GPTRunnerConfig", "AutoModelForCausalLM": "GPTRunnerForCausalLM"}
    return {
        **config,
        "architectures": ["GPTRunnerForCausalLM"],
        "model_type": "gpt_runner",
        "auto_map": {auto: f"{MODELING.stem}.{name}" for auto, name in classes.items()},
        "layer_types": kinds,
        "sliding_window": network.window,
        "smear": model.smear,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, export, and return the exit status."""
    parser = run_parser("export", __doc__ or "")
    parser.add_argument("--output", metavar="DIR", help="default: huggingface/ in the run's folder")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hub")
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    if arguments.push is not None:
        check_push(arguments.push)
    trained = open_run(arguments.name, arguments.overrides, "cpu")
    folder = export_folder(arguments.output, trained.folder)
    name = export(trained.network, trained.tokenizer, folder)
    trust = ", trust_remote_code=True" if name == "GPTRunnerForCausalLM" else ""
    report(
        f"exported run '{trained.folder.name}', step {trained.step}; load it with "
        f'AutoTokenizer and AutoModelForCausalLM.from_pretrained("{folder}"{trust})'
    )
    print(folder)
    if arguments.push:
        write_card(trained, folder, arguments.push, bool(trust))
        print(push(folder, arguments.push))
    return ExitStatus.DONE


# huggingface_hub reads HF_TOKEN and HF_ENDPOINT itself; no message and no file has the token.
INSTALL = "pip install 'gpt-runner[hub]'"
MAX_SAMPLE_CHARACTERS = 2000


def check_push(repository: str) -> None:
    """Raise UserError, before the export, for a push that can't work."""
    if not REPOSITORY.fullmatch(repository):
        raise UsageError(invalid_repository(repository))
    try:
        from huggingface_hub import get_token
    except ImportError:
        raise UserError(f"--push needs huggingface_hub; install it: {INSTALL}") from None
    if get_token() is None:
        raise UserError(
            "--push needs a token that can write: set HF_TOKEN in the environment or in .env "
            "(https://huggingface.co/settings/tokens)"
        )


def push(folder: Path, repository: str) -> str:
    """Upload ``folder`` in one commit and return its address. A new repository is private."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload the exported run"
        )
    except HfHubHTTPError as error:
        problem = error.server_message or f"HTTP {error.response.status_code}"
        raise UserError(
            f"--push {repository}: the Hub refused it: {problem}; check the name and that HF_TOKEN "
            f"can write there. The export is complete: {folder}"
        ) from None
    except OSError as error:  # also httpx's errors, by way of ConnectionError
        raise UserError(f"--push {repository}: {error}; the export is complete: {folder}") from None
    return str(commit.repo_url)


def write_card(trained: TrainedRun, folder: Path, repository: str, remote_code: bool) -> None:
    """Write README.md: data, recipe, losses, samples, cost and commit of the run."""
    text = "\n".join(_card(trained, repository, remote_code))
    write_atomically(folder / "README.md", text + "\n")


def _card(trained: TrainedRun, repository: str, remote_code: bool) -> Iterator[str]:
    run = trained.folder
    trust = ", trust_remote_code=True" if remote_code else ""
    yield "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [gpt-runner]\n---"
    yield f"# {repository.partition('/')[2]}\n"
    yield "A language model trained from scratch with gpt-runner.\n"
    yield "```python\nfrom transformers import pipeline\n"
    yield f'write = pipeline("text-generation", "{repository}"{trust})'
    yield f'print(write({trained.recipe.sample.prompt or "Once"!r})[0]["generated_text"])\n```\n'
    yield "## Training\n\n| | |\n|---|---|"
    yield from (f"| {name} | {text} |" for name, text in _rows(trained))
    yield from ("", "## Recipe", "", "```yaml")
    yield (run / "recipe.yaml").read_text(encoding="utf-8").rstrip()
    yield "```"
    samples = sorted((run / "samples").glob("step_*.txt"))
    if samples:
        text = samples[-1].read_text(encoding="utf-8", errors="replace")[:MAX_SAMPLE_CHARACTERS]
        yield from ("", "## Sample", "", "````text", text.rstrip().replace("````", "'```"), "````")


def _rows(trained: TrainedRun) -> Iterator[tuple[str, str]]:
    record = read_record(trained.folder)
    model, data = trained.recipe.model, trained.recipe.data
    yield "run", f"`{trained.folder.name}`, step {trained.step:,}"
    yield "parameters", f"{sum(p.numel() for p in trained.network.parameters()):,}"
    yield "network", f"{model.variant}, {model.n_layer} layers, width {model.n_embd}"
    yield "context", f"{model.block_size:,} tokens, tokenizer {trained.tokenizer.name}"
    yield "data", f"{data.dataset}, from `{data.source}`" if data.source else data.dataset
    if record is None:
        return
    if record.tokens:
        yield "training tokens", f"{record.tokens:,}"
    losses = {
        "training": record.train_loss,
        "validation": record.val_loss,
        "best validation": record.best_val_loss,
    }
    known = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
    yield "loss (nats per token)", ", ".join(known) or "not measured"
    devices = {a.device: a.world_size for a in record.attempts if a.device}
    yield "device", ", ".join(f"{count} x {name}" for name, count in devices.items())
    yield "time", duration(record.seconds)
    if (cost := _cost(trained.folder)) is not None:
        yield "cost", f"${cost:.2f} on Modal"
    if commit := record.git.get("commit"):
        dirty = " with local changes" if record.git.get("dirty") else ""
        yield "commit", f"`{commit}`{dirty}"


def _cost(run: Path) -> float | None:
    """Return the dollars in ``cloud.json``, which the runner's container writes."""
    try:
        return float(json.loads((run / "cloud.json").read_bytes())["cost"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


if __name__ == "__main__":
    leave(main())
