"""The sections on preferences: pairs of answers to one prompt, of which the first is the better one."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raytrain.config.base import Affects, Section
from raytrain.config.chat import SpecialTokens


class PreferenceLoss(StrEnum):
    """What is learned from a pair."""

    DPO = "dpo"
    """Direct preference optimization: the logistic loss of the difference of the rewards."""
    IPO = "ipo"
    """Identity preference optimization: the squared distance of that difference, a token, from 1 / (2 beta)."""
    ORPO = "orpo"
    """Odds ratio preference optimization: the loss of the chosen answer, and beta times the logistic loss of the log
    odds ratio. It needs no reference."""

    @property
    def has_reference(self) -> bool:
        """Whether it compares with the model that training starts from."""
        return self != PreferenceLoss.ORPO


class PairTooLong(StrEnum):
    """What becomes of a pair of which one side has more than `data.max_length` tokens."""

    REFUSE = "refuse"
    """It is a bad row, for which `data.on_error` says what happens."""
    SET_ASIDE = "set_aside"
    """It is quarantined, whatever `data.on_error` is."""


class PairsConfig(Section):
    """What the tasks on pairs share."""

    kind: Annotated[str, Affects.DATA | Affects.SPEED]
    prompt_column: Annotated[str | None, Affects.DATA] = "prompt"
    """Column with the prompt: a text, or a list of turns; null: there is none, and the conversations in the two other
    columns begin with it."""
    chosen_column: Annotated[str, Affects.DATA] = "chosen"
    """Column with the better answer: a text, a list of turns that follow the prompt, or a whole conversation."""
    rejected_column: Annotated[str, Affects.DATA] = "rejected"
    """Column with the worse answer, as the better one is given."""
    system: Annotated[str | None, Affects.DATA] = None
    """System prompt of each conversation that does not begin with its own; null: none is added."""
    chat_template: Annotated[str | None, Affects.DATA | Affects.RESULT] = None
    """A file with a chat template (Jinja), or `chatml`; null: the tokenizer's own. A run's config holds the text of the
    file."""
    too_long: Annotated[PairTooLong, Affects.DATA] = PairTooLong.REFUSE
    """A pair of which one side has more than `data.max_length` tokens is refused as a bad row, or set_aside in the
    quarantine."""
    special_tokens: Annotated[SpecialTokens, Affects.DATA] = SpecialTokens.REFUSE
    """A text that holds a special token of the tokenizer: refuse makes a bad row of the pair; text reads it as ordinary
    text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.system is not None and not self.system.strip():
            raise ValueError("task.system is empty: give a text, or leave it out")
        if self.chat_template is not None and not self.chat_template.strip():
            raise ValueError("task.chat_template is empty: give a file, or chatml, or leave it out")
        names = [name for name in (self.prompt_column, self.chosen_column, self.rejected_column) if name is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"task names the column {max(names, key=names.count)!r} twice: give each its own")
        return self


class PreferenceConfig(PairsConfig):
    """A language model that is to prefer the better one of two answers."""

    kind: Annotated[Literal["preference"], Affects.DATA | Affects.SPEED]
    loss: Annotated[PreferenceLoss, Affects.RESULT] = PreferenceLoss.DPO
    """dpo, ipo or orpo. The first two compare with the model that training starts from, whose log-probabilities of all
    answers are computed once, when the data is prepared."""
    beta: Annotated[float, Field(gt=0), Affects.RESULT] = 0.1
    """With dpo and ipo: how closely the model stays to the one that training starts from, larger is closer; with orpo:
    the weight of the odds ratio."""


class RewardConfig(PairsConfig):
    """A model that gives a conversation a number, larger for the better one of two answers."""

    kind: Annotated[Literal["reward"], Affects.DATA | Affects.SPEED]
