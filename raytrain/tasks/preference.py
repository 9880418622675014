"""A language model that learns which of two answers is the better one: DPO, IPO, ORPO.

DPO and IPO compare its log-probabilities with those of the model that training starts from, which are a column of the
prepared data. With an adapter that model is its base, so the column is the same.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, PreferenceConfig, PreferenceLoss, TrainingConfig
from raytrain.tasks.base import Mode, TaskState
from raytrain.tasks.causal_lm import continued
from raytrain.tasks.chat import PROMPT, asked_samples, spans_of, stopping_at_turns
from raytrain.tasks.chat_template import ChatTemplate, Rendered
from raytrain.tasks.conversations import Conversation, UnusableError
from raytrain.tasks.pair_task import ANSWERS, REFERENCE, PairTask
from raytrain.tasks.pairs import Pair
from raytrain.tasks.predicting import Continued, Decoding, Generating, Judged
from raytrain.tasks.referenced import Referenced, refuse_without_reference

if TYPE_CHECKING:
    from torch import Tensor, nn


class Preference(PairTask, Generating, Referenced):
    """A loss of the log-probabilities of the two answers."""

    generated_column = "answer"
    default_new_tokens = 256
    answers_turns = True
    reference_column = REFERENCE
    value_of_answer = "logp"

    config: PreferenceConfig

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        modes: dict[str, Mode] = {"accuracy": "max", "margin": "max", "chosen_reward": "max", "rejected_reward": "min"}
        return modes if self.has_reference else {**modes, "log_odds_ratio": "max"}

    @property
    def value_names(self) -> list[str]:
        """The rewards, and with orpo the log odds ratio."""
        names = ["chosen_reward", "rejected_reward"]
        return names if self.has_reference else [*names, "log_odds_ratio"]

    @property
    def has_reference(self) -> bool:
        """With dpo and ipo."""
        return self.config.loss.has_reference

    def refer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> np.ndarray:
        """The log-probabilities of both answers, of shape (num_samples, 2)."""
        from raytrain.models.pair_losses import log_probabilities_of_pairs

        found: np.ndarray = log_probabilities_of_pairs(model, batch)[0].detach().cpu().numpy()
        return found

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A model that predicts the next token, and stops at the end of a turn. Raises ConfigError."""
        from raytrain.models.language import build_causal_lm

        return stopping_at_turns(build_causal_lm(model, training), self.template, model)

    def stand_ins(self) -> list[str]:
        """A question alone, or turns."""
        return list(dict.fromkeys([self.input_columns()[0], "messages", "prompt", "text"]))

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample the mean log-probabilities of the tokens of both answers, of shape (2,), fp32."""
        from raytrain.models.pair_losses import log_probabilities_of_pairs

        sums, counts = log_probabilities_of_pairs(model, batch)
        return list((sums / counts.clamp_min(1)).cpu().numpy())

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """Which answer is the more probable one to the model alone, without a reference: by its mean over tokens with
        ipo and orpo, and as a whole with dpo, as they are compared in the training."""
        values = np.array(outputs, np.float64).reshape(len(outputs), 2)
        if self.config.loss == PreferenceLoss.DPO:
            values = values * _num_tokens(samples)
        return super().decode(list(values), samples, rows, state, decoding)

    def judge(self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding) -> Judged:
        """The losses and rewards of orpo. Raises ConfigError with another loss."""
        import torch

        from raytrain.models.pair_losses import preference_losses

        refuse_without_reference(self)
        counts = torch.from_numpy(_num_tokens(samples))
        means = torch.from_numpy(np.array(outputs, np.float64).reshape(len(outputs), 2))
        losses, values = preference_losses(self.config.loss, self.config.beta, means * counts, counts, None)
        return self._judged(losses, values, len(outputs))

    def generate(
        self, model: Any, samples: pa.Table, numbers: np.ndarray, tokenizer: Any, decoding: Decoding
    ) -> Continued:
        """Answer each prompt, without the token that would end it."""
        return continued(model, _prompts(samples), numbers, tokenizer, decoding)

    def prompt_ids(self, asked: str | list[dict[str, Any]], tokenizer: Any) -> list[int]:
        """The tokens of a question or of turns, with the header that asks for an answer. Raises ConfigError."""
        return _prompts(asked_samples(self, asked, tokenizer))[0]

    def _loss_and_values(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        from raytrain.models.pair_losses import log_probabilities_of_pairs, preference_losses

        sums, counts = log_probabilities_of_pairs(model, batch)
        losses, values = preference_losses(self.config.loss, self.config.beta, sums, counts, batch.get(REFERENCE))
        return (losses * batch["weights"]).sum(), values.detach()

    def _single(self, template: ChatTemplate, pair: Pair) -> Rendered:
        """A prompt, which is answered; in place of an answer that it has, too."""
        turns = pair.chosen.turns[:-1] if pair.chosen.trained else pair.chosen.turns
        if not turns:
            raise UnusableError("has no question to answer")
        return template.ask(Conversation(turns, []))


def _prompts(samples: pa.Table) -> list[list[int]]:
    """For each sample the tokens that an answer follows."""
    columns = (samples[name].to_pylist() for name in ("input_ids", ANSWERS[0], PROMPT))
    return [prompt or ids[: answers[0]] for ids, answers, prompt in zip(*columns, strict=True)]


def _num_tokens(samples: pa.Table) -> np.ndarray:
    """Tokens of the answers of both sides, of shape (num_samples, 2), int64."""
    columns = [samples[name].to_pylist() for name in ANSWERS]
    counts = [[sum(stop - start for start, stop in spans_of(cell)) for cell in column] for column in columns]
    return np.array(counts, np.int64).reshape(2, len(samples)).T.copy()
