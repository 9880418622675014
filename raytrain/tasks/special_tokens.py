"""Whether a sample has room for anything beside the tokenizer's special tokens."""

from typing import Any

from raytrain.errors import ConfigError


def check_room(tokenizer: Any, max_length: int, num_texts: int = 1) -> None:
    """Raises ConfigError when `max_length` tokens are filled by special tokens alone, or leave a text without any.

    Args:
        num_texts: 1 for a text, 2 for a pair.
    """
    num_special = tokenizer.num_special_tokens_to_add(pair=num_texts == 2)
    if max_length < num_special + num_texts:
        raise ConfigError(
            f"data.max_length {max_length} leaves no room beside the {num_special} special tokens of this tokenizer; "
            f"raise it to at least {num_special + num_texts}"
        )


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that this tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]
