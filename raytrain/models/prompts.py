"""What a language model is asked to continue. No torch: it travels between processes that do not load it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Tokens, and how the next ones are chosen."""

    ids: list[int]
    """Token ids, at least one."""
    max_new_tokens: int
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0: always the most probable token."""
    top_p: float = 1.0
    """Tokens are drawn among the most probable ones that together have at least this probability."""
    seed: int = 0
    number: int = 0
    """What random numbers are drawn by besides `seed` and `ids`, such as the row's place in its file."""
