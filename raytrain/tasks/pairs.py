"""Pairs of answers to one prompt as rows hold them: texts, lists of turns, or whole conversations."""

from dataclasses import dataclass
from typing import Any

from raytrain.config.preference import PairsConfig
from raytrain.tasks.base import RowError
from raytrain.tasks.conversations import (
    Conversation,
    Turn,
    UnusableError,
    check_order,
    is_json_list,
    read_asked,
    read_text,
    read_turns,
)
from raytrain.tasks.predicting import ASKED


@dataclass(frozen=True)
class Pair:
    """Two conversations that begin alike, or one alone."""

    chosen: Conversation
    rejected: Conversation | None
    """None: there is a single conversation, whose answer is to be scored or still to be given."""


def pair_columns(config: PairsConfig) -> list[str]:
    """The columns of a pair."""
    names = (config.prompt_column, config.chosen_column, config.rejected_column)
    return [name for name in names if name is not None]


def read_pair(config: PairsConfig, row: dict[str, Any]) -> Pair:
    """The pair of a row. A row without the columns of the answers, as for a prediction, is a single conversation.

    Raises UnusableError.
    """
    if row.get(ASKED) is not None:
        return Pair(_single(config, read_asked(row[ASKED])[0]), None)
    if config.chosen_column not in row and config.rejected_column not in row:
        return Pair(_single(config, _prompt(config, row)), None)
    chosen = _side(config, config.chosen_column, row)
    rejected = _side(config, config.rejected_column, row)
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    names = f"{config.chosen_column} and {config.rejected_column}"
    if common == len(chosen) == len(rejected):
        raise UnusableError(f"{names} are equal, so neither is the better one", RowError.BAD_TARGET)
    if not any(turn["role"] == "user" for turn in chosen[:common]):
        raise UnusableError(f"{names} have no prompt in common: both have to begin with the same turns")
    for column, turns in ((config.chosen_column, chosen), (config.rejected_column, rejected)):
        if common == len(turns):
            raise UnusableError(f"{column} is the beginning of the other conversation and adds no answer to it")
        if turns[common]["role"] != "assistant":
            raise UnusableError(
                f"{names} differ in turn {common}, which is of {turns[common]['role']} in {column}: they may differ "
                "from an answer on alone"
            )
    return Pair(_answered(chosen, common), _answered(rejected, common))


def _single(config: PairsConfig, turns: list[Turn]) -> Conversation:
    turns = _with_system(config, turns)
    return Conversation(turns, [len(turns) - 1] if turns[-1]["role"] == "assistant" else [])


def _answered(turns: list[Turn], common: int) -> Conversation:
    """`common`: turns of the prompt."""
    places = [place for place in range(common, len(turns)) if turns[place]["role"] == "assistant"]
    return Conversation(turns, places)


def _side(config: PairsConfig, column: str, row: dict[str, Any]) -> list[Turn]:
    """A whole conversation, which ends with an answer."""
    cell = row.get(column)
    turns = _turns_of(cell, column, "assistant")
    if turns[0]["role"] in ("assistant", "tool"):
        if config.prompt_column is None:
            raise UnusableError(
                f"{column} is an answer without its prompt: name the column with it as task.prompt_column, or give "
                "whole conversations"
            )
        turns = [*_prompt(config, row), *turns]
    turns = _with_system(config, turns)
    check_order(turns, column)
    if turns[-1]["role"] != "assistant":
        raise UnusableError(f"{column} ends with a turn of {turns[-1]['role']} and not with an answer")
    return turns


def _prompt(config: PairsConfig, row: dict[str, Any]) -> list[Turn]:
    column = config.prompt_column or "messages"
    turns = _turns_of(row.get(column), column, "user")
    check_order(turns, column)
    return turns


def _turns_of(cell: Any, column: str, role: str) -> list[Turn]:
    """The turns in a cell; a text is one of `role`."""
    if isinstance(cell, list) or (isinstance(cell, str) and '"role"' in cell and is_json_list(cell)):
        return read_turns(cell, column, "role", "content")[0]
    return [{"role": role, "content": read_text(cell, column)}]


def _with_system(config: PairsConfig, turns: list[Turn]) -> list[Turn]:
    has_own = turns[0]["role"] == "system"
    return turns if config.system is None or has_own else [{"role": "system", "content": config.system}, *turns]
