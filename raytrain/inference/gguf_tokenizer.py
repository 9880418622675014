"""A tokenizer as the metadata of a GGUF file: byte-level BPE, whose rule for cutting texts llama.cpp has a name for."""

import copy
import json
from dataclasses import dataclass
from typing import Any

from raytrain.errors import ConfigError, TrainingError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""Pattern of `Split` -> the name that llama.cpp has for it."""
SMOLLM = "smollm"
WHOLE_WORDS_FIRST = ("llama-bpe",)
"""Names for which llama.cpp takes a word that is a token as it is, `ignore_merges` of tokenizer.json: the file can't
say it."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Kinds of tokens, as the format numbers them."""
ADVICE = "Export it with --format hf, and convert that with llama.cpp's own script"


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says about a tokenizer."""

    pre: str
    """Name of the rule that cuts a text into words, before pairs of bytes are merged."""
    tokens: list[str]
    """One for each row of the embeddings, by id."""
    kinds: list[int]
    merges: list[str]
    """Two tokens with a blank between them; the first are merged first."""
    ids: dict[str, int]
    """bos, eos, unk and pad -> id, of those that there are."""
    adds: dict[str, bool]
    """bos, eos -> whether a text gets it."""
    template: str | None
    """The chat template, in Jinja."""


def gguf_tokenizer(tokenizer: Any, num_rows: int) -> GgufTokenizer:
    """Read a tokenizer of Transformers.

    Args:
        num_rows: Of the model's embeddings. Those without a token are filled up.

    Raises ConfigError for one that llama.cpp would read otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it is not one of the library tokenizers")
    made = json.loads(backend.to_str())
    model, normalizer = made["model"], made["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise _refused(f"it is {model['type']} and not byte-level BPE")
    if not model["merges"]:
        raise _refused("it has no merges, which llama.cpp needs")
    if normalizer is not None and normalizer["type"] != "NFC":  # as llama.cpp's own converter has it for Qwen
        raise _refused(f"it changes texts first ({normalizer['type']})")
    added = {one["id"]: one for one in made["added_tokens"]}
    words = {place: word for word, place in tokenizer.get_vocab().items()}
    if words and max(words) >= num_rows:
        raise _refused(f"it has {max(words) + 1} tokens, and the model {num_rows} rows for them")
    pre = _pre(made["pre_tokenizer"])
    if bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS_FIRST):
        does = "looks" if pre in WHOLE_WORDS_FIRST else "does not look"
        raise _refused(f"for its rule, {pre}, llama.cpp {does} a whole word up before it merges, unlike this tokenizer")
    kinds = [_kind(place, words, added) for place in range(num_rows)]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    names = ("bos", "eos", "unk", "pad")
    ids = {name: place for name in names if (place := getattr(tokenizer, f"{name}_token_id")) is not None}
    text = tokenizer("a")["input_ids"]
    adds = {
        "bos": text[0] == ids.get("bos") and len(text) > 1,
        "eos": text[-1] == ids.get("eos") and len(text) > 1,
    }
    template = tokenizer.chat_template
    return GgufTokenizer(
        pre,
        [words.get(place, f"[PAD{place}]") for place in range(num_rows)],
        kinds,
        merges,
        ids,
        adds,
        template if isinstance(template, str) else None,
    )


def read_gguf_tokenizer(folder: str, file: str) -> Any:
    """The tokenizer inside a file, as Transformers reads it. It knows each name that `gguf_tokenizer` writes but
    `smollm`, whose rule is put in here; the file's tokens and merges are compared all the same."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    name = GGUFReader(f"{folder}/{file}").get_field("tokenizer.ggml.pre")
    if name is not None and name.contents() == SMOLLM:
        found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return found


def check_same_tokens(trained: Any, rows: Any, samples: Any, folder: str, file: str) -> None:
    """Compare the tokens of rows.

    Args:
        trained: Predictor of the trained model.
        rows: pa.Table, as they are read.
        samples: pa.Table, what `trained` makes of them.
        folder, file: Where the file with the other tokenizer is, alone: no other file of it may be read.

    Raises TrainingError where the tokenizer in the file makes other tokens.
    """
    other = copy.copy(trained)
    other.tokenizer = read_gguf_tokenizer(folder, file)
    theirs = other.samples_of(rows)
    if theirs.equals(samples):
        return
    pairs = zip(samples.to_pylist(), theirs.to_pylist(), strict=False)
    count = abs(len(samples) - len(theirs)) + sum(one != another for one, another in pairs)
    raise TrainingError(
        f"the tokenizer in the GGUF file makes other tokens of {count} of {len(samples)} rows than that of the trained "
        f"model. Nothing was written. {ADVICE}"
    )


def _kind(place: int, words: dict[int, str], added: dict[int, Any]) -> int:
    if place not in words:
        return UNUSED
    if place in added:
        return CONTROL if added[place]["special"] else USER_DEFINED
    return NORMAL


def _pre(rule: Any) -> str:
    """The name of a rule for cutting texts. Raises ConfigError for one that has none."""
    steps = [] if rule is None else rule["pretokenizers"] if rule["type"] == "Sequence" else [rule]
    *before, last = steps or [{"type": "none"}]
    if last["type"] != "ByteLevel":
        raise _refused("it is not byte-level BPE")
    if last.get("add_prefix_space"):
        raise _refused("it puts a blank before each text")
    if last["use_regex"]:
        if not before:
            return "gpt-2"
        if [one["type"] for one in before] == ["Digits"] and before[0]["individual_digits"]:
            return SMOLLM
    elif len(before) == 1 and before[0]["type"] == "Split" and before[0]["behavior"] == "Isolated":
        name = SPLITS.get(before[0]["pattern"].get("Regex", ""))
        if name and not before[0].get("invert"):
            return name
    raise _refused("llama.cpp has no name for the rule that cuts texts into words")


def _refused(why: str) -> ConfigError:
    return ConfigError(f"--format gguf: the tokenizer can't be written into a GGUF file: {why}. {ADVICE}")
