"""Conversations as rows hold them: turns of a list, a question and its answer, ShareGPT's and Alpaca's columns."""

import json
from dataclasses import dataclass
from typing import Any

from raytrain.config.chat import ChatConfig, ChatFormat, TrainOn
from raytrain.tasks.base import RowError
from raytrain.tasks.label_cells import described
from raytrain.tasks.predicting import ASKED

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
}
FOLLOWING = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Roles that may follow a turn of a role; "": at the beginning."""
Turn = dict[str, Any]


class UnusableError(Exception):
    """A row that holds no conversation to learn from; the message is the reason."""

    def __init__(self, reason: str, code: RowError = RowError.BAD_INPUT):
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Conversation:
    """A conversation as chat templates take it."""

    turns: list[Turn]
    """Each with `role` and `content`, and what else the row says of it, such as `tool_calls`."""
    trained: list[int]
    """The places of the assistant turns whose answers are learned, ascending."""
    tools: list[Any] | None = None

    @property
    def asks(self) -> bool:
        """Whether it ends with a turn that an answer would follow."""
        return self.turns[-1]["role"] != "assistant"


def input_columns(config: ChatConfig) -> list[str]:
    """The columns of the questions; where turns are in a list, of the answers too."""
    columns: dict[ChatFormat | None, list[str | None]] = {
        ChatFormat.PROMPT_COMPLETION: [config.prompt_column],
        ChatFormat.SHAREGPT: [config.conversations_column],
        ChatFormat.ALPACA: [config.instruction_column, config.input_column],
    }
    found = [*columns.get(config.format, [config.messages_column]), config.tools_column]
    return [name for name in found if name is not None]


def target_columns(config: ChatConfig) -> list[str]:
    """The columns of the answers, where they have one."""
    answers = {ChatFormat.PROMPT_COMPLETION: config.completion_column, ChatFormat.ALPACA: config.output_column}
    return [answers[config.format]] if config.format in answers else []


def read_conversation(config: ChatConfig, row: dict[str, Any]) -> Conversation:
    """The conversation of a row. Raises UnusableError, also when it has no answer to learn but for `trained_turns`."""
    if row.get(ASKED) is not None:
        turns, flags = read_asked(row[ASKED])
    elif config.format == ChatFormat.PROMPT_COMPLETION:
        turns, flags = _pair(config.prompt_column, config.completion_column, row)
    elif config.format == ChatFormat.ALPACA:
        turns, flags = _pair(config.instruction_column, config.output_column, row)
        if config.input_column and (text := row.get(config.input_column)) is not None and text != "":
            turns[0]["content"] += f"\n\n{read_text(text, config.input_column)}"
    else:
        is_sharegpt = config.format == ChatFormat.SHAREGPT
        column = config.conversations_column if is_sharegpt else config.messages_column
        names = ("from", "value") if is_sharegpt else ("role", "content")
        other = "messages task.messages_column" if is_sharegpt else "sharegpt task.conversations_column"
        turns, flags = read_turns(row.get(column), column, *names, other=f"task.format={other}={column}")
        check_order(turns, column)
    if config.system is not None and turns[0]["role"] != "system":
        turns, flags = [{"role": "system", "content": config.system}, *turns], [False, *flags]
    places = [i for i, (turn, flag) in enumerate(zip(turns, flags, strict=True)) if flag and _is_answer(turn)]
    tools = None if config.tools_column is None else _tools(row.get(config.tools_column), config.tools_column)
    return Conversation(turns, places[-1:] if config.train_on == TrainOn.LAST else places, tools)


def why_no_answer(config: ChatConfig, conversation: Conversation) -> str:
    """Why there is nothing to learn from a conversation, or an empty string."""
    if conversation.trained:
        return ""
    if not any(map(_is_answer, conversation.turns)):
        columns = target_columns(config)
        return f"{columns[0]} is empty" if columns else "has no assistant turn, so there is no answer to learn"
    return "has `train: false` at all assistant turns, so there is no answer to learn"


def _is_answer(turn: Turn) -> bool:
    return bool(turn["role"] == "assistant")


def read_asked(value: Any) -> tuple[list[Turn], list[bool]]:
    """The turns of a question, or of a list of turns, and whether each is to be learned. Raises UnusableError."""
    if not isinstance(value, list) and not (isinstance(value, str) and is_json_list(value)):
        return [{"role": "user", "content": read_text(value, "the question")}], [False]
    turns, flags = read_turns(value, "messages", "role", "content")
    check_order(turns, "messages")
    return turns, flags


def _pair(question: str, answer: str, row: dict[str, Any]) -> tuple[list[Turn], list[bool]]:
    turns = [{"role": "user", "content": read_text(row.get(question), question)}]
    if (text := row.get(answer)) is not None and not (isinstance(text, str) and not text.strip()):
        turns.append({"role": "assistant", "content": read_text(text, answer)})
    return turns, [False, True][: len(turns)]


def read_text(value: Any, where: str) -> str:
    """A text that is not blank. Raises UnusableError, which names `where`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UnusableError(f"{where} is empty")
    if not isinstance(value, str):
        raise UnusableError(f"{where} is {described(value)} and not text")
    return value


