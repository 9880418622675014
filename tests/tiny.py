"""Tiny inputs that tests share: a word tokenizer, reviews, tagged sentences, and a BERT that trains in milliseconds.

Everything is a function of its arguments, so a test can say what must come out.
"""

import os
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.tasks.base import BatchContext

GOOD = ("good", "great", "fine", "lovely", "bright", "clever")
BAD = ("bad", "awful", "poor", "dull", "weak", "clumsy")
FILLER = (
    *("the", "a", "this", "that", "film", "story", "plot", "actor", "scene", "ending", "music", "is", "was"),
    *("and", "but", "very", "so", "it", "of", "in", "on", "with", "for", "not"),
)
PEOPLE = ("Ada", "Alan", "Grace", "Edsger")
PLACES = ("Paris", "Oslo", "Lima", "Cairo")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *GOOD, *BAD, *FILLER, *(name.lower() for name in (*PEOPLE, *PLACES)))

TINY_BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
}
"""Its vocabulary has room for VOCABULARY."""


def tiny_tokenizer(path: Any) -> str:
    """Save a lower-casing word tokenizer with BERT's special tokens in folder `path`, and return the folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special).save_pretrained(str(path))
    return str(path)


TINY_GPT: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 257,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
}
"""A language model with tied embeddings, for `byte_tokenizer`."""


def byte_tokenizer(path: Any) -> str:
    """Save a tokenizer like GPT-2's in folder `path`, and return the folder: a token for each byte, <|endoftext|> at
    the end of a text, and no token for padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({**{one: i for i, one in enumerate(letters)}, "<|endoftext|>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(path))
    return str(path)


def tiny_encoder(path: Any) -> str:
    """Save a TINY_BERT with random weights, without a head or a pooler, and its tokenizer; returns the folder."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    tiny_tokenizer(path)
    torch.manual_seed(3)
    BertForMaskedLM(BertConfig(**{**TINY_BERT, "initializer_range": 0.2})).save_pretrained(str(path))
    return str(path)


def make_reviews(num_rows: int, seed: int) -> list[dict[str, str]]:
    """Rows with `text` of 3 to 20 words and a `label`, negative or positive, that its words give away."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        label = rng.choice(("negative", "positive"))
        words = [*rng.choices(FILLER, k=rng.randint(2, 18)), rng.choice(GOOD if label == "positive" else BAD)]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_reviews(path: Any, num_rows: int, seed: int) -> str:
    """A Parquet file of reviews, in several row groups when there are more than 1000; returns its path."""
    return write_parquet(path, make_reviews(num_rows, seed))


def write_parquet(path: Any, rows: list[dict[str, Any]], row_group_size: int = 1000) -> str:
    """Rows as a Parquet file; returns its path."""
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), str(path), row_group_size=row_group_size)
    return str(path)


def make_sentences(num_sentences: int, seed: int) -> list[list[tuple[str, str]]]:
    """Sentences of (word, tag), tags B-PER, B-LOC and O."""
    rng = random.Random(seed)
    tagged = [(w, "O") for w in FILLER] + [(w, "B-PER") for w in PEOPLE] + [(w, "B-LOC") for w in PLACES]
    return [rng.choices(tagged, k=rng.randint(3, 12)) for _ in range(num_sentences)]


def write_conll(path: Any, num_sentences: int, seed: int) -> str:
    """A CoNLL file: three columns, a new -DOCSTART- every ten sentences; returns its path."""
    lines: list[str] = []
    for i, sentence in enumerate(make_sentences(num_sentences, seed)):
        if i % 10 == 0:
            lines += ["-DOCSTART- -X- O", ""]
        lines += [f"{word} X {tag}" for word, tag in sentence]
        lines.append("")
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    return str(path)


def context(num_samples: int, **changes: Any) -> BatchContext:
    """What the first samples of the first epoch are collated for."""
    ids = np.arange(num_samples)
    return BatchContext(
        **{
            "state": {"labels": []},
            "split": "train",
            "ids": ids,
            "epoch": 0,
            "copies": np.zeros_like(ids),
            "seed": 0,
            "pad_token_id": 0,
            **changes,
        }
    )
