"""Whether `data.group_by_length` costs accuracy where the length of a text tells its class.

A small transformer is trained from random weights on one process, with the batches that raytrain's own `Order` gives,
grouped by length and in random order; everything else is the same for the two runs of a seed. Two data sets: the movie
reviews, whose length says nothing of the class, and a synthetic news set with one short class, whose batches grouping
makes one-sided. A row says by how much grouping changes the test accuracy, seed by seed.
"""

import argparse
import functools
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from common import DATA, middle, publish, table
from torch import nn
from torch.nn import functional

from raytrain.steps.order import Order

BATCH, MAX_LENGTH, WIDTH, ROW_GROUP = 32, 64, 64, 64
PAD, UNKNOWN = 0, 1
NUM_WORDS = 4000  # the most frequent of the training set; the rest is UNKNOWN
PEAK_RATE, WARMUP = 1e-3, 0.06
ONE_SIDED = 0.9  # a batch is one-sided when one class has this share of it

NEWS = ("business", "science", "sport", "alert")  # alert is the short one
NEWS_TRAIN, NEWS_TEST = 6000, 2000
OWN_WORDS, SHARED_WORDS, OWN_SHARE = 300, 1500, 0.16  # of a class; of all; share of a text's words that are its class's
MIXED_LABELS = 0.05  # share of texts with another class's label, so that no order reaches 1.0


@dataclass(frozen=True)
class Split:
    """Token ids and labels."""

    ids: list[np.ndarray]
    labels: np.ndarray

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each text. Shape (num_texts,)."""
        return np.array([len(ids) for ids in self.ids])


def movie_reviews() -> tuple[Split, Split]:
    """Training and test sentences, with the label negative or positive."""
    rows = [
        pq.read_table(DATA / f"{split}.parquet", columns=["text", "label"]).to_pylist() for split in ("train", "test")
    ]
    return encode(*([(row["text"].lower().split(), row["label"]) for row in part] for part in rows))


def synthetic_news() -> tuple[Split, Split]:
    """Texts of words drawn from a vocabulary of their class and one of all; those of one class are short."""
    rng = random.Random(0)

    def text() -> tuple[list[str], str]:
        topic = rng.choice(NEWS)
        length = rng.randint(5, 12) if topic == "alert" else rng.randint(20, 60)
        own = [f"{topic}{rng.randrange(OWN_WORDS)}" for _ in range(length)]
        words = [word if rng.random() < OWN_SHARE else f"any{rng.randrange(SHARED_WORDS)}" for word in own]
        return words, rng.choice(NEWS) if rng.random() < MIXED_LABELS else topic

    return encode([text() for _ in range(NEWS_TRAIN)], [text() for _ in range(NEWS_TEST)])


def encode(train: list[tuple[list[str], str]], test: list[tuple[list[str], str]]) -> tuple[Split, Split]:
    """Words as the ids of the training set's most frequent ones."""
    counts = Counter(word for words, _ in train for word in words)
    ids = {word: i for i, (word, _) in enumerate(counts.most_common(NUM_WORDS - 2), start=2)}
    labels = {label: i for i, label in enumerate(sorted({label for _, label in train}))}

    def split(rows: list[tuple[list[str], str]]) -> Split:
        texts = [np.array([ids.get(word, UNKNOWN) for word in words[:MAX_LENGTH]]) for words, _ in rows]
        return Split(texts, np.array([labels[label] for _, label in rows]))

    return split(train), split(test)


class SmallTransformer(nn.Module):
    """Two layers over learned positions, and the mean over the words."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.words = nn.Embedding(NUM_WORDS, WIDTH, padding_idx=PAD)
        self.positions = nn.Embedding(MAX_LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, num_labels)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids of shape (batch, seq_len) to logits of shape (batch, num_labels)."""
        is_word = ids != PAD
        hidden = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        hidden = self.layers(hidden, src_key_padding_mask=~is_word)
        return self.head((hidden * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True))


