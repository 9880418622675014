"""What tasks on texts share: samples of token ids, and models of Transformers."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.tasks.base import Batch, Task, TaskState
from raytrain.tasks.collate import attention_mask, list_lengths, pad_column
from raytrain.tasks.label_cells import described

if TYPE_CHECKING:
    from torch import Tensor, nn


class PretrainedTask(Task):
    """A task whose model is one of Transformers, with or without an adapter."""

    def model_inputs(self, batch: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """What the model is called with for a batch, by the names of its arguments."""
        return model_inputs(batch)

    def example_inputs(self, tokenizer: Any) -> "dict[str, Tensor] | None":
        """What the model is called with where the size of its inputs is fixed; None: it is not."""
        return None

    def save_model(self, model: Any, weights: "dict[str, Tensor]", folder: str) -> None:
        """With `save_pretrained`, so that `from_pretrained` reads it without raytrain. Of a model with an adapter that
        alone, in PEFT's format."""
        from raytrain.models.adapter import has_adapter, save_adapter

        if has_adapter(model):
            save_adapter(model, weights, folder)
        else:
            model.save_pretrained(folder, state_dict=weights)

    def load_model(self, folder: str, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """The pretrained model of the folder, or the one at `model.path` with the adapter of the folder."""
        if model.attention == "flash_attention_2":  # it has no fp32, in which the trained model is used
            model = model.model_copy(update={"attention": "auto"})
        if model.adapter is None:
            whole: dict[str, Any] = {"path": folder, "config": None, "add_tokens": []}  # the folder has them
            return self.build_model(model.model_copy(update=whole), state, training)
        from raytrain.models.adapter import load_adapter

        try:
            built = self.build_model(model, state, training)
        except ConfigError as error:
            raise ConfigError(
                f"the trained model is an adapter of a base model, which can't be loaded: {error}. Restore it, or for "
                "predict and export say with model.path=FOLDER where it is now"
            ) from error
        load_adapter(built, folder)
        return built


class TextTask(PretrainedTask):
    """A task whose samples have `input_ids`, and whose model is one of Transformers."""

    max_length: int
    """data.max_length, in tokens."""

    def sizes(self, samples: pa.Table) -> np.ndarray:
        """Tokens."""
        return list_lengths(samples["input_ids"]).astype(np.int32)

    def padded_size(self, batch: Batch) -> int:
        """Tokens with padding."""
        return batch["input_ids"].size

    def long_rows(self) -> pa.Table | None:
        """Source rows, without targets, that have more tokens than `max_length`; None: not known."""
        return None

    def longest_inputs(self, tokenizer: Any) -> Batch | None:
        """What the model is called with for the longest samples that there can be; None: not known."""
        if (rows := self.long_rows()) is None:
            return None
        return padded_inputs(self.encode_inputs(rows, tokenizer).table, tokenizer.pad_token_id)

    def saved_tokenizer(self, tokenizer: Any) -> Any:
        """The tokenizer as it is kept beside the model. The given one may be changed."""
        return tokenizer

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """The decoded text, the tokens, and the targets by name."""
        ids, targets = sample.pop("input_ids"), sample.pop("labels", None)
        tokens = tokenizer.convert_ids_to_tokens(ids)
        shown = {"text": tokenizer.decode(ids, skip_special_tokens=True), "tokens": tokens}
        return {**shown, "labels": self.name_targets(targets, tokens, state), **sample}

    def name_targets(self, targets: Any, tokens: list[str], state: TaskState) -> Any:
        """A sample's stored targets as the source names them."""
        return targets


def padded_inputs(samples: pa.Table, pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` and, where they are stored, `token_type_ids`; each of shape (num_samples, seq_len),
    int64."""
    input_ids = pad_column(samples["input_ids"], pad_token_id)
    width = input_ids.shape[1]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask(samples["input_ids"], width)}
    if "token_type_ids" in samples.column_names:
        batch["token_type_ids"] = pad_column(samples["token_type_ids"], 0, width)
    return batch


def model_inputs(batch: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The arrays of a batch that are the model's inputs, of shape (num_sequences, seq_len): those of samples with two
    texts, of shape (num_samples, 2, seq_len), one after the other."""
    names = [name for name in ("input_ids", "attention_mask", "position_ids", "token_type_ids") if name in batch]
    return {name: batch[name].flatten(0, -2) if batch[name].ndim > 2 else batch[name] for name in names}


def reads_last_position(model: Any) -> bool:
    """Whether the head of a model on texts reads the last position of a row, padding or not, as XLNet's does."""
    config = getattr(getattr(model, "module", model), "config", None)  # an engine around it has a config of its own
    return getattr(config, "summary_type", None) == "last"


def padded_left(inputs: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The same rows with their padding moved from the right end to the left."""
    import torch

    mask = inputs["attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device) - (mask.shape[1] - mask.sum(1, keepdim=True))
    places = places % mask.shape[1]  # (num_samples, seq_len); the padding comes from the end
    return {name: tensor.gather(1, places) for name, tensor in inputs.items()}


def why_no_text(value: Any) -> str:
    """Why a value can't be read as a text, or an empty string."""
    if isinstance(value, str) and value.strip():
        return ""
    if value is None or isinstance(value, str):
        return "is empty"
    return f"is {described(value)} and not text"
