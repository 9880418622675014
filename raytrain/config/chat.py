"""The section on fine-tuning a language model on conversations."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raytrain.config.base import Affects, PositiveInt, Section


class ChatFormat(StrEnum):
    """How a row holds a conversation."""

    MESSAGES = "messages"
    """A list of turns, each an object with `role` (system, user, assistant, tool) and `content`."""
    PROMPT_COMPLETION = "prompt_completion"
    """A question and an answer, in two columns."""
    SHAREGPT = "sharegpt"
    """A list of turns, each an object with `from` (human, gpt, ...) and `value`."""
    ALPACA = "alpaca"
    """An instruction, an input for it, which may be empty, and an output."""


class TrainOn(StrEnum):
    """Which answers are learned."""

    ALL = "all"
    """Those of all assistant turns without `train: false`."""
    LAST = "last"
    """That of the last of them."""


class TooLong(StrEnum):
    """What becomes of a conversation with more than `data.max_length` tokens."""

    REFUSE = "refuse"
    """It is a bad row, for which `data.on_error` says what happens."""
    SET_ASIDE = "set_aside"
    """It is quarantined, whatever `data.on_error` is."""
    CUT = "cut"
    """It ends with the last answer that fits as a whole. Without one it is a bad row."""


class SpecialTokens(StrEnum):
    """What becomes of a text that holds a special token of the tokenizer, such as <|im_end|>."""

    REFUSE = "refuse"
    """Its conversation is a bad row."""
    TEXT = "text"
    """The token is read as ordinary text, so that it can't end a turn."""


class ChatConfig(Section):
    """A language model that answers: fine-tuned on the answers in conversations."""

    kind: Annotated[Literal["chat"], Affects.DATA | Affects.SPEED]
    format: Annotated[ChatFormat | None, Affects.DATA] = None
    """How a row holds a conversation; null: found by the columns of the training data."""
    messages_column: Annotated[str, Affects.DATA] = "messages"
    """With `format: messages`: column with the list of turns, or its JSON text."""
    prompt_column: Annotated[str, Affects.DATA] = "prompt"
    """With `format: prompt_completion`: column with the question."""
    completion_column: Annotated[str, Affects.DATA] = "completion"
    """With `format: prompt_completion`: column with the answer."""
    conversations_column: Annotated[str, Affects.DATA] = "conversations"
    """With `format: sharegpt`: column with the list of turns, or its JSON text."""
    instruction_column: Annotated[str, Affects.DATA] = "instruction"
    """With `format: alpaca`: column with the question."""
    input_column: Annotated[str | None, Affects.DATA] = "input"
    """With `format: alpaca`: column with a text that the question is about, which follows it after an empty line;
    null: there is no such column."""
    output_column: Annotated[str, Affects.DATA] = "output"
    """With `format: alpaca`: column with the answer."""
    tools_column: Annotated[str | None, Affects.DATA] = None
    """Column with the list of tools that the chat template describes to the model, or its JSON text; null: none."""
    system: Annotated[str | None, Affects.DATA] = None
    """System prompt of each conversation that does not begin with its own; null: none is added."""
    chat_template: Annotated[str | None, Affects.DATA | Affects.RESULT] = None
    """A file with a chat template (Jinja), or `chatml`; null: the tokenizer's own. A run's config holds the text of the
    file."""
    train_on: Annotated[TrainOn, Affects.DATA] = TrainOn.ALL
    """all: every answer is learned; last: the last one of each conversation."""
    too_long: Annotated[TooLong, Affects.DATA] = TooLong.REFUSE
    """A conversation of more than `data.max_length` tokens is refused as a bad row, set_aside in the quarantine, or
    cut after the last answer that fits as a whole."""
    special_tokens: Annotated[SpecialTokens, Affects.DATA] = SpecialTokens.REFUSE
    """A text that holds a special token of the tokenizer: refuse makes a bad row of the conversation; text reads it as
    ordinary text."""

    sample_prompts: Annotated[list[str | list[dict[str, Any]]], Affects.NOTHING] = []
    """Questions that the model answers at each evaluation, to read in the terminal, `evals.jsonl` and the report: each
    a text, or a list of turns with `role` and `content` that ends with the user's."""
    sample_max_new_tokens: Annotated[PositiveInt, Affects.NOTHING] = 64
    """Tokens of the answer to each of `sample_prompts` at most."""
    sample_temperature: Annotated[float, Field(ge=0.0), Affects.NOTHING] = 0.0
    """Of these tokens: 0 takes the most probable one; more draws others too, the same at any number of workers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.system is not None and not self.system.strip():
            raise ValueError("task.system is empty: give a text, or leave it out")
        if self.chat_template is not None and not self.chat_template.strip():
            raise ValueError("task.chat_template is empty: give a file, or chatml, or leave it out")
        for place, prompt in enumerate(self.sample_prompts):
            last = prompt if isinstance(prompt, str) else (prompt or [{}])[-1].get("content")
            role = "user" if isinstance(prompt, str) else (prompt or [{}])[-1].get("role")
            if role not in ("user", "tool") or not isinstance(last, str) or not last.strip():
                raise ValueError(
                    f"task.sample_prompts[{place}]: give a text, or a list of turns with role and content, the last of "
                    "them the user's, such as [{role: user, content: Where is my parcel?}]"
                )
        return self
