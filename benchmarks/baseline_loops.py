"""The loops that one would write by hand: plain PyTorch, MiniLM, movie reviews. Prints a line of JSON at the end.

    python benchmarks/baseline_loops.py grouped --steps 60 --threads 2

Variants, by how a batch is padded:
    grouped   samples of like length together (shuffled, sorted within 4096 samples, batches shuffled), to the longest
    longest   random batches, padded to the longest of the batch
    fixed     random batches, padded to 128 tokens, as in Ray's own DeepSpeed example
All tokenize beforehand, clip the gradient and decay the learning rate linearly. The computation is that of a
`raytrain train movie_reviews` with one worker in fp32; only the padding differs. With --gpu, bf16 by torch.autocast.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import torch
from common import DATA, MODEL, arguments_with
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

MAX_LENGTH = 128  # tokens
WINDOW_SAMPLES = 4096
LEARNING_RATE = 1e-4

Sample = tuple[list[int], int]


def load_samples(tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """(token ids, label) of every training sentence."""
    table = pq.read_table(DATA / "train.parquet")
    tokens = tokenizer(table["text"].to_pylist(), truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return list(zip(tokens, [int(label == "positive") for label in table["label"].to_pylist()], strict=True))


def batches(samples: list[Sample], variant: str, seed: int, size: int) -> Iterator[list[Sample]]:
    """Batches of one epoch after the other, without end."""
    shuffled = list(samples)
    generator = random.Random(seed)
    while True:
        generator.shuffle(shuffled)
        if variant == "grouped":
            yield from grouped_epoch(shuffled, generator, size)
        else:
            yield from (shuffled[start : start + size] for start in range(0, len(shuffled), size))


def grouped_epoch(samples: list[Sample], generator: random.Random, size: int) -> list[list[Sample]]:
    """The batches of an epoch, each of like lengths, in random order."""
    epoch = []
    for start in range(0, len(samples), WINDOW_SAMPLES):
        window = sorted(samples[start : start + WINDOW_SAMPLES], key=lambda sample: len(sample[0]))
        epoch += [window[first : first + size] for first in range(0, len(window), size)]
    generator.shuffle(epoch)
    return epoch


def collate(batch: list[Sample], pad_token_id: int, pad_to: int | None) -> dict[str, torch.Tensor]:
    """Padded tensors, (batch, seq_len) each, and the labels, (batch,)."""
    seq_len = pad_to or max(len(tokens) for tokens, _ in batch)
    input_ids = torch.full((len(batch), seq_len), pad_token_id)
    mask = torch.zeros((len(batch), seq_len), dtype=torch.int64)
    for row, (tokens, _) in enumerate(batch):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in batch])}


def train(variant: str, steps: int, warmup: int, seed: int, batch_size: int, gpu: bool) -> dict[str, float]:
    """Train for `warmup` steps and then `steps` steps that are timed."""
    device = torch.device("cuda" if gpu else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    samples = load_samples(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=warmup + steps)
    source = batches(samples, variant, seed, batch_size)
    model.train()
    num_samples = num_tokens = num_padded = 0
    started_at_s = time.perf_counter()
    for step in range(warmup + steps):
        if step == warmup:
            num_samples = num_tokens = num_padded = 0
            wait_for(device)
            started_at_s = time.perf_counter()
        batch = collate(next(source), tokenizer.pad_token_id, MAX_LENGTH if variant == "fixed" else None)
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            loss = model(**on_device).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        num_samples += len(batch["labels"])
        num_tokens += int(batch["attention_mask"].sum())
        num_padded += batch["input_ids"].numel()
    wait_for(device)
    elapsed_s = time.perf_counter() - started_at_s
    return {
        "samples_per_s": num_samples / elapsed_s,
        "tokens_per_s": num_tokens / elapsed_s,
        "padding": 1 - num_tokens / num_padded,
        "step_s": elapsed_s / steps,
        "tokens_per_sample": sum(len(tokens) for tokens, _ in samples) / len(samples),
    }


def wait_for(device: torch.device) -> None:
    """Until the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=["grouped", "longest", "fixed"])
    parser.add_argument("--gpu", action="store_true", help="train on a GPU, in bf16")
    arguments = arguments_with(parser, steps=60, warmup=5, threads=2, seed=0, batch_size=32)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    options = (arguments.steps, arguments.warmup, arguments.seed, arguments.batch_size, arguments.gpu)
    print(json.dumps(train(arguments.variant, *options)))


if __name__ == "__main__":
    main()
