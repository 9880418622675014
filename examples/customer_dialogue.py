"""Made-up dialogues of customers and the service of a shop, for the shipped config `customer_dialogue`.

No real customer said any of it: sentences are put together at random, the same for the same seed. An answer follows
from the turns before it (the number of an order, the rules of the shop), so that a model that learns them can be right.
"""

import random
from typing import Any

SYSTEM = "You are the service of a small shop. Be brief and polite."
NAMES = ("Ada", "Ben", "Chloe", "David", "Elif", "Frida", "Goran", "Hana", "Ivan", "Jun", "Karim", "Lena")
RETURN_DAYS = {
    "lamp": 30,
    "kettle": 30,
    "chair": 14,
    "desk": 14,
    "headset": 60,
    "keyboard": 60,
    "backpack": 90,
    "jacket": 90,
}
DELIVERY_DAYS = {"Berlin": 1, "Paris": 2, "Oslo": 3, "Lisbon": 4, "Rome": 2, "Vienna": 1, "Warsaw": 2, "Dublin": 4}

STATUS_QUESTIONS = (
    "Where is my order {order}?",
    "Hi, this is {name}. When will order {order} arrive in {city}?",
    "I ordered a {item} to {city}, number {order}. When does it come?",
)
RETURN_QUESTIONS = (
    "Can I send the {item} back?",
    "How long may I return a {item}?",
    "I don't like my {item}. Can it be returned?",
)
BROKEN_QUESTIONS = ("My {item} arrived broken.", "The {item} does not work.", "There is a crack in my {item}.")
THANKS = ("Thank you!", "Thanks a lot.", "Great, thanks.")


def dialogue(rng: random.Random) -> list[dict[str, str]]:
    """The turns of one dialogue, of one to three answers."""
    facts: dict[str, Any] = {
        "name": rng.choice(NAMES),
        "item": rng.choice(list(RETURN_DAYS)),
        "city": rng.choice(list(DELIVERY_DAYS)),
        "order": rng.randint(1000, 9999),
    }
    turns = [{"role": "system", "content": SYSTEM}]
    for kind in rng.sample(["status", "return", "broken"], rng.randint(1, 2)):
        question, answer = _exchange(kind, facts, rng)
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if rng.random() < 0.3:
        turns += [{"role": "user", "content": rng.choice(THANKS)}]
        turns += [{"role": "assistant", "content": "You are welcome. Have a good day!"}]
    return turns


def dialogues(number: int, seed: int) -> list[list[dict[str, str]]]:
    """So many different dialogues, the same for the same seed."""
    rng, found = random.Random(seed), {}
    while len(found) < number:
        turns = dialogue(rng)
        found.setdefault(tuple(turn["content"] for turn in turns), turns)
    return list(found.values())


def _exchange(kind: str, facts: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    item, city = facts["item"], facts["city"]
    if kind == "return":
        return (
            rng.choice(RETURN_QUESTIONS).format(**facts),
            f"Yes. You can return a {item} within {RETURN_DAYS[item]} days, at no cost.",
        )
    if kind == "broken":
        return (
            rng.choice(BROKEN_QUESTIONS).format(**facts),
            f"I am sorry about the {item}. We will send you a new one today. You may keep the old one.",
        )
    question = rng.choice(STATUS_QUESTIONS)
    if "{city}" not in question:
        return question.format(**facts), f"Order {facts['order']} is on its way. Which city is it going to?"
    days = DELIVERY_DAYS[city]
    when = "tomorrow" if days == 1 else f"in {days} days"
    return question.format(**facts), f"Order {facts['order']} is on its way to {city} and will be there {when}."
