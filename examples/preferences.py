"""Made-up preferences for the dialogues with a shop's service: python examples/preferences.py FOLDER

The last answer of each dialogue is the chosen one; the rejected one is the last answer of another dialogue, which is
about another order or product. Nobody has judged them: they show the form of the data, and that the loss is learned.
Writes train.jsonl (335 pairs) and validation.jsonl (70 pairs) with the columns chosen and rejected, both of them whole
conversations; dialogues whose answers are equal make no pair.
"""

import json
import sys
from pathlib import Path

from customer_dialogue import dialogues


def write_pairs(path: Path, number: int, seed: int) -> None:
    talks = dialogues(2 * number, seed)
    with path.open("w", encoding="utf-8") as file:
        for talk, other in zip(talks[:number], talks[number:], strict=True):
            if talk[-1] != other[-1]:
                row = {"chosen": talk, "rejected": [*talk[:-1], other[-1]]}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/preferences")
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / "train.jsonl", 400, 1)
    write_pairs(folder / "validation.jsonl", 80, 2)
    print(f"wrote {folder}/train.jsonl and {folder}/validation.jsonl")