def padded(texts: list[np.ndarray]) -> torch.Tensor:
    """Shape (num_texts, words of the longest)."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in texts], batch_first=True, padding_value=PAD)


def batches(split: Split, seed: int, epochs: int, *, grouped: bool) -> Iterator[np.ndarray]:
    """Sample ids of each step, as a run with this seed has them."""
    num_samples = len(split.ids)
    starts = np.append(np.arange(0, num_samples, ROW_GROUP), num_samples)
    order = Order(starts, split.lengths, seed, BATCH, BATCH, group_by_length=grouped)
    for epoch in range(epochs):
        for step in range(order.steps_per_epoch):
            yield order.step_samples(epoch, step)


def accuracy_of(train: Split, test: Split, seed: int, epochs: int, *, grouped: bool) -> float:
    """Test accuracy after the last step."""
    torch.manual_seed(seed)
    model = SmallTransformer(int(train.labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    steps = list(batches(train, seed, epochs, grouped=grouped))
    warmup = max(1, round(WARMUP * len(steps)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(steps) - step) / max(1, len(steps) - warmup))
    )
    for ids in steps:
        loss = functional.cross_entropy(model(padded([train.ids[i] for i in ids])), torch.from_numpy(train.labels[ids]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return share_right(model, test)


@torch.no_grad()
def share_right(model: nn.Module, split: Split) -> float:
    """Accuracy on a split."""
    model.eval()
    by_length = np.argsort(split.lengths, kind="stable")
    right = 0
    for ids in np.array_split(by_length, -(-len(by_length) // 256)):
        chosen = model(padded([split.ids[i] for i in ids])).argmax(-1).numpy()
        right += int((chosen == split.labels[ids]).sum())
    return right / len(split.ids)


def one_sided(split: Split, seed: int, *, grouped: bool) -> float:
    """Share of an epoch's batches in which one class has ONE_SIDED or more."""
    shares = [np.bincount(split.labels[ids]).max() / len(ids) for ids in batches(split, seed, 1, grouped=grouped)]
    return float(np.mean([share >= ONE_SIDED for share in shares]))


def measure(name: str, train: Split, test: Split, seeds: int, epochs: int) -> list[str]:
    """A row of the table."""
    accuracy: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(seeds):
        for grouped in (True, False) if seed % 2 else (False, True):
            accuracy[grouped].append(accuracy_of(train, test, seed, epochs, grouped=grouped))
        print(
            f"{name}, seed {seed}: grouped {accuracy[True][-1]:.4f}, random {accuracy[False][-1]:.4f}", file=sys.stderr
        )
    differences = [100 * (one - other) for one, other in zip(accuracy[True], accuracy[False], strict=True)]
    shares = [np.mean([one_sided(train, seed, grouped=grouped) for seed in range(seeds)]) for grouped in (True, False)]
    return [
        name,
        *(
            f"{middle(accuracy[grouped]):.4f} ({min(accuracy[grouped]):.4f} to {max(accuracy[grouped]):.4f})"
            for grouped in (True, False)
        ),
        f"{np.mean(differences):+.2f} ({min(differences):+.2f} to {max(differences):+.2f})",
        f"{np.std(differences, ddof=1) / len(differences) ** 0.5:.2f}" if seeds > 1 else "",
        *(f"{share:.1%}" for share in shares),
    ]


def main() -> None:
    """Train both ways on both sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="print the table, leave RESULTS.md alone")
    arguments = parser.parse_args()
    if not (DATA / "train.parquet").exists():
        sys.exit("data missing: run `python examples/fetch_data.py movie_reviews` first")
    sets = {"movie reviews": movie_reviews(), "synthetic news, one short class": synthetic_news()}
    rows = [measure(name, *splits, arguments.seeds, arguments.epochs) for name, splits in sets.items()]
    header = ["data", "test accuracy grouped", "random order", "difference, points", "standard error"]
    header += ["one-sided batches grouped", "random order"]
    text = (
        f"A transformer of two layers from random weights, batches of {BATCH}, {arguments.epochs} epochs, "
        f"{arguments.seeds} seeds; the two runs of a seed differ in the order of the samples alone. Accuracies: median "
        "(smallest to largest). The difference is grouped minus random order in percentage points, the mean over the "
        "seeds (smallest to largest). A batch is one-sided when one class has 90 % of it or more.\n\n"
    )
    publish("Grouping by length and accuracy", text + table(header, rows), arguments)


if __name__ == "__main__":
    main()
