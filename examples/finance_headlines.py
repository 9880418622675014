"""Made-up headlines about companies, each with its topics and its tone: what `finance_news` is trained on.

No registry carries financial news with labels, so these are put together of phrases. The test has phrases of its own,
which a model has to understand, not to know. Scores on them say nothing about real news.
"""

import random
from typing import Any

TONES = ("positive", "neutral", "negative")
TOPICS = ("earnings", "mergers", "products", "lawsuits", "jobs", "dividends")
LABELS = (*TOPICS, *TONES)
# By topic and tone: phrases of training and validation, then phrases of the test alone; {n} is a number.
PHRASES: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "earnings": {
        "positive": (
            ["posts record quarterly profit", "beats forecasts as sales jump {n} %", "raises its outlook for the year"],
            ["earns far more than analysts expected", "sees revenue climb {n} % on strong demand"],
        ),
        "neutral": (
            ["reports results in line with forecasts", "will publish quarterly figures on Thursday"],
            ["leaves its full-year outlook unchanged", "holds its earnings call next week"],
        ),
        "negative": (
            ["misses forecasts as sales drop {n} %", "swings to a quarterly loss", "cuts its outlook for the year"],
            ["earns far less than analysts expected", "warns of shrinking margins"],
        ),
    },
    "mergers": {
        "positive": (
            ["completes a profitable takeover of {other}", "wins approval to buy {other}"],
            ["gains a strong foothold with the purchase of {other}"],
        ),
        "neutral": (
            ["is in talks to merge with {other}", "considers an offer for {other}"],
            ["appoints advisers on a possible sale to {other}"],
        ),
        "negative": (
            ["fails in its bid for {other}", "loses the fight over {other}, and writes off ${n} million"],
            ["regrets a costly takeover of {other}"],
        ),
    },
    "products": {
        "positive": (
            ["sells out its new device within days", "wins praise for its latest software"],
            ["sees strong demand for its new battery"],
        ),
        "neutral": (
            ["presents its new device in {n} countries", "renames its main service"],
            ["starts to ship an updated model"],
        ),
        "negative": (
            ["recalls {n} thousand devices over a defect", "delays its new device again"],
            ["stops selling a faulty battery"],
        ),
    },
    "lawsuits": {
        "positive": (
            ["wins a patent case against {other}", "is cleared of all charges by a court"],
            ["sees a claim of ${n} million thrown out"],
        ),
        "neutral": (
            ["will appear in court over patents in June", "agrees with {other} on arbitration"],
            ["asks a court to interpret its contract with {other}"],
        ),
        "negative": (
            ["is fined ${n} million for price fixing", "loses a patent case against {other}"],
            ["must pay damages after a court ruling"],
        ),
    },
    "jobs": {
        "positive": (
            ["will hire {n} hundred engineers", "opens a plant and creates {n} hundred jobs"],
            ["expands its staff on strong orders"],
        ),
        "neutral": (
            ["names a new head of its European business", "moves its offices to Rotterdam"],
            ["reorganizes its sales teams"],
        ),
        "negative": (
            ["lays off {n} hundred workers", "closes a plant after weak orders"],
            ["cuts a tenth of its staff"],
        ),
    },
    "dividends": {
        "positive": (
            ["raises its dividend by {n} %", "announces a generous share buyback"],
            ["rewards its owners with a special payout"],
        ),
        "neutral": (
            ["keeps its dividend at {n} cents", "sets the date of its dividend"],
            ["pays its usual dividend in May"],
        ),
        "negative": (
            ["cancels its dividend to save cash", "halves its dividend after a weak year"],
            ["disappoints its owners with a smaller payout"],
        ),
    },
}
ENDINGS = (
    "",
    "",
    "",
    ", sources say",
    " - shares are unchanged",
    ", the company said on Monday",
    " in a volatile market",
)
BEGINNINGS, MIDDLES = ("Nor", "Al", "Ver", "Kest", "Om", "Bra", "Tel", "Lum"), ("da", "ti", "ro", "vi", "ne")
ENDS = ("Systems", "Foods", "Energy", "Bank", "Motors", "Pharma", "Steel", "Software")


def headlines(count: int, seed: int, *, is_test: bool = False) -> list[dict[str, Any]]:
    """Distinct headlines, a row for each: text, labels (its topics, one or two, and its tone), sector."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        row = _headline(draw, is_test=is_test)
        found[row["text"]] = row
    return list(found.values())


def _headline(draw: random.Random, *, is_test: bool) -> dict[str, Any]:
    tone, topics = draw.choice(TONES), draw.sample(TOPICS, draw.choice((1, 1, 2)))
    parts = [draw.choice(PHRASES[topic][tone][is_test]) for topic in topics]
    company, other = _company(draw), _company(draw)
    text = f"{company} " + " and ".join(part.format(n=draw.randint(2, 95), other=other) for part in parts)
    labels = [label for label in LABELS if label in (*topics, tone)]
    return {"text": text + draw.choice(ENDINGS), "labels": labels, "sector": company.split()[-1]}


def _company(draw: random.Random) -> str:
    return f"{draw.choice(BEGINNINGS)}{draw.choice(MIDDLES)}{draw.choice(('n', 'x', 's', ''))} {draw.choice(ENDS)}"
