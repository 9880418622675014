"""One training of a language model by HF `Trainer` or TRL's `SFTTrainer`, for lm_training.py; prints its speed as JSON.

`random`: batches in random order, padded; `grouped`: `train_sampling_strategy=group_by_length`; `trl`: packed.
"""

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import random
import sys
import time
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
PACKAGES = ("asyncio", "collections", "concurrent.futures", "email", "http", "importlib", "json", "logging")
PACKAGES += ("multiprocessing", "os", "subprocess", "tarfile", "threading", "typing", "unittest", "urllib", "xml")
IGNORED = -100


def docstrings(number: int) -> list[tuple[str, str]]:
    """(name, docstring) of things in Python's library, repeated if there are too few, in an order that is the same each
    time. Their lengths differ as those of texts do: half have fewer than 100 characters."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = [package, *(one.name for one in pkgutil.iter_modules(getattr(module, "__path__", []), package + "."))]
        for name in names:
            if ".__" in name or "test" in name or "windows" in name or "win32" in name:
                continue
            try:
                collect(importlib.import_module(name), name, found, depth=2)
            except ImportError:
                continue
    rows = sorted(found.items())
    rows = [row for _ in range(1 + number // len(rows)) for row in rows][:number]
    random.Random(0).shuffle(rows)
    return rows


def collect(thing: Any, name: str, found: dict[str, str], depth: int) -> None:
    text = inspect.getdoc(thing)
    if text and text.strip() and text not in found.values():
        found[name] = text
    for key, value in list(vars(thing).items()) if depth and hasattr(thing, "__dict__") else ():
        if not key.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value)):
            collect(value, f"{name}.{key}", found, depth - 1)


def make_tokenizer(rows: list[tuple[str, str]], vocabulary: int) -> Any:
    """A byte-level BPE of the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text for row in rows for text in row], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model(tokenizer: Any, width: int, layers: int, max_length: int) -> Any:
    """A new Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2 * max_length}
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ends))


def samples_of(kind: str, rows: list[dict[str, str]], tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels`, as raytrain makes them."""
    samples = []
    for row in rows:
        if kind == "causal_lm":
            ids = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
            labels = [IGNORED, *ids[1:]]
        else:
            prompt = tokenizer(f"<|user|>{row['prompt']}<|end|>\n<|assistant|>")["input_ids"]
            answer = tokenizer(f"{row['completion']}<|end|>")["input_ids"]
            ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
        if len(ids) <= max_length:
            samples.append({"input_ids": ids, "labels": labels})
    return samples


class Clock:
    """Pads batches, and counts what is in them and how long steps take."""

    def __init__(self, pad: int):
        self.pad = pad
        self.batches: list[tuple[int, int, int]] = []  # targets, tokens, tokens with padding
        self.times_s: list[float] = []
        self.losses: list[float] = []

    def collate(self, samples: list[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        width = max(len(one["input_ids"]) for one in samples)
        fills = {"input_ids": self.pad, "labels": IGNORED}
        rows = {
            name: torch.tensor([one[name] + [fill] * (width - len(one[name])) for one in samples])
            for name, fill in fills.items()
        }
        lengths = torch.tensor([len(one["input_ids"]) for one in samples])
        mask = (torch.arange(width) < lengths[:, None]).long()
        self.count(rows["labels"], int(lengths.sum()), mask.numel())
        return {**rows, "attention_mask": mask}

    def count(self, labels: Any, num_tokens: int, num_padded: int) -> None:
        self.batches.append((int((labels != IGNORED).sum()), num_tokens, num_padded))

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.times_s.append(time.perf_counter())

            def on_log(self, *args: Any, logs: dict[str, float], **_: Any) -> None:
                clock.losses += [logs["loss"]] if "loss" in logs else []

        return Callback()

    def result(self, warmup: int, batches_per_step: int) -> dict[str, float]:
        used = self.batches[warmup * batches_per_step : len(self.times_s) * batches_per_step]
        targets, tokens, padded = (sum(column) for column in zip(*used, strict=True))
        seconds = self.times_s[-1] - self.times_s[warmup - 1]
        last = self.losses[-10:]
        return {"rate": targets / seconds, "padding": 1 - tokens / padded, "loss": sum(last) / len(last)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["causal_lm", "chat"])
    parser.add_argument("how", choices=["random", "grouped", "trl"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--trl-path")
    for name in ("seed", "threads", "warmup", "batch-size", "micro-batch-size", "max-length"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.trl_path:
        sys.path.append(arguments.trl_path)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder / "model")
    model = AutoModelForCausalLM.from_pretrained(arguments.folder / "model", dtype=torch.float32)
    rows = [json.loads(line) for line in (arguments.folder / "rows.jsonl").read_text().splitlines()]
    samples = samples_of(arguments.kind, rows, tokenizer, arguments.max_length)
    if arguments.kind == "chat":
        import peft

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
    clock = Clock(tokenizer.pad_token_id)
    settings: dict[str, Any] = {
        "output_dir": str(arguments.folder / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": arguments.micro_batch_size,
        "gradient_accumulation_steps": arguments.batch_size // arguments.micro_batch_size,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "seed": arguments.seed,
        "disable_tqdm": True,
    }
    make = _trl if arguments.how == "trl" else _trainer
    trainer = make(arguments, model, samples, clock, settings, tokenizer)
    trainer.add_callback(clock.callback())
    sys.stdout = sys.stderr  # the trainers print their logs
    trainer.train()
    sys.stdout = sys.__stdout__
    print(json.dumps(clock.result(arguments.warmup, arguments.batch_size // arguments.micro_batch_size)))


def _trainer(arguments: Any, model: Any, samples: list[Any], clock: Clock, settings: dict[str, Any], _: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    if arguments.how == "grouped":
        settings["train_sampling_strategy"] = "group_by_length"
    options = TrainingArguments(**settings, remove_unused_columns=False)
    return Trainer(model, options, data_collator=clock.collate, train_dataset=samples)


def _trl(arguments: Any, model: Any, samples: list[Any], clock: Clock, settings: dict[str, Any], tokenizer: Any) -> Any:
    """Rows are packed to max_length, and each step has as many tokens as the other loops' on average."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    mean = sum(len(one["input_ids"]) for one in samples) / len(samples)
    rows = max(1, round(arguments.micro_batch_size * mean / arguments.max_length))
    settings |= {"per_device_train_batch_size": rows, "max_length": arguments.max_length, "packing": True}
    settings |= {"dataset_kwargs": {"skip_prepare_dataset": False}}
    trainer = SFTTrainer(
        model, SFTConfig(**settings), train_dataset=Dataset.from_list(samples), processing_class=tokenizer
    )
    collate = trainer.data_collator

    def counted(packed: list[Any]) -> Any:
        batch = collate(packed)
        tokens = sum(len(one["input_ids"]) for one in packed)
        clock.count(batch["labels"], tokens, batch["input_ids"].numel())
        return batch

    trainer.data_collator = counted
    return trainer


if __name__ == "__main__":
    main()
