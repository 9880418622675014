"""Changes the number of token types of a pretrained model. torch is imported late."""

from typing import Any

from raytrain.errors import ConfigError


def widen_token_types(model: Any, num_types: int) -> None:
    """Give the token-type embedding `num_types` rows: the pretrained row 0, plus a little noise in the
    others so that they can grow apart.

    Raises:
        ConfigError: The model has no token-type embedding.
    """
    import torch

    owner = next((m for m in model.modules() if getattr(m, "token_type_embeddings", None) is not None), None)
    if owner is None:
        raise ConfigError(
            f"task.case_feature needs a model with token-type embeddings (such as BERT); {type(model).__name__} has "
            "none. Set task.case_feature=false"
        )
    before = owner.token_type_embeddings
    if before.num_embeddings == num_types and model.config.type_vocab_size == num_types:
        return
    after = torch.nn.Embedding(num_types, before.embedding_dim)
    generator = torch.Generator().manual_seed(0)  # on the CPU, also when the model is on the meta device
    noise = torch.randn(num_types, before.embedding_dim, generator=generator, device="cpu") * 0.02
    noise[0] = 0.0
    after.weight.data.copy_(before.weight.data[0] + noise.to(before.weight.device))
    owner.token_type_embeddings = after
    model.config.type_vocab_size = num_types
