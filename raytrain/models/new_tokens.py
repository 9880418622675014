"""Rows of a model for tokens that its tokenizer was given."""

from typing import Any

from raytrain.config import ModelConfig
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer


def add_rows(model: Any, config: ModelConfig) -> None:
    """Give each token of `model.add_tokens` a row in the embedding, and in a language model's output, that is the mean
    of those of the tokenizer's other tokens. Weights that are tied stay so. Raises ConfigError."""
    import torch

    if not config.add_tokens:
        return
    total = len(load_tokenizer(config))
    known = total - len(config.add_tokens)
    num_rows = model.get_input_embeddings().num_embeddings
    if num_rows < known:
        raise ConfigError(
            f"model.add_tokens: the embedding has {num_rows} rows, and the tokenizer already has {known} tokens "
            "without them: use the tokenizer that the model was trained with"
        )
    if num_rows < total:  # some models have spare rows
        model.resize_token_embeddings(total, mean_resizing=False)
    output = model.get_output_embeddings()
    parts = [model.get_input_embeddings(), *([output] if output is not None else [])]
    tensors = {id(tensor): tensor for part in parts for tensor in part.parameters(recurse=False)}
    with torch.no_grad():
        for tensor in tensors.values():  # a tied matrix is one tensor
            tensor[known:total] = tensor[:known].mean(0)
