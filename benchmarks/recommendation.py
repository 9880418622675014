"""How well the lists of `recommendation` are ordered without a training: by TF-IDF and by chance.

    python examples/fetch_data.py news_readers
    python benchmarks/recommendation.py

Prints the mean NDCG at 10 over the readers of the test, to stand beside what `raytrain train recommendation` prints.
"""

import json
from collections import defaultdict

import numpy as np
from common import DATA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import ndcg_score

TOP = 10


def rows_of(split: str) -> list[dict[str, str]]:
    """The rows of a split."""
    path = DATA.parent / "news_readers" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mean_ndcg(rows: list[dict[str, str]], scores: np.ndarray) -> float:
    """Over the readers. `scores`: shape (num_rows,)."""
    lists = defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        lists[row["reader"]].append((float(row["clicked"]), float(score)))
    each = [ndcg_score([[true for true, _ in one]], [[score for _, score in one]], k=TOP) for one in lists.values()]
    return float(np.mean(each))


def main() -> None:
    train, test = rows_of("train"), rows_of("test")
    vectors = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit([row["item"] for row in train])
    history, item = (vectors.transform([row[name] for row in test]) for name in ("history", "item"))
    cosine = np.asarray(history.multiply(item).sum(1)).ravel()
    chance = [mean_ndcg(test, np.random.default_rng(seed).random(len(test))) for seed in range(20)]
    print(f"TF-IDF  {mean_ndcg(test, cosine):.3f}")
    print(f"chance  {np.mean(chance):.3f}")


if __name__ == "__main__":
    main()