def read_turns(
    cell: Any, column: str, role_name: str, text_name: str, *, other: str = ""
) -> tuple[list[Turn], list[bool]]:
    """The turns in a cell, and whether each is to be learned. `other`: the fields for turns with the other names."""
    cell = _from_json(cell, column, f"a list of turns, each with {role_name} and {text_name}")
    if not cell:
        raise UnusableError(f"{column} has no turns")
    turns, flags = [], []
    for place, raw in enumerate(cell):
        where = f"{column}[{place}]"
        if not isinstance(raw, dict):
            raise UnusableError(f"{where} is {described(raw)} and not an object with {role_name} and {text_name}")
        turn = _without_nulls(raw)
        name, content, flag = turn.pop(role_name, None), turn.pop(text_name, None), turn.pop("train", True)
        other_name = "role" if role_name == "from" else "from"
        if name is None and other and other_name in turn:
            raise UnusableError(f"{where} has no {role_name} but {other_name}: set {other}")
        roles = SHAREGPT_ROLES if role_name == "from" else {role: role for role in ROLES}
        if not isinstance(name, str) or name not in roles:
            raise UnusableError(f"{where}.{role_name} is {described(name)}; allowed are {', '.join(roles)}")
        if not isinstance(flag, bool):
            raise UnusableError(f"{where}.train is {described(flag)}; give true or false")
        calls = roles[name] == "assistant" and turn.get("tool_calls")
        if (content is None and calls) or (content == "" and (calls or roles[name] == "tool")):
            content = ""
        else:
            content = read_text(content, f"{where}.{text_name}")
        turns.append({"role": roles[name], "content": content, **turn})
        flags.append(flag)
    return turns, flags


def check_order(turns: list[Turn], column: str) -> None:
    """Raises UnusableError when a role follows one that it may not follow."""
    before = ""
    for place, turn in enumerate(turns):
        if turn["role"] not in FOLLOWING[before]:
            after = f"follows {before}" if before else "is the first turn"
            allowed = " or ".join(FOLLOWING[before])
            raise UnusableError(f"{column}[{place}]: {turn['role']} {after}, where {allowed} is meant")
        if turn["role"] == "tool" and before == "assistant" and not turns[place - 1].get("tool_calls"):
            raise UnusableError(f"{column}[{place}]: tool follows an assistant turn without tool_calls")
        before = turn["role"]
    if before == "system":
        raise UnusableError(f"{column} has a system turn alone")


def _tools(cell: Any, column: str) -> list[Any] | None:
    if cell is None or cell == "":
        return None
    tools = _from_json(cell, column, "a list of tools")
    if bad := next((tool for tool in tools if not isinstance(tool, dict)), None):
        raise UnusableError(f"{column} holds {described(bad)} and not an object that describes a tool")
    return [_without_nulls(tool) for tool in tools] or None


def _from_json(cell: Any, column: str, meant: str) -> list[Any]:
    """A list, or the list of a JSON text."""
    if cell is None or cell == "":
        raise UnusableError(f"{column} is empty")
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise UnusableError(f"{column} is text that is not JSON; give {meant}, or its JSON") from None
    if not isinstance(cell, list):
        raise UnusableError(f"{column} is {described(cell)} and not {meant}")
    return cell


def is_json_list(text: str) -> bool:
    """Whether a text is a list in JSON."""
    try:
        return text.lstrip().startswith("[") and isinstance(json.loads(text), list)
    except ValueError:
        return False


def _without_nulls(value: Any) -> Any:
    """Without the keys whose value is null: in a column of Arrow each object has the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
