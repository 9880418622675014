"""Near duplicates: what raytrain finds and what it costs, beside datasketch with the same parameters.

Both sides get the same texts of some 300 characters, of which a part is edits of others, and give the rows that go:
MinHash in 20 bands of 6, a check of each pair by the exact Jaccard similarity of shingles of 5 characters, and the
greedy choice in the order of the rows. datasketch looks each row up before it inserts it, and its pairs are checked by
sets of Python. Each run is a process of its own with one thread, the two sides take turns, and seconds are those of its
CPU, imports and the making of the texts left out. Recall counts the planted edits that have a similarity of at least
0.8 to their original; precision counts the removed rows that have one to the row they are said to duplicate.

    pip install datasketch==2.0.0
    python benchmarks/data_dedup.py
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from typing import Any

from common import middle, publish, rounds_of, spread, table

NUM_WORDS, WORDS_OF_A_TEXT = 20_000, 48
SHARE_OF_EDITS, MOST_EDITED_WORDS = 0.1, 10
SIDES = ("raytrain", "datasketch")
HEADER = ["", "rows a second and core", "recall", "precision", "rows removed"]


def make_texts(num_rows: int, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts, and the pairs (edit, original) among them."""
    rng = random.Random(seed)
    letters = "eeeettaaooiinnsshhrrddlcumwfgypbvk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(NUM_WORDS)]
    weights = [1 / (rank + 10) for rank in range(NUM_WORDS)]  # few words are frequent
    texts, pairs = [], []
    for row in range(num_rows):
        if row and rng.random() < SHARE_OF_EDITS:
            original = rng.randrange(row)
            text = texts[original].split()
            for _ in range(rng.randint(0, MOST_EDITED_WORDS)):
                text[rng.randrange(len(text))] = rng.choice(words)
            pairs.append((row, original))
        else:
            text = rng.choices(words, weights, k=WORDS_OF_A_TEXT)
        texts.append(" ".join(text))
    return texts, pairs


def by_raytrain(texts: list[str]) -> list[tuple[int, int]]:
    """(row that goes, row that it duplicates)."""
    from raytrain.data.stages.near_duplicates import near_duplicates

    return [(match.index, match.partner) for match in near_duplicates(texts)]


def by_datasketch(texts: list[str]) -> list[tuple[int, int]]:
    """(row that goes, row that it duplicates)."""
    from datasketch import MinHash, MinHashLSH

    from raytrain.data.stages.near_duplicates import normalized

    lsh, kept, removed = MinHashLSH(num_perm=120, params=(20, 6)), {}, []
    for row, text in enumerate(map(normalized, texts)):
        shingles = {text[i : i + 5] for i in range(max(1, len(text) - 4))}
        minhash = MinHash(num_perm=120)
        minhash.update_batch([shingle.encode() for shingle in shingles])
        near = (one for one in sorted(lsh.query(minhash)) if similarity(shingles, kept[one]) >= 0.8)
        if (partner := next(near, None)) is not None:
            removed.append((row, partner))
            continue
        lsh.insert(row, minhash)
        kept[row] = shingles
    return removed


def similarity(one: set[str], other: set[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def measure(side: str, num_rows: int, seed: int) -> dict[str, Any]:
    """Seconds, recall and precision of one side, in this process."""
    from raytrain.data.stages.near_duplicates import jaccard, normalized, shingle_set

    texts, planted = make_texts(num_rows, seed)
    find = {"raytrain": by_raytrain, "datasketch": by_datasketch}[side]
    find(texts[:100])  # imports, and tables that are made once
    started_at_s = time.process_time()
    removed = find(texts)
    elapsed_s = time.process_time() - started_at_s
    gone = {row for row, _ in removed}

    def are_near(one: int, other: int) -> bool:
        return jaccard(*(shingle_set(normalized(texts[row])) for row in (one, other))) >= 0.8

    near = [pair for pair in planted if are_near(*pair)]
    # An edit of a row that goes may be far from all that stay: those whose original stays must go.
    due = [row for row, original in near if original not in gone]
    right = sum(are_near(*pair) for pair in removed)
    recall = sum(row in gone for row in due) / len(due)
    return {"seconds": elapsed_s, "recall": recall, "precision": right / len(removed), "removed": len(removed)}


def in_own_process(side: str, num_rows: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--rows", str(num_rows), "--seed", str(seed)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(args: argparse.Namespace, rounds: list[dict[str, dict[str, Any]]]) -> None:
    """Publish the table."""
    rows = []
    for side in SIDES:
        of_side = [one[side] for one in rounds]
        speeds = [args.rows / one["seconds"] for one in of_side]
        worst = [f"{min(one[name] for one in of_side):.4f}" for name in ("recall", "precision")]
        removed = ", ".join(f"{one['removed']:,}" for one in of_side)
        rows.append([side, f"{middle(speeds):,.0f} ({spread(speeds)})", *worst, removed])
    ratios = [one["datasketch"]["seconds"] / one["raytrain"]["seconds"] for one in rounds]
    text = (
        f"{args.rows:,} texts of some 300 characters, one of ten an edit of another; {rounds_of(args)}. Rows a second "
        "are for one core, by CPU time: normalizing, shingles, MinHash, candidates, exact check, choice. Recall and "
        f"precision are those of the worst round.\n\n{table(HEADER, rows)}\n\n"
        f"raytrain takes {middle(ratios):.1f} times less ({spread(ratios)})."
    )
    publish("Near duplicates", text, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.rows, args.seed)))
        return
    rounds = [{side: in_own_process(side, args.rows, seed) for side in SIDES} for seed in range(args.rounds)]
    report(args, rounds)


if __name__ == "__main__":
    main()
