"""A model that gives a conversation a number, learned from pairs of which the first answer is the better one.

The loss is that of Bradley and Terry: the negative log-probability, the logistic function of the difference of the two
numbers, that the chosen answer is preferred.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, RewardConfig, TrainingConfig
from raytrain.tasks.base import Mode, TaskState
from raytrain.tasks.chat_template import ChatTemplate, Rendered
from raytrain.tasks.conversations import UnusableError
from raytrain.tasks.pair_task import PairTask
from raytrain.tasks.pairs import Pair
from raytrain.tasks.predicting import Decoding, Judged
from raytrain.tasks.text import model_inputs, padded_left, reads_last_position

if TYPE_CHECKING:
    from torch import Tensor, nn


class Reward(PairTask):
    """Bradley-Terry over pairs."""

    value_of_answer = "reward"

    config: RewardConfig

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        return {"accuracy": "max", "margin": "max", "chosen_reward": "max", "rejected_reward": "min"}

    @property
    def value_names(self) -> list[str]:
        """The rewards."""
        return ["chosen_reward", "rejected_reward"]

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A decoder or encoder with a single number."""
        from raytrain.models.build import build_with_head

        labels = ["reward"]
        return build_with_head("AutoModelForSequenceClassification", model, labels, training, problem_type="regression")

    def stand_ins(self) -> list[str]:
        """Turns whose last one is an answer."""
        return list(dict.fromkeys([self.input_columns()[0], "messages"]))

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample the rewards of both conversations, of shape (2,), fp32."""
        return list(self._rewards(model, batch).cpu().numpy())

    def judge(self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding) -> Judged:
        """The losses and rewards."""
        import torch

        from raytrain.models.pair_losses import reward_losses

        rewards = torch.from_numpy(np.array(outputs, np.float64).reshape(len(outputs), 2))
        return self._judged(reward_losses(rewards), rewards, len(outputs))

    def _loss_and_values(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        from raytrain.models.pair_losses import reward_losses

        rewards = self._rewards(model, batch)
        return (reward_losses(rewards) * batch["weights"]).sum(), rewards.detach()

    def _rewards(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Shape (num_samples, 2), fp32."""
        inputs = model_inputs(batch)
        logits: Tensor = model(**(padded_left(inputs) if reads_last_position(model) else inputs)).logits
        return logits.float().view(-1, 2)

    def _single(self, template: ChatTemplate, pair: Pair) -> Rendered:
        """A conversation with its answer, which is scored."""
        if not pair.chosen.trained:
            raise UnusableError("ends with a question, so there is no answer to score")
        return template.render(pair.chosen)[0]
