"""Export a tokenizer as files that ``transformers.AutoTokenizer`` reads.

tokenizer.json is the format of Hugging Face's tokenizers library: GPT-2's is a byte-level BPE,
bytes are a BPE without merges, and characters are words of one letter. It is plain JSON, so neither
library is needed to write it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from corpus import DataError
from corpus.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer
from job.files import write_atomically
from job.run_record import read_record

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_FILES = ("tokenizer.json", "vocab.json")  # of a Hugging Face model
UNKNOWN = "<unknown>"  # in no vocabulary, so that an unknown character is an error there too


def export_folder(output: str | None, run: Path) -> Path:
    """Return ``output``, or huggingface/ in the run's folder; a run's own has a tokenizer.json."""
    folder = Path(output) if output else run / "huggingface"
    if read_record(folder) is not None:
        remedy = f"give a different one: --output {folder / 'huggingface'}"
        raise DataError(f"--output {folder} is a run's folder; {remedy}")
    existing = {path.name for pattern in MODEL_FILES for path in folder.glob(pattern)}
    if foreign := sorted(existing - EXPORTED):
        raise DataError(
            f"--output {folder} has files of a different model, which transformers would mix with "
            f"the export: {', '.join(foreign[:5])}; give an empty folder"
        )
    return folder


# Files of a Hugging Face model that would be mixed with an export's.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.jinja", "*.py")
EXPORTED = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_gpt_runner.py",
    "tokenizer.json",
    "tokenizer_config.json",
}


def foreign_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    """Return the file of a Hugging Face ``folder`` that gives other numbers to tokens; '' if none.

    A folder without such a file, or with more tokens, is accepted.
    """
    path = next((folder / n for n in VOCABULARY_FILES if (folder / n).exists()), None)
    if path is None:
        return ""
    try:
        tree = json.loads(path.read_bytes())
        added = {token["content"]: token["id"] for token in tree.get("added_tokens") or []}
        theirs = {**(tree["model"]["vocab"] if path.name == "tokenizer.json" else tree), **added}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return str(path)
    return "" if _vocabulary(tokenizer).items() <= theirs.items() else str(path)


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    texts = tokenizer.token_bytes()
    if isinstance(tokenizer, CharTokenizer):
        return {text.decode(): number for number, text in enumerate(texts)}
    return {word or END_OF_TEXT: number for number, word in enumerate(_spell(texts))}


def _spell(texts: Iterable[bytes]) -> list[str]:
    letters = byte_letters()
    return ["".join(letters[byte] for byte in text) for text in texts]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int, rows: int) -> None:
    """Write the files of ``tokenizer`` for a network with a vocabulary of ``rows`` rows."""
    eot, has_eot = tokenizer.eot, tokenizer.eot is not None
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {"id": eot, "content": END_OF_TEXT, "special": True, **flags}
    is_chars = isinstance(tokenizer, CharTokenizer)
    description = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")),
        "added_tokens": [added] if has_eot else [],
        **(_characters(tokenizer) if is_chars else _byte_level(tokenizer)),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        # Otherwise transformers adds token_type_ids, and its GPT-2 adds their embeddings.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **(dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT) if has_eot else {}),
    }
    padding = list(range(tokenizer.vocab_size, rows))  # never sample rows that are not tokens
    generation = {"bos_token_id": eot, "eos_token_id": eot, "suppress_tokens": padding or None}
    _write(folder / "tokenizer.json", description)
    _write(folder / "tokenizer_config.json", config, indent=2)
    _write(folder / "generation_config.json", generation)


def _characters(tokenizer: Tokenizer) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}
    return {
        "pre_tokenizer": {**split, "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": _vocabulary(tokenizer), "unk_token": UNKNOWN},
    }


def _byte_level(tokenizer: Tokenizer) -> dict[str, Any]:
    is_gpt2 = isinstance(tokenizer, GPT2Tokenizer)
    pairs = merges(tokenizer.token_bytes()) if is_gpt2 else []
    # The library's own expression is GPT-2's.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = is_gpt2
    return {
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            **dict.fromkeys(("dropout", "unk_token")),
            **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), ""),
            **dict.fromkeys(("fuse_unk", "byte_fallback"), False),
            "vocab": _vocabulary(tokenizer),
            "merges": [" ".join(_spell(pair)) for pair in pairs],
        },
    }


def byte_letters() -> list[str]:
    """Return each byte's letter in GPT-2's vocabulary: itself if printable, else from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 0x100 + others.index(byte)) for byte in range(256)]


def merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the pair that each token was merged from, in order.

    tiktoken keeps only the tokens, but a token's number is that of its merge: merging its bytes
    with the earlier merges leaves the two parts.
    """
    numbers = {text: number for number, text in enumerate(tokens)}
    parts = (_merged(text, numbers, n) for n, text in enumerate(tokens) if len(text) > 1)
    return [(left, right) for left, right in parts]


def _merged(text: bytes, numbers: dict[bytes, int], below: int) -> list[bytes]:
    """Split ``text`` into parts, using the merges numbered below ``below``."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while True:
        pairs = [numbers.get(left + right, below) for left, right in pairwise(parts)]
        first = min(pairs, default=below)
        if first >= below:
            return parts
        at = pairs.index(first)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _write(path: Path, tree: dict[str, Any], indent: int | None = None) -> None:
    write_atomically(path, json.dumps(tree, ensure_ascii=False, indent=indent) + "\n")
