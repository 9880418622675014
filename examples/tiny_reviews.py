"""Made-up reviews, and a config that trains a tiny model on them in seconds: for the notebooks and the elastic demo.

Nothing is downloaded.
"""

import random
from typing import Any

GOOD = ("good", "great", "fine", "lovely", "bright", "clever")
BAD = ("bad", "awful", "poor", "dull", "weak", "clumsy")
FILLER = (
    "the",
    "a",
    "film",
    "story",
    "plot",
    "scene",
    "ending",
    "music",
    "is",
    "was",
    "and",
    "but",
    "very",
    "it",
    "of",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_reviews(num_rows: int, seed: int, noise: float = 0.1) -> list[dict[str, str]]:
    """Rows with a `text` and a `label`, which is wrong in a share `noise` of them."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        is_good = rng.random() < 0.5
        words = [*rng.choices(FILLER, k=rng.randint(4, 16)), rng.choice(GOOD if is_good else BAD)]
        rng.shuffle(words)
        is_labelled_good = is_good != (rng.random() < noise)
        rows.append({"text": " ".join(words), "label": "positive" if is_labelled_good else "negative"})
    return rows


def save_tokenizer(folder: str) -> str:
    """Save a tokenizer of these words, as Transformers loads it; returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate((*SPECIAL, *GOOD, *BAD, *FILLER))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)
    return folder


def tiny_config(name: str, folder: str) -> dict[str, Any]:
    """A config for `raytrain.train(..., train=rows)`. `folder`: where the tokenizer and the runs are written."""
    model = {"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    model |= {
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
    }
    return {
        "name": name,
        "storage_path": f"{folder}/runs",
        "task": {"kind": "sequence_classification", "labels": ["negative", "positive"]},
        "model": {"config": model, "tokenizer": save_tokenizer(f"{folder}/tokenizer")},
        "data": {"max_length": 32},
        "training": {
            "epochs": 3,
            "global_batch_size": 24,  # six micro-batches: as many for each of one, two or three workers
            "micro_batch_size": 4,
            "precision": "fp32",
            "optimizer": {"learning_rate": 5e-3},
        },
        "workers": {"max": 2},
        "tracking": {"tensorboard": False},
    }
