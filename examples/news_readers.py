"""Made-up readers of real editorials: what `recommendation` is trained on.

The editorials are those of the vaderSentiment package, a sentence per line. A reader follows two editorials. Its
history is two sentences of each. It is shown four sentences of each that it has not seen, and twelve of other
editorials, and clicks on those of its own. Readers of the test follow editorials that no training reader has seen. So
a model can't know an editorial: it has to tell from the words whether a sentence is about what the reader has read.
"""

import random
from collections import defaultdict
from typing import Any

FOLLOWED, IN_HISTORY, CLICKED, OTHERS = 2, 2, 4, 12
FEWEST_SENTENCES = IN_HISTORY + CLICKED


def editorials(lines: str) -> list[list[str]]:
    """The sentences of each editorial, from lines of id (editorial_sentence), rating and text, separated by tabs."""
    found = defaultdict(list)
    for line in lines.split("\n"):
        if line.strip():
            number, _, text = line.rstrip("\r").split("\t")
            found[int(number.split("_")[0])].append(text.strip())
    return [sentences for _, sentences in sorted(found.items()) if len(sentences) >= FEWEST_SENTENCES]


def readers(texts: list[list[str]], count: int, seed: int, prefix: str) -> list[dict[str, Any]]:
    """A row for each sentence that a reader is shown: reader, history, item, and clicked, which is 1 or 0."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        followed = draw.sample(range(len(texts)), FOLLOWED)
        history, own = [], []
        for one in followed:
            sentences = draw.sample(texts[one], FEWEST_SENTENCES)
            history += sentences[:IN_HISTORY]
            own += sentences[IN_HISTORY:]
        others = [text for place, sentences in enumerate(texts) if place not in followed for text in sentences]
        shown = [(text, 1) for text in own] + [(text, 0) for text in draw.sample(others, OTHERS)]
        draw.shuffle(shown)
        draw.shuffle(history)
        name = f"{prefix}{number}"
        rows += [{"reader": name, "history": " ".join(history), "item": text, "clicked": hit} for text, hit in shown]
    return rows
